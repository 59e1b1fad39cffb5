import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, it } from "vitest";
import { Channel, FinishReason, Role, Scheduling, ToolCallOutcome, Transcript, countChars, indexOfChar } from "../src/index.js";
import { event, snapshot } from "./support.js";

const said = (seq: number, frameId: string, text = "hi") =>
  event(seq, {
    case: "inputAccepted",
    value: { frameId, message: { parts: [{ content: { case: "text", value: text } }] } },
  });
const started = (seq: number, turnId: string, frameId: string) =>
  event(seq, { case: "turnStarted", value: { turnId, frameId, frameIds: [frameId], model: "m/m" } });
const delta = (seq: number, turnId: string, text: string, offset: number) =>
  event(seq, {
    case: "outputDelta",
    value: { turnId, text, offset, channel: Channel.TEXT, tokenCount: 1 },
  });
const finished = (seq: number, turnId: string, finishReason = FinishReason.STOP) =>
  event(seq, { case: "turnFinished", value: { turnId, finishReason, usage: { generatedTokens: 2 } } });

function folded(...events: ReturnType<typeof event>[]): Transcript {
  const transcript = new Transcript();
  events.forEach((each) => transcript.apply(each));
  return transcript;
}

describe("counting", () => {
  it("counts code points, not units", () => {
    expect(countChars("a👍🏽é")).toBe(4);
    expect(indexOfChar("a👍b", 2)).toBe(3);
    expect(indexOfChar("a👍b", 1, 1)).toBe(3);
    expect(indexOfChar("ab", 9)).toBe(2);
    expect(countChars("\ud83d")).toBe(1);
  });
});

