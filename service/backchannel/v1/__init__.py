"""The contract as generated code: messages in `*_pb2`, services in `*_pb2_grpc`.

Made from proto/backchannel/v1 by `make proto`; nothing here is edited by hand.
"""
