import { describe, expect, it } from "vitest";
import { Channel, FinishReason, TurnFailedError } from "../src/index.js";
import { SESSION, bench, event, settle, snapshot } from "./support.js";

async function asked() {
  const b = bench();
  const conversation = b.client.resume(SESSION, [], 0n);
  conversation.open();
  const answer = conversation.ask("hi");
  const pieces: string[] = [];
  const over = (async () => {
    for await (const piece of answer) {
      pieces.push(piece);
    }
  })();
  over.catch(() => undefined);
  await settle();
  const frameId = b.wire.sent[0]?.frameId ?? "";
  const started = event(1, { case: "turnStarted", value: { turnId: "t", frameIds: [frameId] } });
  const delta = (seq: number, text: string, turnId = "t") =>
    event(seq, { case: "outputDelta", value: { turnId, text, channel: Channel.TEXT } });
  const finished = (seq: number, finishReason: FinishReason) =>
    event(seq, { case: "turnFinished", value: { turnId: "t", finishReason, error: { code: 13, message: "boom" } } });
  return { ...b, conversation, answer, pieces, over, frameId, started, delta, finished };
}

describe("an answer", () => {
  it("is iterated over a cut, and whole only at its end", async () => {
    const { wire, time, answer, pieces, over, started, delta, finished } = await asked();
    wire.link.events(started, delta(2, "one "), delta(3, "not ours", "other"));
    await settle();
    expect(() => answer.reply).toThrow("not ended");
    wire.link.cut();
    await time.pass(750);
    wire.link.events(delta(4, "two"), finished(5, FinishReason.STOP));
    await over;
    expect(pieces.join("")).toBe("one two");
    expect(answer.reply).toMatchObject({ text: "one two", finishReason: FinishReason.STOP });
  });

  it("that fails says how, with what was said", async () => {
    const { wire, over, started, delta, finished } = await asked();
    wire.link.events(started, delta(2, "one"), finished(3, FinishReason.ERROR));
    await expect(over).rejects.toBeInstanceOf(TurnFailedError);
    await expect(over).rejects.toMatchObject({ message: "boom", text: "one" });
  });

  it("goes on from a snapshot that stands in for its events", async () => {
    const { wire, over, pieces, frameId, started, delta, finished } = await asked();
    wire.link.events(started, delta(2, "one "));
    wire.link.put({ snapshot: snapshot({ seq: 9n, turns: [{ turnId: "t", frameId, text: "one two " }] }) });
    wire.link.events(delta(10, "three"), finished(11, FinishReason.STOP));
    await over;
    expect(pieces.join("")).toBe("one two three");
  });

  it("is never taken for whole when the conversation ends first", async () => {
    const { wire, over, started, delta, conversation } = await asked();
    wire.link.events(started, delta(2, "one"));
    await settle();
    conversation.close();
    await expect(over).rejects.toThrow("before the answer had ended");
  });
});
