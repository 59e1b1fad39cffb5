"""Backchannel: conversations with language models over gRPC."""
