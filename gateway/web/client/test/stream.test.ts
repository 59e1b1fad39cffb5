import { create } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { type Connection, type Conversation, type Event, SessionSchema } from "../src/index.js";
import { type Bench, SESSION, bench, event, refused, settle, snapshot, unavailable } from "./support.js";

const delta = (seq: number) =>
  event(seq, { case: "outputDelta", value: { turnId: "t", text: `${seq} ` } });

function listen(conversation: Conversation) {
  const seqs: bigint[] = [];
  const connections: Connection[] = [];
  const snapshots: string[] = [];
  conversation.subscribe({
    events: (events: readonly Event[]) => seqs.push(...events.map(({ seq }) => seq)),
    connection: (connection) => connections.push(connection),
    snapshot: (_snapshot, cause) => snapshots.push(cause),
  });
  return { seqs, connections, snapshots };
}

type Opened = Bench & ReturnType<typeof listen> & { conversation: Conversation };

async function opened(afterSeq: bigint | "snapshot" = 0n): Promise<Opened> {
  const b = bench();
  const from = afterSeq === "snapshot" ? undefined : afterSeq;
  const conversation = b.client.resume(SESSION, [], from);
  const heard = listen(conversation);
  conversation.open();
  await settle();
  return { ...b, ...heard, conversation };
}

