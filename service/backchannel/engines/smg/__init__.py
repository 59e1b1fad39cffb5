"""vLLM over its own gRPC."""

from backchannel.engines.smg.factory import create

__all__ = ["create"]
