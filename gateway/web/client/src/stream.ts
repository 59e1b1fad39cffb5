/**
 * The receiving side: a cursor, and a stream that comes back.
 *
 * The one position kept here is the seq of the last event received. A stream that ends without the
 * session having ended was cut; it is resumed after that position, so every event comes in once and
 * in order.
 */
import { create } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import type { Backoff } from "./backoff.js";
import { StatusError, callError } from "./errors.js";
import { AttachRequestSchema } from "./gen/backchannel/v1/conversation_service_pb.js";
import type { Event } from "./gen/backchannel/v1/event_pb.js";
import { type ServerFrame, type Snapshot, SnapshotSchema } from "./gen/backchannel/v1/frame_pb.js";
import type { Session, ToolCall } from "./gen/backchannel/v1/session_pb.js";
import type { ToolCallReady } from "./gen/backchannel/v1/event_pb.js";
import { Doze, type Time } from "./time.js";
import type { Wire } from "./wire.js";

/** What a program that shows its connection is told. A cut is never an ending. */
export type Connection =
  | { readonly state: "connecting" }
  /**
   * The stream is open and begins after this seq. `resumed`: it goes on where it was cut, so nothing
   * was missed. Else it begins with a snapshot.
   */
  | { readonly state: "open"; readonly afterSeq: bigint; readonly resumed: boolean }
  /** It was cut, or could not be opened; it is tried again `retryInMs` from now. */
  | { readonly state: "lost"; readonly error: StatusError; readonly retryInMs: number }
  /** It is over: the session has ended, is gone, or refuses us, and trying again is no use. */
  | { readonly state: "ended"; readonly error: StatusError | undefined }
  /** `close` was called. */
  | { readonly state: "closed" };

/** Why a snapshot replaces what was known. */
export type SnapshotCause =
  /** It was asked for. */
  | "opening"
  /** Events after the cursor are no longer kept, or the log is shorter than it was. */
  | "cursor lost";

export interface StreamOptions {
  readonly sessionId: string;
  readonly wire: Wire;
  readonly time: Time;
  readonly backoff: Backoff;
  /** How long the server may say nothing, in milliseconds. It sends a heartbeat every 15 s. */
  readonly silenceMs: number;
  /** Where to begin; absent: with a snapshot. */
  readonly afterSeq: bigint | undefined;
  /** The wall clock, to estimate the server's. */
  readonly wallMs: () => number;
  readonly onFrame: (frame: ServerFrame) => void;
  readonly onEvents: (events: readonly Event[]) => void;
  readonly onSnapshot: (snapshot: Snapshot, cause: SnapshotCause) => void;
  readonly onConnection: (connection: Connection) => void;
  readonly onCallReady: (call: ToolCall | ToolCallReady) => void;
  readonly onCallOver: (callId: string) => void;
}

/** Keeps the stream of one session open until the session ends. */
export class Stream {
  /** The seq of the last event received. */
  seq: bigint;
  /** The session as last heard of; undefined before that. */
  session: Session | undefined;
  /** How far the server's clock is ahead of this one, in milliseconds, roughly. */
  serverAheadMs = 0;
  readonly #end = new AbortController();
  readonly #doze: Doze;
  #link: AbortController | undefined;
  // Calls announced up to here are open only if the session says so.
  #settledSeq = 0n;
  #snapshotCause: SnapshotCause | undefined;
  #parts: Snapshot[] = [];
  #heardMs = 0;
  #resumed = false;
  #turnRuns = false;
  #serverLeaves = false;
  #sessionEnded = false;

  constructor(private readonly options: StreamOptions) {
    this.seq = options.afterSeq ?? 0n;
    this.#snapshotCause = options.afterSeq === undefined ? "opening" : undefined;
    this.#doze = new Doze(options.time, this.#end.signal);
  }

  /** Keeps the stream open. Returns when it is over for good. */
  async run(): Promise<void> {
    const { backoff, onConnection } = this.options;
    while (!this.#end.signal.aborted) {
      onConnection({ state: "connecting" });
      const error = await this.#openOnce().catch(callError);
      if (this.#end.signal.aborted) {
        break;
      }
      if (this.#sessionEnded) {
        onConnection({ state: "ended", error: undefined });
        return;
      }
      if (error.cursorLost && this.#snapshotCause === undefined) {
        this.#snapshotCause = "cursor lost";
        continue;
      }
      if (!error.transient) {
        onConnection({ state: "ended", error });
        return;
      }
      const retryInMs = backoff.next(error.retryAfterMs);
      onConnection({ state: "lost", error, retryInMs });
      await this.#doze.sleep(retryInMs);
    }
    onConnection({ state: "closed" });
  }

  /** Tries again at once, if a try is being waited for. */
  hurry(): void {
    this.#doze.wake();
  }

  /** Cuts the stream if nothing has come for a while, e.g. after the machine was asleep. */
  check(mostMs: number): void {
    if (this.#link && this.options.time.now() - this.#heardMs > mostMs) {
      this.cut("nothing has come for a while");
    }
  }

  /** Gives the current stream up; it is resumed. */
  cut(why: string): void {
    this.#link?.abort(new StatusError(Code.Unavailable, why));
  }

  close(): void {
    this.#end.abort();
    this.#link?.abort();
  }

