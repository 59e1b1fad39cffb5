"""The doors for browsers: a session as server-sent events, and the page with its assets."""