describe("a transcript", () => {
  it("shows a message when its turn starts, and lists it as queued before", () => {
    const transcript = folded(said(1, "f"), started(2, "t", "f"), delta(3, "t", "Hé👍", 0), said(4, "g", "next"));
    expect(transcript.items).toMatchObject([
      { kind: "message", text: "hi" },
      { kind: "turn", text: "Hé👍", textChars: 3, marks: [{ seq: 3n, chars: 3 }], tokens: 1 },
    ]);
    expect(transcript.queued).toMatchObject([{ frameId: "g", text: "next" }]);
    expect(transcript.running?.turnId).toBe("t");
  });

  it("forgets a message that was taken back", () => {
    const transcript = folded(said(1, "f"), event(2, { case: "inputWithdrawn", value: { frameId: "f" } }));
    expect(transcript.queued).toEqual([]);
    expect(transcript.items).toEqual([]);
  });

  it("never takes a turn for finished before TurnFinished", () => {
    const transcript = folded(
      said(1, "f"),
      started(2, "t", "f"),
      event(3, { case: "turnInterrupted", value: { turnId: "t", keptChars: 4, droppedChars: 2 } }),
    );
    expect(transcript.running).toMatchObject({ stopped: true, keptChars: 4, finishReason: 0 });
    transcript.apply(finished(4, "t", FinishReason.INTERRUPTED));
    expect(transcript.running).toBeUndefined();
    expect(transcript.lastTurn).toMatchObject({ usage: { generatedTokens: 2 }, keptChars: 4 });
  });

  it("follows a call from its first letter to its end, and keeps what came late apart", () => {
    const transcript = folded(said(1, "f"), started(2, "t", "f"), delta(3, "t", "Well, ", 0));
    const call = () => transcript.lastTurn?.calls[0];
    transcript.apply(event(4, { case: "toolCallStarted", value: { turnId: "t", callId: "c", name: "add" } }));
    transcript.apply(event(5, { case: "toolCallDelta", value: { callId: "c", argumentsFragment: '{"a"' } }));
    expect(call()).toMatchObject({ state: "writing", argumentsText: '{"a"', textIndex: 6 });
    const deadline = timestampFromMs(9000);
    transcript.apply(
      event(6, { case: "toolCallReady", value: { callId: "c", argumentsJson: '{"a":1}', deadline } }),
    );
    expect(call()).toMatchObject({ state: "open", argumentsText: '{"a":1}', deadlineMs: 9000 });
    const over = (seq: number, late: boolean, value: string) =>
      event(seq, {
        case: "toolCallFinished",
        value: {
          callId: "c",
          late,
          outcome: ToolCallOutcome.COMPLETED,
          result: { outcome: { case: "json", value } },
        },
      });
    transcript.apply(over(7, false, "1"));
    transcript.apply(over(8, true, "2"));
    expect(call()).toMatchObject({
      state: "over",
      result: { outcome: { value: "1" } },
      late: [{ result: { outcome: { value: "2" } }, told: false }],
    });
  });

  it("drops a call that was not whole when its turn was stopped", () => {
    const transcript = folded(
      said(1, "f"),
      started(2, "t", "f"),
      event(3, { case: "toolCallStarted", value: { turnId: "t", callId: "c", name: "add" } }),
      event(4, { case: "turnInterrupted", value: { turnId: "t" } }),
    );
    expect(transcript.lastTurn?.calls[0]?.state).toBe("dropped");
  });

  it("goes on from a snapshot as it would have from the events", () => {
    const transcript = new Transcript();
    const part = { content: { case: "text", value: "hi" } } as const;
    transcript.reset(
      snapshot({
        seq: 9n,
        session: { config: { model: "m/m" } },
        turns: [
          { turnId: "s", input: { parts: [part] }, text: "cut here", keptChars: 3, finishReason: FinishReason.INTERRUPTED },
          { turnId: "t", frameId: "f", input: { parts: [part] }, text: "Hé", keptChars: 2 },
        ],
        queued: [{ frameId: "g", message: { parts: [part] } }],
      }),
    );
    transcript.apply(delta(10, "t", " you", 2));
    expect(transcript.items).toMatchObject([
      { kind: "message" },
      { keptChars: 3, finishReason: FinishReason.INTERRUPTED },
      { kind: "message", text: "hi" },
      { text: "Hé you", textChars: 6, keptChars: undefined, model: "m/m" },
    ]);
    expect(transcript.queued).toHaveLength(1);
    expect(transcript.running?.turnId).toBe("t");
  });

  it("has by a snapshot where calls stood and where the time went, as by the events", () => {
    const timing = { total: { nanos: 5e6 }, queued: { seconds: 1n } };
    const byEvents = folded(
      said(1, "f"),
      started(2, "t", "f"),
      delta(3, "t", "👍 so, ", 0),
      event(4, { case: "toolCallStarted", value: { turnId: "t", callId: "c", name: "add" } }),
      event(5, { case: "turnFinished", value: { turnId: "t", timing } }),
    );
    const bySnapshot = new Transcript();
    const toolCalls = [{ callId: "c", name: "add", textOffset: 6 }];
    bySnapshot.reset(snapshot({ seq: 5n, turns: [{ turnId: "t", text: "👍 so, 5", toolCalls, timing }] }));
    const seen = { timing: { totalMs: 5, queuedMs: 1000 }, calls: [{ textIndex: 7 }] };
    expect(byEvents.lastTurn).toMatchObject(seen);
    expect(bySnapshot.lastTurn).toMatchObject(seen);
  });

  it("shows the parts of a result as they come, and which turn was told of it", () => {
    const transcript = folded(
      said(1, "f"),
      started(2, "t", "f"),
      event(3, { case: "toolCallStarted", value: { turnId: "t", callId: "c", name: "find" } }),
      event(4, { case: "toolCallReady", value: { callId: "c", argumentsJson: "{}" } }),
      finished(5, "t"),
      event(6, { case: "toolCallOutput", value: { callId: "c", part: { case: "json", value: "1" } } }),
    );
    const parts = [{ content: { case: "text", value: " two" } }] as const;
    transcript.apply(
      event(7, { case: "toolCallOutput", value: { callId: "c", index: 1, part: { case: "content", value: { parts: [...parts] } } } }),
    );
    const call = () => transcript.turn("t")?.calls[0];
    // It outlives its turn.
    expect(call()).toMatchObject({ state: "open", parts: ["1", " two"] });
    expect(transcript.callsOpen).toBe(true);
    const scheduling = Scheduling.WHEN_IDLE;
    transcript.apply(event(8, { case: "toolCallFinished", value: { callId: "c", scheduling } }));
    expect(call()).toMatchObject({ state: "over", scheduling, told: false });
    expect(transcript.callsOpen).toBe(false);
    transcript.apply(event(9, { case: "turnStarted", value: { turnId: "u", callIds: ["c"] } }));
    expect(call()?.told).toBe(true);
    expect(transcript.items).toMatchObject([
      { kind: "message" },
      { turnId: "t", tells: [] },
      { turnId: "u", tells: ["find"], frameIds: [] },
    ]);
  });

  it("has no bubble for a turn that began by itself, and one for each message of a steered one", () => {
    const transcript = new Transcript();
    const message = (value: string) => ({ parts: [{ content: { case: "text", value } } as const] });
    transcript.reset(
      snapshot({
        seq: 9n,
        turns: [
          { turnId: "s", text: "found" },
          { turnId: "t", frameId: "f", input: message("one"), furtherInputs: [message("two")] },
        ],
      }),
    );
    expect(transcript.items).toMatchObject([
      { turnId: "s", frameIds: [] },
      { kind: "message", text: "one" },
      { kind: "message", text: "two" },
      { turnId: "t", frameIds: ["f"] },
    ]);
  });

  it("says why a turn failed, by the events and by a snapshot", () => {
    const error = { code: 14, message: "the engine is away; ask again in a moment" };
    const byEvents = folded(
      said(1, "f"),
      started(2, "t", "f"),
      event(3, { case: "turnFinished", value: { turnId: "t", finishReason: FinishReason.ERROR, error } }),
    );
    const bySnapshot = new Transcript();
    bySnapshot.reset(
      snapshot({ seq: 3n, turns: [{ turnId: "t", frameId: "f", finishReason: FinishReason.ERROR, error }] }),
    );
    for (const transcript of [byEvents, bySnapshot]) {
      expect(transcript.lastTurn).toMatchObject({ finishReason: FinishReason.ERROR, error: error.message });
    }
  });

  it("begins with what was said elsewhere, by the events and by a snapshot", () => {
    const parts = (value: string) => [{ content: { case: "text", value } } as const];
    const history = [
      { role: Role.USER, parts: parts("one") },
      { role: Role.ASSISTANT, parts: parts("un"), toolCalls: [{ callId: "c", name: "dict", argumentsJson: "{}" }] },
      { role: Role.TOOL, callId: "c", parts: parts("1") },
    ];
    const session = { config: { history } };
    const byEvents = folded(event(1, { case: "sessionOpened", value: { session } }));
    const bySnapshot = new Transcript();
    bySnapshot.reset(snapshot({ seq: 1n, session }));
    for (const transcript of [byEvents, bySnapshot]) {
      expect(transcript.items).toMatchObject([
        { kind: "message", text: "one", seq: undefined },
        { text: "un", stopped: true, calls: [{ name: "dict", state: "over", parts: ["1"] }] },
      ]);
    }
  });

  it("passes over what it does not know", () => {
    expect(folded(event(1, { case: undefined })).seq).toBe(1n);
  });
});
