"""The Python SDK: `from backchannel.client import Client, tool`.

A `Client` is a server; a `Conversation` is a session that one talks to, which reconnects and
resumes by itself; a `Tool` is a function that the model may call. The types of the contract that
one meets on the way are here too.
"""

from backchannel.client.answer import Answer, Reply
from backchannel.client.client import DEFAULT_TARGET, Client
from backchannel.client.config import ClientConfig
from backchannel.client.connection import Connected, ConnectionChange, Lost
from backchannel.client.conversation import Conversation, Events, Turns
from backchannel.client.errors import (
    ClientError,
    ClosedError,
    CursorTrimmedError,
    DisconnectedError,
    MessageWithdrawnError,
    SessionGoneError,
    StatusError,
    ToolFailedError,
    TurnFailedError,
)
from backchannel.client.shape import AnswerShape
from backchannel.client.tools import Scheduled, Tool, ToolContext, tool
from backchannel.v1.event_pb2 import Channel, Event, Keep
from backchannel.v1.frame_pb2 import ClientFrame, Interrupt, Receipt, ReceiptStatus, Snapshot
from backchannel.v1.model_service_pb2 import Model
from backchannel.v1.session_pb2 import (
    Content,
    ContextPolicy,
    Delivery,
    DisconnectPolicy,
    FinishReason,
    Limits,
    Message,
    Part,
    ResponseFormat,
    Role,
    Sampling,
    Scheduling,
    Session,
    SessionConfig,
    SideEffect,
    Timing,
    ToolCallOutcome,
    ToolDisposition,
    ToolOutcome,
    Usage,
    UserMessage,
)

__all__ = [
    "DEFAULT_TARGET",
    "Answer",
    "AnswerShape",
    "Channel",
    "Client",
    "ClientConfig",
    "ClientError",
    "ClientFrame",
    "ClosedError",
    "Connected",
    "ConnectionChange",
    "Content",
    "ContextPolicy",
    "Conversation",
    "CursorTrimmedError",
    "Delivery",
    "DisconnectPolicy",
    "DisconnectedError",
    "Event",
    "Events",
    "FinishReason",
    "Interrupt",
    "Keep",
    "Limits",
    "Lost",
    "Message",
    "MessageWithdrawnError",
    "Model",
    "Part",
    "Receipt",
    "ReceiptStatus",
    "Reply",
    "ResponseFormat",
    "Role",
    "Sampling",
    "Scheduled",
    "Scheduling",
    "Session",
    "SessionConfig",
    "SessionGoneError",
    "SideEffect",
    "Snapshot",
    "StatusError",
    "Timing",
    "Tool",
    "ToolCallOutcome",
    "ToolContext",
    "ToolDisposition",
    "ToolFailedError",
    "ToolOutcome",
    "TurnFailedError",
    "Turns",
    "Usage",
    "UserMessage",
    "tool",
]
