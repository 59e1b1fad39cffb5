"""`ModelService`: what can be talked to."""

from __future__ import annotations

from typing import Any

import grpc

from backchannel.engines.registry import EngineRegistry
from backchannel.v1 import model_service_pb2, model_service_pb2_grpc


class Models(model_service_pb2_grpc.ModelServiceServicer):
    """Lists what the engines offer.

    Args:
        engines: Where the models are.
    """

    def __init__(self, engines: EngineRegistry) -> None:
        self._engines = engines

    async def ListModels(  # noqa: N802 - the contract's name
        self,
        request: model_service_pb2.ListModelsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> model_service_pb2.ListModelsResponse:
        """All models and aliases, the default first."""
        default = self._engines.default_model
        # Stable: behind the default the order stays, aliases first.
        ordered = sorted(self._engines.models(), key=lambda named: named[0] != default)
        return model_service_pb2.ListModelsResponse(
            models=[
                model_service_pb2.Model(
                    name=name,
                    description=card.description,
                    max_context_tokens=card.max_context_tokens,
                    capabilities=sorted(card.capabilities),
                )
                for name, card in ordered
            ]
        )
