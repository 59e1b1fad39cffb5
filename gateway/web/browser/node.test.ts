/** Clients in Node, through a real Envoy: ours, and packages that know nothing of us. */
import { Client, ReceiptStatus } from "@backchannel/client";
import { describe, expect, it } from "vitest";
import { site, useBrowser } from "./support.js";

useBrowser();

describe("the client in Node", () => {
  it("asks over gRPC-Web and is refused with a reason", async () => {
    const client = new Client({ baseUrl: site.url });
    await expect(client.create({ model: "no/such" })).rejects.toMatchObject({ reason: "MODEL_NOT_FOUND" });
    const conversation = await client.create({ model: "scripted/echo" });
    conversation.open();
    const answer = conversation.ask("hello there");
    let text = "";
    for await (const piece of answer) {
      text += piece;
    }
    expect(text).toBe("hello there");
    const { receipt } = conversation.interrupt({ turnId: answer.reply.turnId });
    expect((await receipt).status).toBe(ReceiptStatus.STALE);
    conversation.close();
  });

  it.each(["gRPC-Web", "server-sent events"])("resumes over %s when Envoy dies", async (door) => {
    const { EventSource } = await import("eventsource");
    const { eventSourceAttach } = await import("@backchannel/client");
    const client = new Client({
      baseUrl: site.url,
      ...(door === "gRPC-Web" ? {} : { attach: eventSourceAttach(site.url, EventSource) }),
    });
    const conversation = await client.create({
      model: "scripted/count",
      engineOptions: { rate: "40" },
      sampling: { maxTokens: 80 },
    });
    const seqs: bigint[] = [];
    let cuts = 0;
    conversation.subscribe({
      events: (events) => seqs.push(...events.map(({ seq }) => seq)),
      connection: ({ state }) => (cuts += state === "lost" ? 1 : 0),
    });
    conversation.open();
    let text = "";
    for await (const piece of conversation.ask("go")) {
      if (text.length < 20 && text.length + piece.length >= 20) {
        process.kill(site.envoy, "SIGKILL");
      }
      text += piece;
    }
    conversation.close();
    expect(text).toMatch(/^1 2 3 .* 79 80$/);
    expect(cuts).toBeGreaterThan(0);
    expect(seqs).toEqual(seqs.map((_, index) => BigInt(index + 1)));
  });
});

describe("packages that know nothing of us, in Node", () => {
  /** A session that counts to 80 in two seconds, and the way to begin. */
  async function counting(): Promise<{ sessionId: string; begin: () => void }> {
    const conversation = await new Client({ baseUrl: site.url }).create({
      model: "scripted/count",
      engineOptions: { rate: "40" },
      sampling: { maxTokens: 80 },
    });
    return { sessionId: conversation.sessionId, begin: () => void conversation.send("go").receipt.catch(() => undefined) };
  }

  it("eventsource resumes by itself after a cut, by Last-Event-ID", async () => {
    const { EventSource } = await import("eventsource");
    const { sessionId, begin } = await counting();
    const asked: (string | null)[] = [];
    const source = new EventSource(`${site.url}/v1/sessions/${sessionId}/events`, {
      // Only to see what it asks: it is the package's own request.
      fetch: (address, init) => {
        asked.push(new Headers(init.headers).get("last-event-id"));
        return fetch(address, init);
      },
    });
    const seqs: number[] = [];
    let text = "";
    let cuts = 0;
    try {
      await new Promise<void>((resolve, reject) => {
        source.addEventListener("error", (event) => {
          cuts += 1;
          if (source.readyState === EventSource.CLOSED) {
            reject(new Error(`it gave up: ${String(event.message)}`));
          }
        });
        const kinds = ["session_opened", "input_accepted", "turn_started", "output_delta", "turn_finished"];
        for (const kind of kinds) {
          source.addEventListener(kind, ({ data, lastEventId }) => {
            seqs.push(Number(lastEventId));
            const event = JSON.parse(String(data)) as { seq: string; outputDelta?: { text: string } };
            expect(event.seq).toBe(lastEventId);
            const before = text.length;
            text += event.outputDelta?.text ?? "";
            if (before < 20 && text.length >= 20) {
              process.kill(site.envoy, "SIGKILL");
            }
            if (kind === "turn_finished") {
              resolve();
            }
          });
        }
        begin();
      });
    } finally {
      source.close();
    }
    expect(text).toMatch(/^1 2 3 .* 79 80$/);
    expect(cuts).toBeGreaterThan(0);
    expect(seqs).toEqual(seqs.map((_, index) => index + 1));
    expect(asked[0]).toBeNull();
    expect(Number(asked.at(-1))).toBeGreaterThan(10);
  });

  it("connect-web's stream is opened again after the last event, and nothing is missing", async () => {
    const { createClient } = await import("@connectrpc/connect");
    const { createGrpcWebTransport } = await import("@connectrpc/connect-web");
    const { ConversationService } = await import("../client/src/gen/backchannel/v1/conversation_service_pb.js");
    const client = createClient(ConversationService, createGrpcWebTransport({ baseUrl: site.url }));
    const { sessionId, begin } = await counting();
    const seqs: bigint[] = [];
    let text = "";
    let cuts = 0;
    let over = false;
    begin();
    while (!over) {
      try {
        for await (const { events } of client.attach({ sessionId, afterSeq: seqs.at(-1) ?? 0n })) {
          for (const { seq, kind } of events) {
            seqs.push(seq);
            if (kind.case === "outputDelta") {
              const before = text.length;
              text += kind.value.text;
              if (before < 20 && text.length >= 20) {
                process.kill(site.envoy, "SIGKILL");
              }
            }
            over ||= kind.case === "turnFinished";
          }
          if (over) {
            break;
          }
        }
      } catch {
        cuts += 1;
        expect(cuts).toBeLessThan(200);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
    expect(text).toMatch(/^1 2 3 .* 79 80$/);
    expect(cuts).toBeGreaterThan(0);
    expect(seqs).toEqual(seqs.map((_, index) => BigInt(index + 1)));
  });
});
