import { create } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { AttachRequestSchema, type EventSourceLike, type ServerFrame, eventSourceAttach } from "../src/index.js";
import { settle } from "./support.js";

class FakeSource implements EventSourceLike {
  static last: FakeSource;
  readonly #listeners = new Map<string, (event: { data?: unknown }) => void>();
  closed = false;

  constructor(readonly url: string) {
    FakeSource.last = this;
  }

  addEventListener(type: string, listener: (event: { data?: unknown }) => void): void {
    this.#listeners.set(type, listener);
  }

  close(): void {
    this.closed = true;
  }

  emit(type: string, data?: string): void {
    this.#listeners.get(type)?.(data === undefined ? {} : { data });
  }
}

function attach(init: { afterSeq?: bigint; snapshot?: boolean } = {}) {
  const controller = new AbortController();
  const request = create(AttachRequestSchema, { sessionId: "a/b", ...init });
  const frames: ServerFrame[] = [];
  const over = (async () => {
    for await (const frame of eventSourceAttach("https://x.test", FakeSource)(request, controller.signal)) {
      frames.push(frame);
    }
  })();
  over.catch(() => undefined);
  return { frames, over, controller, source: () => FakeSource.last };
}

describe("server-sent events", () => {
  it("are asked for by cursor", () => {
    expect(attach({ afterSeq: 7n, snapshot: true }).source().url).toBe(
      "https://x.test/v1/sessions/a%2Fb/events?after_seq=7&snapshot=true",
    );
  });

  it("become the same frames as on every other door", async () => {
    const { frames, source } = attach({ afterSeq: 2n });
    source().emit("output_delta", '{"seq":"3","outputDelta":{"turnId":"t","text":"hé","madeUp":1}}');
    source().emit("heartbeat", '{"seq":"3","time":"2026-01-01T00:00:00Z"}');
    source().emit("go_away", '{"timeLeft":"5s","reason":"DRAINING"}');
    await settle();
    expect(frames).toMatchObject([
      { events: [{ seq: 3n, kind: { case: "outputDelta", value: { text: "hé" } } }] },
      { heartbeat: { seq: 3n } },
      { goAway: { reason: "DRAINING" } },
    ]);
  });

  it("count kinds that this build does not know", async () => {
    const { frames, source } = attach({ snapshot: true });
    source().emit("snapshot", '{"seq":"4"}');
    source().emit("turn_started", '{"seq":"7","turnStarted":{"turnId":"t"}}');
    await settle();
    expect(frames[1]?.events.map(({ seq, kind }) => [seq, kind.case])).toEqual([
      [5n, undefined],
      [6n, undefined],
      [7n, "turnStarted"],
    ]);
  });

  it("that end with an error say which, details and all", async () => {
    const { over, source } = attach();
    source().emit(
      "error",
      JSON.stringify({
        code: 14,
        message: "draining",
        details: [
          { "@type": "type.googleapis.com/google.rpc.ErrorInfo", reason: "DRAINING", domain: "backchannel" },
          { "@type": "type.googleapis.com/google.rpc.RetryInfo", retryDelay: "1.5s" },
        ],
      }),
    );
    await expect(over).rejects.toMatchObject({
      code: Code.Unavailable,
      reason: "DRAINING",
      retryAfterMs: 1500,
      transient: true,
    });
    expect(source().closed).toBe(true);
  });

  it("that the network cuts are cut, and EventSource does not come back by itself", async () => {
    const { over, source } = attach();
    source().emit("error");
    await expect(over).rejects.toMatchObject({ code: Code.Unavailable, transient: true });
    expect(source().closed).toBe(true);
  });

  it("end when they are no longer wanted", async () => {
    const { over, source, controller } = attach();
    await settle();
    controller.abort();
    await over;
    expect(source().closed).toBe(true);
  });
});
