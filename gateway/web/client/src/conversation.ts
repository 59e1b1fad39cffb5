/** A session that one talks to: say something, hear the answer, stop it. */
import { type MessageInitShape, create } from "@bufbuild/protobuf";
import { Answer } from "./answer.js";
import { Backoff, type BackoffOptions } from "./backoff.js";
import { ClosedError, type StatusError } from "./errors.js";
import type { Event, Keep } from "./gen/backchannel/v1/event_pb.js";
import {
  type ClientFrame,
  ClientFrameSchema,
  type Receipt,
  type ServerFrame,
  type Snapshot,
} from "./gen/backchannel/v1/frame_pb.js";
import type {
  Delivery,
  SamplingSchema,
  Session,
  ToolDisposition,
} from "./gen/backchannel/v1/session_pb.js";
import { newId } from "./ids.js";
import { Outbox } from "./outbox.js";
import type { FrameStore } from "./storage.js";
import { type Connection, type SnapshotCause, Stream } from "./stream.js";
import type { Time } from "./time.js";
import { type Claim, type Tool, ToolRunner } from "./tools.js";
import type { Wire } from "./wire.js";

/** What a conversation tells. All are optional, and all are called in the order things came. */
export interface Listener {
  /** Events, each once and in order, across lost connections. */
  events?(events: readonly Event[]): void;
  /** Replaces everything that was known; events go on from its seq. */
  snapshot?(snapshot: Snapshot, cause: SnapshotCause): void;
  connection?(connection: Connection): void;
  /** The frames that have no receipt yet have changed: see `pending`. */
  pending?(): void;
  /** A frame of an earlier page was refused. */
  refused?(frame: ClientFrame, error: StatusError): void;
  /** Each frame as it came, for those who look under the bonnet. */
  frame?(frame: ServerFrame): void;
  /** Each receipt. */
  receipt?(receipt: Receipt): void;
}

/** How a message is to be taken. */
export interface SendOptions {
  /** How it meets a running turn. Absent: after it. */
  readonly delivery?: Delivery;
  /** The turn that the sender believes to be running, or the last. */
  readonly expectedTurnId?: string;
  /** With DELIVERY_INTERRUPT: the last event the user has seen. */
  readonly displayedSeq?: bigint;
  /** With DELIVERY_INTERRUPT: characters (code points) of the turn's text that the user has seen. */
  readonly displayedOffset?: number;
  readonly sampling?: MessageInitShape<typeof SamplingSchema>;
}

/** What to stop, and what the user has seen of it. */
export interface InterruptOptions {
  /** The turn to stop. Either this or `targetFrameId`. */
  readonly turnId?: string;
  /** The message to take back, or whose answer to stop. */
  readonly targetFrameId?: string;
  readonly displayedSeq?: bigint;
  /** Characters (code points) of the turn's text shown so far; wins over `displayedSeq`. */
  readonly displayedOffset?: number;
  /** What stays in the context. Absent: what the user has seen. */
  readonly keep?: Keep;
  /** What becomes of open tool calls. Absent: as their specs say. */
  readonly tools?: ToolDisposition;
}

/** A frame on its way. */
export interface Sent {
  readonly frameId: string;
  /** Rejects with `StatusError` when the frame was refused. */
  readonly receipt: Promise<Receipt>;
}

export interface ConversationOptions {
  readonly sessionId: string;
  readonly wire: Wire;
  readonly tools: readonly Tool[];
  readonly store: FrameStore;
  readonly claim: Claim;
  readonly time: Time;
  readonly backoff: BackoffOptions;
  readonly silenceMs: number;
  /** Where to begin; absent: with a snapshot. */
  readonly afterSeq: bigint | undefined;
  readonly onToolError: (error: unknown) => void;
  readonly wallMs: () => number;
}

/** Made by `Client.create` and `Client.resume`. Call `open`, and `close` when done with it. */
export class Conversation {
  readonly sessionId: string;
  readonly #listeners = new Set<Listener>();
  readonly #outbox: Outbox;
  readonly #runner: ToolRunner;
  readonly #stream: Stream;
  readonly #wallMs: () => number;
  #connection: Connection = { state: "connecting" };
  #opened = false;

