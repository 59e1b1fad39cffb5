"""Envoy in front of the service: its configuration, its binary, its life as our child process."""
