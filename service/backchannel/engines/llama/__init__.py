"""The embedded engine: any GGUF file, run in this process by llama.cpp."""

from backchannel.engines.llama.engine import create

__all__ = ["create"]
