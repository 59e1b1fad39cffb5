import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, it } from "vitest";
import {
  type Claim,
  SessionSchema,
  Scheduling,
  SideEffect,
  type Tool,
  ToolFailedError,
  memoryStorage,
} from "../src/index.js";
import { type FakeWire, SESSION, bench, event, settle, tool } from "./support.js";

const ready = (seq: number, callId = "c", name = "add") =>
  event(seq, { case: "toolCallReady", value: { callId, name, argumentsJson: '{"a":2,"b":3}' } });
const finished = (seq: number, callId = "c") =>
  event(seq, { case: "toolCallFinished", value: { callId } });

const add = tool("add", ({ a, b }) => ({ sum: Number(a) + Number(b) }));

function results(wire: FakeWire) {
  return wire.sent.flatMap(({ frame }) => (frame.case === "toolResult" ? [frame.value] : []));
}

async function opened(tools: Tool[], options: Parameters<typeof bench>[0] = {}) {
  const b = bench(options);
  const conversation = b.client.resume(SESSION, tools, 0n);
  conversation.open();
  await settle();
  return { ...b, conversation };
}

/** Locks of all tabs of an origin, as the Web Locks API gives them. */
function sharedClaim(): Claim {
  const tails = new Map<string, Promise<void>>();
  return async (name, signal, work) => {
    const before = tails.get(name);
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => (release = resolve));
    tails.set(name, (before ?? Promise.resolve()).then(() => held));
    await before;
    if (!signal.aborted) {
      await work(before !== undefined);
    }
    release();
  };
}

describe("a tool call", () => {
  it("is run with its arguments and answered once", async () => {
    const { wire } = await opened([add]);
    wire.link.events(ready(1), ready(2));
    await settle();
    expect(results(wire)).toMatchObject([{ callId: "c", outcome: { case: "json", value: '{"sum":5}' } }]);
  });

  it("sends its result in parts, text at once and the items of a list when the next has come", async () => {
    let more = (): void => undefined;
    const text = tool("add", async function* () {
      yield "once";
      await new Promise<void>((resolve) => (more = resolve));
      yield " more";
    });
    const { wire } = await opened([{ ...text, scheduling: Scheduling.INTERRUPT }]);
    wire.link.events(ready(1));
    await settle();
    const part = (value: string) => ({ parts: [{ content: { case: "text", value } }] });
    expect(results(wire)).toMatchObject([{ partial: true, outcome: { value: part("once") } }]);
    more();
    await settle();
    expect(results(wire)).toMatchObject([
      { partial: true },
      { partial: true, outcome: { value: part(" more") } },
      { partial: false, outcome: { case: "content", value: { parts: [] } }, scheduling: Scheduling.INTERRUPT },
    ]);
    const list = tool("add", async function* () {
      yield* [1, 2, "three"];
    });
    const second = await opened([list]);
    second.wire.link.events(ready(1));
    await settle();
    expect(results(second.wire)).toMatchObject([
      { partial: true, outcome: { case: "json", value: "1" } },
      { partial: true, outcome: { case: "json", value: "2" } },
      { partial: false, outcome: { case: "content", value: part("three") } },
    ]);
  });

  it("of a tool that is not ours is left alone", async () => {
    const { wire } = await opened([add]);
    wire.link.events(ready(1, "c", "somebody-elses"));
    await settle();
    expect(results(wire)).toEqual([]);
  });

  it("tells the model what the tool says, and no more than that it broke otherwise", async () => {
    const says = tool("add", () => {
      throw new ToolFailedError("no such thing", "NOPE");
    });
    const first = await opened([says]);
    first.wire.link.events(ready(1));
    const breaks = tool("add", () => {
      throw new Error("a secret");
    });
    const second = await opened([breaks]);
    second.wire.link.events(ready(1));
    await settle();
    expect(results(first.wire)[0]?.outcome.value).toMatchObject({ message: "no such thing", code: "NOPE" });
    expect(results(second.wire)[0]?.outcome.value).toMatchObject({ message: "add failed", code: "TOOL_BROKEN" });
    expect(second.errors).toHaveLength(1);
  });

  it("stops when nobody waits for it any more, and then has no result", async () => {
    let aborted = false;
    const slow = tool("add", (_args, { signal }) =>
      new Promise((resolve) => {
        signal.addEventListener("abort", () => {
          aborted = true;
          resolve(null);
        });
      }),
    );
    const { wire } = await opened([slow]);
    wire.link.events(ready(1));
    await settle();
    wire.link.events(event(2, { case: "toolCallCancelled", value: { callId: "c" } }), finished(3));
    await settle();
    expect(aborted).toBe(true);
    expect(results(wire)).toEqual([]);
  });

  it("cancelled by the user ends with an error that says so, once", async () => {
    const slow = tool("add", (_args, { signal }) =>
      new Promise((resolve) => signal.addEventListener("abort", resolve)),
    );
    const { wire, conversation } = await opened([slow]);
    wire.link.events(ready(1));
    await settle();
    await conversation.cancelCall("c", "the user cancelled it");
    await settle();
    expect(results(wire)).toMatchObject([
      { outcome: { case: "error", value: { message: "the user cancelled it", code: "CANCELLED" } } },
    ]);
  });

  it("sends progress", async () => {
    const { wire } = await opened([
      tool("add", (_args, { progress }) => {
        progress(0.5, "half");
        return null;
      }),
    ]);
    wire.link.events(ready(1));
    await settle();
    expect(wire.sent[0]).toMatchObject({
      frameId: "",
      frame: { case: "toolProgress", value: { callId: "c", fraction: 0.5, note: "half" } },
    });
  });

  it("announced in the backlog is run only if the session says that it is open", async () => {
    const { wire, client } = bench();
    wire.session = create(SessionSchema, {
      sessionId: SESSION,
      lastSeq: 4n,
      openToolCalls: [{ callId: "still", name: "add", argumentsJson: "{}", deadline: timestampFromMs(1) }],
    });
    client.resume(SESSION, [add], 0n).open();
    await settle();
    wire.link.events(ready(1, "over"), finished(2, "over"), ready(3, "still"), event(4, { case: undefined }));
    await settle();
    expect(results(wire).map(({ callId }) => callId)).toEqual(["still"]);
  });

  it("whose result is still on its way is not run again by the next page", async () => {
    const storage = memoryStorage();
    const first = await opened([add], { storage });
    first.wire.answers.push(() => new Promise(() => undefined));
    first.wire.link.events(ready(1));
    await settle();
    let runs = 0;
    const counted = tool("add", () => (runs += 1));
    const second = await opened([counted], { storage });
    second.wire.link.events(ready(1));
    await settle();
    expect(runs).toBe(0);
    expect(results(second.wire)).toMatchObject([{ outcome: { value: '{"sum":5}' } }]);
  });
});

