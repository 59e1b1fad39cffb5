/** A clock that goes when it is told to, and a server made of a list of events. */
import { type MessageInitShape, create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import {
  type AttachRequest,
  type ClientFrame,
  Client,
  type Event,
  EventSchema,
  type Receipt,
  ReceiptSchema,
  ReceiptStatus,
  type ServerFrame,
  ServerFrameSchema,
  type Session,
  SessionSchema,
  type Snapshot,
  SnapshotSchema,
  StatusError,
  type Time,
  type Tool,
  WebFrameStore,
  type Wire,
  memoryStorage,
} from "../src/index.js";
import type { Claim, FrameStore, KeyValueStorage } from "../src/index.js";

export const SESSION = "session-0123456789";

export class ManualTime implements Time {
  #nowMs = 0;
  readonly #sleepers = new Set<{ atMs: number; wake: () => void }>();
  /** Every wait that was asked for, in milliseconds. */
  readonly waits: number[] = [];

  now(): number {
    return this.#nowMs;
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    this.waits.push(ms);
    return new Promise((resolve) => {
      if (signal?.aborted) {
        resolve();
        return;
      }
      const sleeper = { atMs: this.#nowMs + ms, wake: () => resolve() };
      this.#sleepers.add(sleeper);
      signal?.addEventListener("abort", () => {
        this.#sleepers.delete(sleeper);
        resolve();
      });
    });
  }

  /** Lets time pass, and all that it sets off happen. */
  async pass(ms: number): Promise<void> {
    await settle();
    const endMs = this.#nowMs + ms;
    for (;;) {
      const next = [...this.#sleepers].sort((one, other) => one.atMs - other.atMs)[0];
      if (!next || next.atMs > endMs) {
        break;
      }
      this.#nowMs = next.atMs;
      this.#sleepers.delete(next);
      next.wake();
      await settle();
    }
    this.#nowMs = endMs;
  }
}

/** Lets everything that can happen without time happen. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 60; turn += 1) {
    await Promise.resolve();
  }
}

export const unavailable = (message = "gone for a moment", retryAfterMs?: number): StatusError =>
  new StatusError(Code.Unavailable, message, {
    reason: "DRAINING",
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
  });

export const refused = (code: Code, reason: string): StatusError =>
  new StatusError(code, reason.toLowerCase(), { reason });

type Kind = NonNullable<MessageInitShape<typeof EventSchema>["kind"]>;

export function event(seq: number, kind: Kind): Event {
  return create(EventSchema, { seq: BigInt(seq), time: timestampFromMs(seq * 1000), kind });
}

/** One stream as the fake server sees it. */
export class Link {
  readonly #frames: ServerFrame[] = [];
  #end: { error: Error | undefined } | undefined;
  #wake: () => void = () => undefined;

  constructor(
    readonly request: AttachRequest,
    readonly signal: AbortSignal,
  ) {}

  put(frame: MessageInitShape<typeof ServerFrameSchema>): void {
    this.#frames.push(create(ServerFrameSchema, frame));
    this.#wake();
  }

  events(...events: Event[]): void {
    this.put({ events });
  }

  cut(error: Error = new TypeError("network error")): void {
    this.#end = { error };
    this.#wake();
  }

  /** Ends with OK, as a proxy may that closes politely. */
  end(): void {
    this.#end = { error: undefined };
    this.#wake();
  }

  async *frames(): AsyncGenerator<ServerFrame> {
    for (;;) {
      yield* this.#frames.splice(0);
      if (this.#end) {
        if (this.#end.error) {
          throw this.#end.error;
        }
        return;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}

export class FakeWire implements Wire {
  readonly links: Link[] = [];
  readonly sent: ClientFrame[] = [];
  /** What the next calls of `send` do; after them everything is accepted. */
  readonly answers: (() => Promise<Receipt>)[] = [];
  /** What the next calls of `getSession` throw. */
  readonly sessionErrors: Error[] = [];
  session: Session = create(SessionSchema, { sessionId: SESSION });

  get link(): Link {
    const link = this.links.at(-1);
    if (!link) {
      throw new Error("nothing is attached");
    }
    return link;
  }

  readonly attach = (request: AttachRequest, signal: AbortSignal): AsyncIterable<ServerFrame> => {
    const link = new Link(request, signal);
    this.links.push(link);
    return link.frames();
  };

  createSession(): Promise<Session> {
    return Promise.resolve(this.session);
  }

  getSession(): Promise<Session> {
    const error = this.sessionErrors.shift();
    return error ? Promise.reject(error) : Promise.resolve(this.session);
  }

  deleteSession(): Promise<void> {
    return Promise.resolve();
  }

  listSessions(): never {
    throw new Error("not in these tests");
  }

  listModels(): never {
    throw new Error("not in these tests");
  }

  send(_sessionId: string, frame: ClientFrame): Promise<Receipt> {
    this.sent.push(frame);
    return (this.answers.shift() ?? (() => accepted(frame)))();
  }
}

export function accepted(frame: { frameId: string }): Promise<Receipt> {
  const { frameId } = frame;
  return Promise.resolve(create(ReceiptSchema, { frameId, status: ReceiptStatus.ACCEPTED, seq: 1n }));
}

export interface Bench {
  readonly time: ManualTime;
  readonly wire: FakeWire;
  readonly storage: KeyValueStorage;
  readonly store: FrameStore;
  readonly client: Client;
  readonly errors: unknown[];
}

/** A client on a fake wire with a manual clock; chance is always one half. */
export function bench(options: { storage?: KeyValueStorage; claim?: Claim } = {}): Bench {
  const time = new ManualTime();
  const wire = new FakeWire();
  const storage = options.storage ?? memoryStorage();
  const store = new WebFrameStore(storage, () => time.now());
  const errors: unknown[] = [];
  const client = new Client({
    wire,
    store,
    time,
    wallMs: () => time.now(),
    backoff: { initialMs: 1000, maxMs: 8000, random: () => 0.5 },
    onToolError: (error) => errors.push(error),
    ...(options.claim ? { claim: options.claim } : {}),
  });
  return { time, wire, storage, store, client, errors };
}

export function snapshot(init: MessageInitShape<typeof SnapshotSchema>): Snapshot {
  return create(SnapshotSchema, init);
}

export function tool(name: string, run: Tool["run"], spec: Partial<Tool["spec"]> = {}): Tool {
  return { spec: { ...spec, name } as Tool["spec"], run };
}
