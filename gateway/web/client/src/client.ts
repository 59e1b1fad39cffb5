/** A server: where conversations are made and found. */
import { type MessageInitShape, create } from "@bufbuild/protobuf";
import type { Transport } from "@connectrpc/connect";
import { Backoff, type BackoffOptions, defaultBackoff } from "./backoff.js";
import { Conversation } from "./conversation.js";
import { callError } from "./errors.js";
import type { ListSessionsResponse } from "./gen/backchannel/v1/conversation_service_pb.js";
import type { Model } from "./gen/backchannel/v1/model_service_pb.js";
import { type Session, SessionConfigSchema } from "./gen/backchannel/v1/session_pb.js";
import { newId } from "./ids.js";
import { type FrameStore, WebFrameStore, defaultStorage } from "./storage.js";
import { type Time, systemTime } from "./time.js";
import { type Claim, type Tool, defaultClaim } from "./tools.js";
import { type Attach, type ForkPoint, type Wire, grpcWire } from "./wire.js";

/** Settings of a `Client`. The defaults suit a page that should just keep going. */
export interface ClientOptions {
  /** Where the server is, e.g. `https://example.org`. Absent: where the page came from. */
  readonly baseUrl?: string;
  /** Another transport in place of gRPC-Web. */
  readonly transport?: Transport;
  /** Another way down: `eventSourceAttach(...)` for server-sent events. */
  readonly attach?: Attach;
  /** Another wire altogether, for tests. */
  readonly wire?: Wire;
  /** Where frames wait for their receipts. Absent: `localStorage`. */
  readonly store?: FrameStore;
  /** Who of several pages runs a tool call. Absent: the one that has the Web Lock. */
  readonly claim?: Claim;
  /** How long one unary call may take. Absent: 30 s. */
  readonly callTimeoutMs?: number;
  /** A stream that is silent for longer is dead. Absent: 30 s; the server's heartbeat is 15 s. */
  readonly silenceMs?: number;
  readonly backoff?: Partial<BackoffOptions>;
  readonly time?: Time;
  /** The wall clock in milliseconds, to estimate the server's. */
  readonly wallMs?: () => number;
  /** Told of errors inside tools. Absent: the console. */
  readonly onToolError?: (error: unknown) => void;
}

/** A session as it is to be created; all fields may be left out. */
export type SessionInit = Omit<
  Extract<MessageInitShape<typeof SessionConfigSchema>, { readonly $typeName?: never }>,
  "$typeName" | "tools"
>;

export class Client {
  readonly #options: ClientOptions;
  readonly #wire: Wire;
  readonly #store: FrameStore;

  constructor(options: ClientOptions = {}) {
    this.#options = options;
    this.#wire =
      options.wire ??
      grpcWire({
        baseUrl: options.baseUrl ?? globalThis.location.origin,
        transport: options.transport,
        attach: options.attach,
        callTimeoutMs: options.callTimeoutMs ?? 30_000,
      });
    this.#store = options.store ?? new WebFrameStore(defaultStorage());
  }

  /**
   * Creates a session and makes its conversation; `open` it. A lost answer does no harm: creating is
   * repeated under the same session id until the server has answered or refused.
   *
   * @throws StatusError It was refused, e.g. `MODEL_NOT_FOUND`; or the server could not be reached
   *     `attempts` times.
   */
  async create(
    config: SessionInit = {},
    tools: readonly Tool[] = [],
    attempts = 4,
  ): Promise<Conversation> {
    return this.#create({ ...config, tools: tools.map((tool) => tool.spec) }, tools, attempts);
  }

  /**
   * Creates a session with the past of another, to edit and retry, and makes its conversation; `open`
   * it. The two have nothing in common afterwards. To say a message anew, fork at the event before it.
   *
   * @param config What is to be different; what is absent is as in the other one.
   * @param tools What this side runs of the other one's tools.
   * @throws StatusError As `create`; also `SESSION_NOT_FOUND`, `CURSOR_TRIMMED`.
   */
  fork(
    from: ForkPoint,
    config: SessionInit = {},
    tools: readonly Tool[] = [],
    attempts = 4,
  ): Promise<Conversation> {
    return this.#create(config, tools, attempts, from);
  }

  async #create(
    config: MessageInitShape<typeof SessionConfigSchema>,
    tools: readonly Tool[],
    attempts: number,
    fork?: ForkPoint,
  ): Promise<Conversation> {
    const full = create(SessionConfigSchema, { sessionId: newId(), ...config });
    const backoff = new Backoff(this.#backoff);
    for (let attempt = 1; ; attempt += 1) {
      try {
        const session = await this.#wire.createSession(full, fork);
        return this.#conversation(session.sessionId, tools, 0n);
      } catch (thrown) {
        const error = callError(thrown);
        if (!error.transient || attempt >= attempts) {
          throw error;
        }
        await this.#time.sleep(backoff.next(error.retryAfterMs));
      }
    }
  }

  /**
   * Makes the conversation of a session that exists; `open` it.
   *
   * @param tools What this side runs of the tools that the session was created with.
   * @param afterSeq The last event that was handled. Absent: begins with a snapshot.
   */
  resume(sessionId: string, tools: readonly Tool[] = [], afterSeq?: bigint): Conversation {
    return this.#conversation(sessionId, tools, afterSeq);
  }

  /** What can be talked to, the default first. */
  models(): Promise<Model[]> {
    return this.#wire.listModels();
  }

  session(sessionId: string): Promise<Session> {
    return this.#wire.getSession(sessionId);
  }

  /** The caller's sessions, newest first. */
  sessions(pageSize = 0, pageToken = "", filter = ""): Promise<ListSessionsResponse> {
    return this.#wire.listSessions(pageSize, pageToken, filter);
  }

  /** Ends a session and deletes its log. */
  delete(sessionId: string): Promise<void> {
    return this.#wire.deleteSession(sessionId);
  }

  get #backoff(): BackoffOptions {
    return { ...defaultBackoff, ...this.#options.backoff };
  }

  get #time(): Time {
    return this.#options.time ?? systemTime;
  }

  #conversation(
    sessionId: string,
    tools: readonly Tool[],
    afterSeq: bigint | undefined,
  ): Conversation {
    return new Conversation({
      sessionId,
      tools,
      afterSeq,
      wire: this.#wire,
      store: this.#store,
      claim: this.#options.claim ?? defaultClaim(),
      time: this.#time,
      backoff: this.#backoff,
      silenceMs: this.#options.silenceMs ?? 30_000,
      wallMs: this.#options.wallMs ?? Date.now,
      onToolError: this.#options.onToolError ?? ((error) => console.error("a tool failed:", error)),
    });
  }
}
