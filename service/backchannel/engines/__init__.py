"""Where tokens come from: one protocol, one adapter a file."""
