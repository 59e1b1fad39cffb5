"""What Envoy must know to speak JSON: the descriptors of our messages, from the generated code.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/grpc_json_transcoder_filter
"""

from __future__ import annotations

from typing import Final

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2

from backchannel.v1 import (
    browser_service_pb2,
    conversation_service_pb2,
    model_service_pb2,
    probe_service_pb2,
)

# The services, and the types that stand in a status as `Any`: nothing imports those, and without
# them the body of an error would be empty.
_ROOTS: Final[tuple[FileDescriptor, ...]] = (
    browser_service_pb2.DESCRIPTOR,
    conversation_service_pb2.DESCRIPTOR,
    model_service_pb2.DESCRIPTOR,
    probe_service_pb2.DESCRIPTOR,
    error_details_pb2.DESCRIPTOR,
    status_pb2.DESCRIPTOR,
)


def descriptor_set() -> bytes:
    """A serialised `FileDescriptorSet`: each file once, after those that it imports."""
    files: dict[str, bytes] = {}

    def add(file: FileDescriptor) -> None:
        if file.name in files:
            return
        for dependency in file.dependencies:
            add(dependency)
        files[file.name] = file.serialized_pb

    for root in _ROOTS:
        add(root)
    parsed = map(descriptor_pb2.FileDescriptorProto.FromString, files.values())
    return descriptor_pb2.FileDescriptorSet(file=parsed).SerializeToString(deterministic=True)
