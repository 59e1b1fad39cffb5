"""Any server that speaks the OpenAI API."""

from backchannel.engines.openai.factory import create

__all__ = ["create"]