describe("a stream", () => {
  it("goes on after the last event it had when it is cut, each event once", async () => {
    const { wire, time, seqs, connections } = await opened();
    wire.link.events(delta(1), delta(2));
    await settle();
    wire.link.cut();
    await time.pass(750);
    expect(wire.links).toHaveLength(2);
    expect(wire.link.request.afterSeq).toBe(2n);
    wire.link.events(delta(2), delta(3));
    await settle();
    expect(seqs).toEqual([1n, 2n, 3n]);
    expect(connections.map(({ state }) => state)).toEqual([
      "connecting",
      "open",
      "lost",
      "connecting",
      "open",
    ]);
  });

  it("takes a clean end without SessionClosed for a cut", async () => {
    const { wire, time, connections } = await opened();
    wire.link.events(delta(1));
    wire.link.end();
    await time.pass(750);
    expect(wire.links).toHaveLength(2);
    expect(connections.some(({ state }) => state === "ended")).toBe(false);
  });

  it("ends after SessionClosed", async () => {
    const { wire, time, connections } = await opened();
    wire.link.events(event(1, { case: "sessionClosed", value: { reason: "DELETED" } }));
    wire.link.cut(unavailable());
    await time.pass(60_000);
    expect(wire.links).toHaveLength(1);
    expect(connections.at(-1)).toEqual({ state: "ended", error: undefined });
  });

  it("ends when the session is gone, and says so", async () => {
    const { wire, time, connections } = await opened();
    wire.link.cut();
    wire.sessionErrors.push(refused(Code.NotFound, "SESSION_NOT_FOUND"));
    await time.pass(60_000);
    const last = connections.at(-1);
    expect(last?.state === "ended" && last.error?.gone).toBe(true);
    expect(wire.links).toHaveLength(1);
  });

  it("waits longer from one failure to the next, at least as long as asked, and anew after success", async () => {
    const { wire, time, connections } = await opened();
    wire.link.events(delta(1));
    await settle();
    wire.sessionErrors.push(unavailable(), unavailable("draining", 5000), unavailable(), unavailable());
    wire.link.cut();
    await time.pass(23_000);
    const waits = connections.flatMap((each) => (each.state === "lost" ? [each.retryInMs] : []));
    expect(waits).toEqual([750, 1500, 8000, 6000, 6000]);
    wire.link.events(delta(2));
    await settle();
    wire.link.cut();
    await settle();
    expect(connections.at(-1)).toMatchObject({ state: "lost", retryInMs: 750 });
  });

  it("is dead after 30 s of silence, and lives by heartbeats", async () => {
    const { wire, time, connections } = await opened();
    wire.link.events(delta(1));
    await time.pass(20_000);
    wire.link.put({ heartbeat: { seq: 1n } });
    await time.pass(20_000);
    expect(wire.links).toHaveLength(1);
    await time.pass(10_750);
    expect(wire.links).toHaveLength(2);
    expect(wire.links[0]?.signal.aborted).toBe(true);
    const lost = connections.find((each) => each.state === "lost");
    expect(lost?.state === "lost" && lost.error.message).toContain("30 s");
  });

  it("is dead too when it never said anything", async () => {
    const { wire, time } = await opened();
    await time.pass(30_750);
    expect(wire.links).toHaveLength(2);
  });

  it("asks for a snapshot when its cursor is no longer kept", async () => {
    const { wire, time, conversation, snapshots, seqs } = await opened(3n);
    const resumed: boolean[] = [];
    conversation.subscribe({
      connection: (connection) => {
        if (connection.state === "open") {
          resumed.push(connection.resumed);
        }
      },
    });
    wire.link.events(delta(4));
    await settle();
    wire.link.cut(refused(Code.OutOfRange, "CURSOR_TRIMMED"));
    await settle();
    expect(wire.link.request.snapshot).toBe(true);
    wire.link.put({ snapshot: snapshot({ seq: 40n }) });
    wire.link.events(delta(41));
    await settle();
    expect(snapshots).toEqual(["cursor lost"]);
    expect(seqs).toEqual([4n, 41n]);
    expect(conversation.seq).toBe(41n);
    wire.link.cut();
    await time.pass(750);
    expect(wire.link.request).toMatchObject({ snapshot: false, afterSeq: 41n });
    wire.link.events(delta(42));
    await settle();
    // The first opening, the one with a snapshot in place of events, the one with nothing missed.
    expect(resumed).toEqual([false, false, true]);
  });

  it("puts the parts of a snapshot together, and begins anew when it is cut between two", async () => {
    const { wire, time, conversation, snapshots } = await opened("snapshot");
    const whole: number[] = [];
    conversation.subscribe({ snapshot: ({ turns }) => whole.push(turns.length) });
    const session = create(SessionSchema, { sessionId: SESSION, lastSeq: 9n });
    const part = (more: boolean) => snapshot({ session, seq: 9n, more, turns: [{ turnId: "t" }] });
    wire.link.put({ snapshot: part(true) });
    await settle();
    wire.link.cut();
    await time.pass(750);
    expect(wire.link.request.snapshot).toBe(true);
    wire.link.put({ snapshot: part(true) });
    wire.link.put({ snapshot: snapshot({ seq: 9n, turns: [{ turnId: "u" }] }) });
    await settle();
    expect(whole).toEqual([2]);
    expect(snapshots).toEqual(["opening"]);
    expect(conversation.session?.sessionId).toBe(SESSION);
  });

  it("takes a jump in the numbers for a broken stream, and keeps what came before it", async () => {
    const { wire, time, seqs } = await opened();
    wire.link.events(delta(1), delta(2), delta(5));
    await time.pass(750);
    expect(seqs).toEqual([1n, 2n]);
    expect(wire.link.request.afterSeq).toBe(2n);
  });

  it("leaves a leaving server between two turns, never within one", async () => {
    const { wire, time } = await opened();
    wire.link.events(event(1, { case: "turnStarted", value: { turnId: "t" } }));
    wire.link.put({ goAway: { reason: "DRAINING" } });
    await time.pass(5000);
    expect(wire.links).toHaveLength(1);
    wire.link.events(event(2, { case: "turnFinished", value: { turnId: "t" } }));
    await time.pass(750);
    expect(wire.links).toHaveLength(2);
    expect(wire.link.request.afterSeq).toBe(2n);
  });

  it("does not rush to a server that says go away at once", async () => {
    const { wire, time } = await opened();
    for (let round = 0; round < 4; round += 1) {
      wire.link.put({ goAway: {} });
      await time.pass(750 * 2 ** round);
    }
    await settle();
    expect(wire.links).toHaveLength(5);
  });

  it("tries again at once when hurried", async () => {
    const { wire, time, conversation } = await opened();
    wire.link.cut();
    await time.pass(1);
    conversation.hurry();
    await settle();
    expect(wire.links).toHaveLength(2);
  });

  it("does nothing any more once closed", async () => {
    const { wire, time, conversation, connections } = await opened();
    conversation.close();
    await time.pass(60_000);
    expect(wire.links).toHaveLength(1);
    expect(wire.links[0]?.signal.aborted).toBe(true);
    expect(connections.at(-1)?.state).toBe("closed");
  });

  it("reads the server's clock from what comes live", async () => {
    const { wire, time, conversation } = await opened();
    await time.pass(500);
    wire.link.events(delta(1));
    await settle();
    expect(conversation.serverNow()).toBe(1000);
  });
});
