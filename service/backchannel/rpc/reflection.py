"""Server reflection, so that grpcurl and its like need no proto files.

`grpcio-reflection` registers v1alpha only. v1 has the same messages under another package, field by
field, so the same servicer answers it.

Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection import aio

V1ALPHA: Final = reflection.SERVICE_NAME
V1: Final = "grpc.reflection.v1.ServerReflection"


def register(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Add both versions to a server that has not started.

    Args:
        server: The server.
        services: Full names of the services to show, beside reflection itself.
    """
    _describe_v1()
    servicer = aio.ReflectionServicer((*services, V1ALPHA, V1))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
        for name in (V1ALPHA, V1)
    )


def _describe_v1() -> None:
    """Add the description of v1 to the pool, so that describing everything finds it too."""
    pool = descriptor_pool.Default()
    name = "grpc/reflection/v1/reflection.proto"
    try:
        pool.FindFileByName(name)
    except KeyError:
        pass
    else:
        return
    file = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    old, file.name, file.package = f".{file.package}.", name, "grpc.reflection.v1"
    new = f".{file.package}."
    for message in file.message_type:
        for field in message.field:
            if field.type_name:  # which setting it would make a field of a message type
                field.type_name = field.type_name.replace(old, new)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    pool.AddSerializedFile(file.SerializeToString())