describe("two pages", () => {
  it("run a call once, also when the second hears late that it is over", async () => {
    const claim = sharedClaim();
    let runs = 0;
    const counted = tool("add", () => (runs += 1));
    const one = await opened([counted], { claim });
    const other = await opened([counted], { claim });
    one.wire.link.events(ready(1));
    other.wire.link.events(ready(1));
    await settle();
    expect(runs).toBe(1);
    expect(results(other.wire)).toEqual([]);
  });

  it("take a call over from one that died", async () => {
    const claim = sharedClaim();
    const never = tool("add", (_args, { signal }) =>
      new Promise((resolve) => signal.addEventListener("abort", resolve)),
    );
    const one = await opened([never], { claim });
    const other = await opened([add], { claim });
    other.wire.session = create(SessionSchema, {
      openToolCalls: [{ callId: "c", name: "add", argumentsJson: '{"a":1,"b":1}' }],
    });
    one.wire.link.events(ready(1));
    other.wire.link.events(ready(1));
    await settle();
    expect(results(other.wire)).toEqual([]);
    one.conversation.close();
    await settle();
    expect(results(other.wire)).toHaveLength(1);
  });

  it("never run a tool twice that cannot be taken back", async () => {
    const claim = sharedClaim();
    const storage = memoryStorage();
    const spec = { sideEffect: SideEffect.IRREVERSIBLE };
    const never = tool("add", (_a, { signal }) => new Promise((r) => signal.addEventListener("abort", r)), spec);
    let runs = 0;
    const counted = tool("add", () => (runs += 1), spec);
    const one = await opened([never], { claim, storage });
    const other = await opened([counted], { claim, storage });
    other.wire.session = create(SessionSchema, {
      openToolCalls: [{ callId: "c", name: "add", argumentsJson: "{}" }],
    });
    one.wire.link.events(ready(1));
    other.wire.link.events(ready(1));
    await settle();
    one.conversation.close();
    await settle();
    expect(runs).toBe(0);
    expect(results(other.wire)).toMatchObject([{ outcome: { case: "error", value: { code: "RUNNER_LOST" } } }]);
  });
});
