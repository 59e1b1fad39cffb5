/** The way down as server-sent events, for places where gRPC-Web does not stream. */
import { type JsonValue, create, fromJsonString } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { StatusError, registry, statusError } from "./errors.js";
import type { AttachRequest } from "./gen/backchannel/v1/conversation_service_pb.js";
import { EventSchema } from "./gen/backchannel/v1/event_pb.js";
import {
  GoAwaySchema,
  HeartbeatSchema,
  type ServerFrame,
  ServerFrameSchema,
  SnapshotSchema,
} from "./gen/backchannel/v1/frame_pb.js";
import { StatusSchema } from "./gen/google/rpc/status_pb.js";
import type { Attach } from "./wire.js";

/** The part of `EventSource` that is used; the npm package `eventsource` has it too. */
export interface EventSourceLike {
  addEventListener(type: string, listener: (event: { data?: unknown }) => void): void;
  close(): void;
}

export type EventSourceConstructor = new (url: string) => EventSourceLike;

const JSON_OPTIONS = { ignoreUnknownFields: true, registry };
// What EventSource delivers has to be asked for by name.
const KINDS = EventSchema.oneofs[0]?.fields.map((field) => field.name) ?? [];
/**
 * Kinds that this build does not know are not delivered, but their seq counts: they become events
 * without a kind. More missing than this at once is no unknown kind any more.
 */
const MOST_UNKNOWN = 1000n;

/**
 * Reads sessions as server-sent events.
 *
 * The EventSource never reconnects by itself: what follows a cut is the conversation's affair, on
 * every door alike.
 *
 * @param baseUrl Where the REST door is.
 * @param constructor `EventSource`, by default the browser's own.
 */
export function eventSourceAttach(
  baseUrl: string,
  constructor: EventSourceConstructor = EventSource,
): Attach {
  return async function* (request, signal) {
    const frames = new Queue();
    const source = new constructor(eventsUrl(baseUrl, request));
    const stop = (): void => frames.end();
    signal.addEventListener("abort", stop);
    listen(source, frames, request.snapshot ? undefined : request.afterSeq);
    try {
      if (!signal.aborted) {
        yield* frames;
      }
    } finally {
      signal.removeEventListener("abort", stop);
      source.close();
    }
  };
}

function eventsUrl(baseUrl: string, request: AttachRequest): string {
  const session = encodeURIComponent(request.sessionId);
  const url = new URL(`v1/sessions/${session}/events`, baseUrl.replace(/\/*$/, "/"));
  url.searchParams.set("after_seq", String(request.afterSeq));
  if (request.snapshot) {
    url.searchParams.set("snapshot", "true");
  }
  return url.href;
}

function listen(source: EventSourceLike, frames: Queue, afterSeq: bigint | undefined): void {
  let lastSeq = afterSeq;
  const on = (type: string, read: (data: string) => ServerFrame): void =>
    source.addEventListener(type, ({ data }) => {
      if (typeof data !== "string") {
        return;
      }
      try {
        frames.put(read(data));
      } catch (error) {
        frames.end(new StatusError(Code.Internal, `unreadable ${type}: ${String(error)}`));
      }
    });
  for (const kind of KINDS) {
    on(kind, (data) => {
      const event = fromJsonString(EventSchema, data, JSON_OPTIONS);
      const events = [event];
      if (lastSeq !== undefined && event.seq - lastSeq <= MOST_UNKNOWN) {
        for (let seq = event.seq - 1n; seq > lastSeq; seq -= 1n) {
          events.unshift(create(EventSchema, { seq }));
        }
      }
      lastSeq = event.seq;
      return create(ServerFrameSchema, { events });
    });
  }
  on("snapshot", (data) => {
    const snapshot = fromJsonString(SnapshotSchema, data, JSON_OPTIONS);
    lastSeq = snapshot.seq;
    return create(ServerFrameSchema, { snapshot });
  });
  on("heartbeat", (data) =>
    create(ServerFrameSchema, { heartbeat: fromJsonString(HeartbeatSchema, data, JSON_OPTIONS) }),
  );
  on("go_away", (data) =>
    create(ServerFrameSchema, { goAway: fromJsonString(GoAwaySchema, data, JSON_OPTIONS) }),
  );
  // The server's own ending and the network's come under one name; only the first has data.
  source.addEventListener("error", ({ data }) => {
    if (typeof data === "string") {
      frames.end(readStatus(data));
    } else {
      frames.end(new StatusError(Code.Unavailable, "the event stream was cut"));
    }
  });
}

function readStatus(data: string): StatusError {
  try {
    const parsed = JSON.parse(data) as { error?: JsonValue };
    const status = JSON.stringify(parsed.error ?? parsed);
    return statusError(fromJsonString(StatusSchema, status, JSON_OPTIONS));
  } catch {
    return new StatusError(Code.Unknown, "the event stream ended with an unreadable error");
  }
}

/** Frames on their way from callbacks to one iterator. */
class Queue implements AsyncIterable<ServerFrame> {
  readonly #frames: ServerFrame[] = [];
  #ended = false;
  #error: StatusError | undefined;
  #wake: (() => void) | undefined;

  put(frame: ServerFrame): void {
    this.#frames.push(frame);
    this.#wake?.();
  }

  end(error?: StatusError): void {
    if (!this.#ended) {
      this.#ended = true;
      this.#error = error;
      this.#wake?.();
    }
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<ServerFrame> {
    for (;;) {
      for (const frame of this.#frames.splice(0)) {
        yield frame;
      }
      if (this.#frames.length > 0) {
        continue;
      }
      if (this.#ended) {
        if (this.#error) {
          throw this.#error;
        }
        return;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}
