/** The way to the server: unary calls and one stream of frames down. */
import { create } from "@bufbuild/protobuf";
import { type Client, type Transport, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { callError } from "./errors.js";
import {
  type AttachRequest,
  ConversationService,
  type ListSessionsResponse,
} from "./gen/backchannel/v1/conversation_service_pb.js";
import { type ClientFrame, type Receipt, ReceiptSchema, type ServerFrame } from "./gen/backchannel/v1/frame_pb.js";
import { type Model, ModelService } from "./gen/backchannel/v1/model_service_pb.js";
import { type Session, SessionSchema, type SessionConfig } from "./gen/backchannel/v1/session_pb.js";

/** Opens the stream of a session. It ends when `signal` aborts, and throws when it is cut. */
export type Attach = (request: AttachRequest, signal: AbortSignal) => AsyncIterable<ServerFrame>;

/** A point in another session's past. */
export interface ForkPoint {
  readonly sessionId: string;
  /** The new session knows what had happened up to here, this event included. */
  readonly atSeq: bigint;
}

/** What a conversation needs of a server. Every method throws `StatusError`. */
export interface Wire {
  readonly attach: Attach;
  createSession(config: SessionConfig, fork?: ForkPoint): Promise<Session>;
  getSession(sessionId: string): Promise<Session>;
  deleteSession(sessionId: string): Promise<void>;
  listSessions(pageSize: number, pageToken: string, filter: string): Promise<ListSessionsResponse>;
  listModels(): Promise<Model[]>;
  send(sessionId: string, frame: ClientFrame, signal: AbortSignal): Promise<Receipt>;
}

export interface GrpcWireOptions {
  /** Where the gRPC-Web door is, e.g. `https://example.org`. */
  readonly baseUrl: string;
  /** Another transport in place of gRPC-Web. */
  readonly transport?: Transport | undefined;
  /** Another way down, e.g. `eventSourceAttach(...)`. */
  readonly attach?: Attach | undefined;
  /** How long one unary call may take, in milliseconds. */
  readonly callTimeoutMs: number;
}

/** The wire over gRPC-Web, in its binary form. */
export function grpcWire(options: GrpcWireOptions): Wire {
  const transport =
    options.transport ?? createGrpcWebTransport({ baseUrl: options.baseUrl, useBinaryFormat: true });
  const conversations: Client<typeof ConversationService> = createClient(ConversationService, transport);
  const models = createClient(ModelService, transport);
  const timeoutMs = options.callTimeoutMs;
  // Calls of one session find one replica.
  const about = (sessionId: string) => ({ "x-session-id": sessionId });

  async function* attach(request: AttachRequest, signal: AbortSignal): AsyncGenerator<ServerFrame> {
    try {
      yield* conversations.attach(request, { signal, headers: about(request.sessionId), timeoutMs: 0 });
    } catch (error) {
      throw callError(error);
    }
  }

  return {
    attach: options.attach ?? attach,
    createSession: async (config, fork) => {
      const headers = config.sessionId ? about(config.sessionId) : {};
      const request = fork ? { config, fork } : { config };
      const answer = await said(conversations.createSession(request, { timeoutMs, headers }));
      return answer.session ?? create(SessionSchema);
    },
    getSession: async (sessionId) => {
      const options = { timeoutMs, headers: about(sessionId) };
      const answer = await said(conversations.getSession({ sessionId }, options));
      return answer.session ?? create(SessionSchema, { sessionId });
    },
    deleteSession: async (sessionId) => {
      await said(conversations.deleteSession({ sessionId }, { timeoutMs, headers: about(sessionId) }));
    },
    listSessions: (pageSize, pageToken, filter) =>
      said(conversations.listSessions({ pageSize, pageToken, filter }, { timeoutMs })),
    listModels: async () => (await said(models.listModels({}, { timeoutMs }))).models,
    send: async (sessionId, frame, signal) => {
      const options = { timeoutMs, signal, headers: about(sessionId) };
      const answer = await said(conversations.send({ sessionId, frame }, options));
      return answer.receipt ?? create(ReceiptSchema, { frameId: frame.frameId });
    },
  };
}

async function said<T>(call: Promise<T>): Promise<T> {
  try {
    return await call;
  } catch (error) {
    throw callError(error);
  }
}