  constructor(options: ConversationOptions) {
    const { sessionId, wire, store } = options;
    this.sessionId = sessionId;
    this.#wallMs = options.wallMs;
    this.#outbox = new Outbox({
      sessionId,
      store,
      time: options.time,
      backoff: () => new Backoff(options.backoff),
      call: async (frame, signal) => {
        const receipt = await wire.send(sessionId, frame, signal);
        this.#tell((listener) => listener.receipt?.(receipt));
        return receipt;
      },
      onChange: () => this.#tell((listener) => listener.pending?.()),
      onRefused: (frame, error) => this.#tell((listener) => listener.refused?.(frame, error)),
    });
    this.#runner = new ToolRunner({
      sessionId,
      store,
      tools: options.tools,
      outbox: this.#outbox,
      claim: options.claim,
      isOpen: async (callId) => {
        const { openToolCalls } = await wire.getSession(sessionId);
        return openToolCalls.some((call) => call.callId === callId);
      },
      onError: options.onToolError,
    });
    this.#stream = new Stream({
      sessionId,
      wire,
      time: options.time,
      backoff: new Backoff(options.backoff),
      silenceMs: options.silenceMs,
      afterSeq: options.afterSeq,
      wallMs: options.wallMs,
      onFrame: (frame) => this.#tell((listener) => listener.frame?.(frame)),
      onEvents: (events) => this.#tell((listener) => listener.events?.(events)),
      onSnapshot: (snapshot, cause) => this.#tell((listener) => listener.snapshot?.(snapshot, cause)),
      onConnection: (connection) => this.#changed(connection),
      onCallReady: (call) => this.#runner.ready(call),
      onCallOver: (callId) => this.#runner.stop(callId),
    });
  }

  /** Connects, and sends what an earlier page has left unsent. */
  open(): void {
    if (this.#opened) {
      throw new ClosedError("a conversation is opened once; resume the session for another");
    }
    this.#opened = true;
    this.#outbox.restore();
    void this.#stream.run();
  }

  /** Leaves. The session goes on, and so does a running turn, as its DisconnectPolicy says. */
  close(): void {
    this.#stream.close();
    this.#runner.close();
    this.#outbox.close();
  }

  /** Listens, until the returned function is called. */
  subscribe(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** The seq of the last event received: the cursor to keep for resuming. */
  get seq(): bigint {
    return this.#stream.seq;
  }

  /** The session as last heard of, with the configuration in force. */
  get session(): Session | undefined {
    return this.#stream.session;
  }

  get connection(): Connection {
    return this.#connection;
  }

  /** The frames that have no receipt yet, oldest first. */
  get pending(): readonly ClientFrame[] {
    return this.#outbox.pending;
  }

  /** The time by the server's clock, roughly, in milliseconds: what deadlines are counted in. */
  serverNow(): number {
    return this.#wallMs() + this.#stream.serverAheadMs;
  }

  /** Says something: exactly once, over whatever connection, also if this page dies now. */
  send(text: string, options: SendOptions = {}): Sent {
    const { sampling, ...rest } = options;
    return this.#post({
      case: "message",
      value: {
        parts: [{ content: { case: "text", value: text } }],
        ...rest,
        ...(sampling ? { sampling } : {}),
      },
    });
  }

  /**
   * Says something and iterates the answer: `for await (const piece of conversation.ask("..."))`.
   * It outlives lost connections, and ends when the turn has.
   */
  ask(text: string, options: SendOptions = {}): Answer {
    return new Answer(this, () => this.send(text, options));
  }

  /** Stops a turn, or takes a queued message back. RECEIPT_STATUS_STALE says it was too late. */
  interrupt(options: InterruptOptions): Sent {
    return this.#post({ case: "interrupt", value: { ...options } });
  }

  /** Says what the user has seen. Only the newest counts; one may get lost. */
  ack(displayedSeq: bigint, displayedOffset?: number): void {
    const value = displayedOffset === undefined ? { displayedSeq } : { displayedSeq, displayedOffset };
    this.#outbox.post("ack", create(ClientFrameSchema, { frame: { case: "ack", value } }));
  }

  /** Ends a tool call from this side: the model is told this message. */
  cancelCall(callId: string, message: string): Promise<void> {
    return this.#runner.fail(callId, message, "CANCELLED");
  }

  /** There is a network again, or somebody looks again: waits no longer for the next attempt. */
  hurry(): void {
    this.#stream.hurry();
    this.#outbox.hurry();
  }

  /** Gives the connection up if nothing has come for so long, e.g. after a sleep; it is resumed. */
  check(mostSilenceMs: number): void {
    this.#stream.check(mostSilenceMs);
  }

  /** Gives the connection up; it is resumed. */
  reconnect(why: string): void {
    this.#stream.cut(why);
    this.#stream.hurry();
  }

  #post(frame: NonNullable<MessageInitShape<typeof ClientFrameSchema>["frame"]>): Sent {
    const frameId = newId();
    const receipt = this.#outbox.send(create(ClientFrameSchema, { frameId, frame }));
    // Whoever cares awaits it; nobody must.
    receipt.catch(() => undefined);
    return { frameId, receipt };
  }

  #changed(connection: Connection): void {
    this.#connection = connection;
    if (connection.state === "open") {
      this.#outbox.hurry();
    } else if (connection.state === "ended") {
      this.#runner.close();
      this.#outbox.close();
    }
    this.#tell((listener) => listener.connection?.(connection));
  }

  #tell(say: (listener: Listener) => void): void {
    for (const listener of [...this.#listeners]) {
      try {
        say(listener);
      } catch (error) {
        // A listener's fault is not the stream's.
        reportError(error);
      }
    }
  }
}
