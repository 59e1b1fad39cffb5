/**
 * `@backchannel/client`: conversations with language models that survive lost connections.
 *
 * A `Client` is a server; a `Conversation` is a session that one talks to, which reconnects and
 * resumes by itself; a `Tool` is a function that the model may call; a `Transcript` folds events
 * into what a page shows.
 */
export { Answer, type Reply } from "./answer.js";
export { Backoff, type BackoffOptions, defaultBackoff } from "./backoff.js";
export { Client, type ClientOptions, type SessionInit } from "./client.js";
export {
  Conversation,
  type ConversationOptions,
  type InterruptOptions,
  type Listener,
  type SendOptions,
  type Sent,
} from "./conversation.js";
export {
  ClientError,
  ClosedError,
  StatusError,
  ToolFailedError,
  TurnFailedError,
  callError,
  milliseconds,
  registry,
  statusError,
} from "./errors.js";
export { type EventSourceConstructor, type EventSourceLike, eventSourceAttach } from "./eventsource.js";
export { newId } from "./ids.js";
export {
  type FrameStore,
  type KeyValueStorage,
  type StoredFrame,
  WebFrameStore,
  defaultStorage,
  memoryStorage,
} from "./storage.js";
export type { Connection, SnapshotCause } from "./stream.js";
export { type Time, systemTime } from "./time.js";
export {
  type Claim,
  type Tool,
  type ToolContext,
  defaultClaim,
  soleClaim,
  webLocksClaim,
} from "./tools.js";
export {
  type CallView,
  type ItemView,
  type LateResult,
  type MessageView,
  type NoticeView,
  type TimingView,
  Transcript,
  type TurnView,
  countChars,
  indexOfChar,
  textOf,
} from "./transcript.js";
export { type Attach, type ForkPoint, type GrpcWireOptions, type Wire, grpcWire } from "./wire.js";

export {
  AttachRequestSchema,
  ConversationService,
  type AttachRequest,
} from "./gen/backchannel/v1/conversation_service_pb.js";
export {
  Channel,
  type Event,
  EventSchema,
  Keep,
} from "./gen/backchannel/v1/event_pb.js";
export {
  type ClientFrame,
  ClientFrameSchema,
  type Receipt,
  ReceiptSchema,
  ReceiptStatus,
  type ServerFrame,
  ServerFrameSchema,
  type Snapshot,
  SnapshotSchema,
} from "./gen/backchannel/v1/frame_pb.js";
export { type Model, ModelSchema, ModelService } from "./gen/backchannel/v1/model_service_pb.js";
export {
  Delivery,
  DisconnectPolicy_Action,
  FinishReason,
  Role,
  Scheduling,
  type Session,
  type SessionConfig,
  SessionConfigSchema,
  SessionSchema,
  SideEffect,
  ToolCallOutcome,
  ToolDisposition,
  type ToolResult,
  ToolSpecSchema,
  type Turn,
  type Usage,
  type UserMessage,
} from "./gen/backchannel/v1/session_pb.js";