  /** One stream, from its opening to its end; returns what ended it. */
  async #openOnce(): Promise<StatusError> {
    const { sessionId, wire, time } = this.options;
    const link = new AbortController();
    this.#link = link;
    this.#heardMs = time.now();
    this.#serverLeaves = false;
    this.#parts = [];
    // From the very beginning: a connection that accepts and then says nothing is dead too.
    const watch = this.#watch(link);
    const cut = new Promise<never>((_resolve, reject) => {
      link.signal.addEventListener("abort", () => reject(callError(link.signal.reason)));
    });
    cut.catch(() => undefined);
    try {
      if (this.#snapshotCause === undefined) {
        // What is announced in the backlog may be over by now: the session tells what is not.
        const session = await Promise.race([wire.getSession(sessionId), cut]);
        this.#adopt(session);
        this.#settledSeq = session.lastSeq;
      }
      const request = create(AttachRequestSchema, {
        sessionId,
        afterSeq: this.seq,
        snapshot: this.#snapshotCause !== undefined,
      });
      const frames = wire.attach(request, link.signal)[Symbol.asyncIterator]();
      let heard = false;
      for (;;) {
        // A transport need not notice the abort at once.
        const { value: frame, done } = await Promise.race([frames.next(), cut]);
        if (done) {
          return new StatusError(Code.Unavailable, "the server ended the stream");
        }
        this.#heardMs = time.now();
        if (!heard && !frame.goAway) {
          heard = true;
          this.options.backoff.reset();
          const resumed = this.#resumed && this.#snapshotCause === undefined;
          this.options.onConnection({ state: "open", afterSeq: this.seq, resumed });
          this.#resumed = true;
        }
        this.#take(frame);
        if (this.#serverLeaves && !this.#turnRuns) {
          return new StatusError(Code.Unavailable, "the server is leaving");
        }
      }
    } finally {
      link.abort();
      this.#link = undefined;
      await watch;
    }
  }

  async #watch(link: AbortController): Promise<void> {
    const { time, silenceMs } = this.options;
    while (!link.signal.aborted) {
      const leftMs = this.#heardMs + silenceMs - time.now();
      if (leftMs <= 0) {
        const seconds = Math.round(silenceMs / 1000);
        link.abort(new StatusError(Code.Unavailable, `the server has said nothing for ${seconds} s`));
        return;
      }
      await time.sleep(leftMs, link.signal);
    }
  }

  #take(frame: ServerFrame): void {
    this.options.onFrame(frame);
    if (frame.events.length > 0) {
      this.#takeEvents(frame.events);
    }
    if (frame.snapshot) {
      this.#takeSnapshot(frame.snapshot);
    }
    if (frame.heartbeat?.time) {
      this.#sawServerTime(timestampMs(frame.heartbeat.time));
    }
    if (frame.goAway) {
      this.#serverLeaves = true;
    }
  }

  #takeEvents(events: readonly Event[]): void {
    const fresh: Event[] = [];
    for (const event of events) {
      if (event.seq <= this.seq) {
        continue;
      }
      if (event.seq !== this.seq + 1n) {
        // What came in order is still good.
        this.#deliver(fresh);
        const said = `the stream jumped from event ${this.seq} to ${event.seq}`;
        throw new StatusError(Code.Unavailable, said);
      }
      this.seq = event.seq;
      fresh.push(event);
    }
    this.#deliver(fresh);
  }

  #deliver(events: readonly Event[]): void {
    const last = events.at(-1);
    if (!last) {
      return;
    }
    if (last.time && last.seq > this.#settledSeq) {
      this.#sawServerTime(timestampMs(last.time));
    }
    for (const event of events) {
      this.#note(event);
    }
    this.options.onEvents(events);
    // A tool may answer at once: those who show the call have heard of it by now.
    for (const { seq, kind } of events) {
      if (kind.case === "toolCallReady" && seq > this.#settledSeq) {
        this.options.onCallReady(kind.value);
      } else if (kind.case === "toolCallCancelled" || kind.case === "toolCallFinished") {
        this.options.onCallOver(kind.value.callId);
      }
    }
  }

  #note({ kind }: Event): void {
    switch (kind.case) {
      case "turnStarted":
        this.#turnRuns = true;
        break;
      case "turnFinished":
        this.#turnRuns = false;
        break;
      case "sessionOpened":
        this.session = kind.value.session;
        break;
      case "sessionClosed":
        this.#sessionEnded = true;
        break;
    }
  }

  #takeSnapshot(part: Snapshot): void {
    this.#parts.push(part);
    if (part.more) {
      return;
    }
    const parts = this.#parts;
    this.#parts = [];
    const session = parts.findLast((each) => each.session !== undefined)?.session;
    const whole = create(SnapshotSchema, {
      turns: parts.flatMap((each) => each.turns),
      queued: parts.flatMap((each) => each.queued),
      seq: part.seq,
      ...(session ? { session } : {}),
    });
    const cause = this.#snapshotCause ?? "cursor lost";
    this.#snapshotCause = undefined;
    this.seq = whole.seq;
    this.#settledSeq = whole.seq;
    this.options.onSnapshot(whole, cause);
    if (session) {
      this.#adopt(session);
    }
  }

  #adopt(session: Session): void {
    this.session = session;
    this.#turnRuns = session.runningTurnId !== "";
    for (const call of session.openToolCalls) {
      this.options.onCallReady(call);
    }
  }

  #sawServerTime(serverMs: number): void {
    // The journey only makes the server look late: the largest difference is the truest.
    const aheadMs = serverMs - this.options.wallMs();
    const known = this.#clockKnown;
    this.#clockKnown = true;
    this.serverAheadMs = known ? Math.max(this.serverAheadMs, aheadMs) : aheadMs;
  }
  #clockKnown = false;
}
