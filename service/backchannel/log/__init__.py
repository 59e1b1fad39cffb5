"""Where events are kept: one protocol, one backend a file."""
