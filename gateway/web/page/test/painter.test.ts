import { type TurnView, Transcript, EventSchema, Channel } from "@backchannel/client";
import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { Painter } from "../src/painter.js";

const FRAME_MS = 1000 / 60;

interface Told {
  turn: TurnView;
  say: (text: string) => void;
  transcript: Transcript;
}

function turnOf(...texts: string[]): Told {
  return nextTurn(new Transcript(), "t", ...texts);
}

function nextTurn(transcript: Transcript, turnId: string, ...texts: string[]): Told {
  let seq = transcript.seq + 1n;
  let offset = 0;
  transcript.apply(create(EventSchema, { seq, kind: { case: "turnStarted", value: { turnId } } }));
  const turn = transcript.turn(turnId) as TurnView;
  const say = (text: string): void => {
    seq += 1n;
    const value = { turnId, channel: Channel.TEXT, text, offset };
    transcript.apply(create(EventSchema, { seq, kind: { case: "outputDelta", value } }));
    offset = turn.textChars;
  };
  texts.forEach(say);
  return { turn, say, transcript };
}

describe("the painter", () => {
  it("spreads a burst over many frames, none of them a leap, and gets to the end soon", () => {
    const { turn } = turnOf("x".repeat(600));
    const painter = new Painter(() => true);
    painter.show(turn, 0);
    const steps: number[] = [];
    let frames = 0;
    while (painter.behind) {
      const before = painter.chars;
      painter.step(FRAME_MS);
      steps.push(painter.chars - before);
      frames += 1;
      expect(frames).toBeLessThan(150);
    }
    expect(frames).toBeGreaterThan(40);
    expect(Math.max(...steps)).toBeLessThan(600 / 10);
    expect(painter.chars).toBe(600);
  });

  it("keeps up with a steady stream", () => {
    const { turn, say } = turnOf();
    const painter = new Painter(() => true);
    painter.show(turn, 0);
    let most = 0;
    for (let frame = 0; frame < 600; frame += 1) {
      if (frame % 3 === 0) {
        say(" word");
      }
      painter.step(FRAME_MS);
      most = Math.max(most, turn.textChars - painter.chars);
    }
    expect(most).toBeLessThan(50);
  });

  it("never cuts a code point, and counts in code points", () => {
    const { turn } = turnOf("👍".repeat(50));
    const painter = new Painter(() => true);
    painter.show(turn, 0);
    while (painter.behind) {
      painter.step(FRAME_MS);
      expect(painter.indexFor(turn)).toBe(painter.chars * 2);
    }
  });

  it("stands still when frozen, and tells the newest event that is wholly on the screen", () => {
    const { turn } = turnOf("one ", "two ", "three");
    const painter = new Painter(() => true);
    painter.show(turn, 0);
    while (painter.chars < 6) {
      painter.step(4);
    }
    painter.freeze(turn);
    const { chars } = painter;
    expect(painter.step(1000)).toBe(false);
    expect(painter.chars).toBe(chars);
    expect(painter.behind).toBe(false);
    expect(painter.seq).toBe(2n);
    painter.thaw();
    expect(painter.behind).toBe(true);
  });

  it("ends where the server says that the text ends", () => {
    const { turn, transcript } = turnOf("one two three");
    const painter = new Painter(() => true);
    painter.show(turn, 13);
    transcript.apply(
      create(EventSchema, {
        seq: 9n,
        kind: { case: "turnInterrupted", value: { turnId: "t", keptChars: 4 } },
      }),
    );
    painter.step(FRAME_MS);
    expect(turn.text.slice(0, painter.indexFor(turn))).toBe("one ");
    expect(painter.behind).toBe(false);
  });

  it("paints all at once for those who want no motion", () => {
    const { turn } = turnOf("x".repeat(500));
    const painter = new Painter(() => false);
    painter.show(turn, 0);
    painter.step(FRAME_MS);
    expect(painter.chars).toBe(500);
  });

  it("begins with what was already painted", () => {
    const { turn } = turnOf("x".repeat(10));
    const painter = new Painter(() => true);
    painter.show(turn, 99);
    expect(painter.chars).toBe(10);
    expect(painter.behind).toBe(false);
  });

  it("paints the rest of a turn in a hurry when the next one begins, without a leap", () => {
    const { turn, transcript } = turnOf("x".repeat(2000));
    const painter = new Painter(() => true);
    painter.show(turn, 0);
    painter.step(FRAME_MS);
    const first = painter.chars;
    const { turn: next } = nextTurn(transcript, "u", "next");
    painter.follow(next);
    expect(painter.newest).toBe(next);
    const steps: number[] = [];
    while (painter.turn === turn && steps.length < 1000) {
      const before = painter.chars;
      expect([painter.charsOf(next), painter.indexFor(next), painter.paints(next)]).toEqual([0, 0, true]);
      painter.step(FRAME_MS);
      steps.push(painter.turn === turn ? painter.chars - before : 0);
    }
    expect(steps.length).toBeGreaterThan(20);
    expect(steps.length * FRAME_MS).toBeLessThan(600);
    expect(Math.max(...steps)).toBeLessThan(2000 / 4);
    expect(steps.reduce((sum, step) => sum + step, first)).toBe(2000);
    expect(painter.indexFor(turn)).toBe(2000);
    while (painter.behind) {
      painter.step(FRAME_MS);
    }
    expect([painter.turn, painter.chars]).toEqual([next, 4]);
  });

  it("shows nothing of a turn that was stopped before it came to it", () => {
    const { turn, transcript } = turnOf("x".repeat(100));
    const painter = new Painter(() => true);
    painter.show(turn, 0);
    const { turn: next } = nextTurn(transcript, "u", "never seen");
    painter.follow(next);
    painter.freeze(next);
    for (let frame = 0; frame < 200; frame += 1) {
      painter.step(FRAME_MS);
    }
    expect([painter.indexFor(turn), painter.turn, painter.chars, painter.behind]).toEqual([100, next, 0, false]);
  });

  it("leaves no turn before its last piece could be read aloud", () => {
    const { turn, transcript } = turnOf("done");
    const painter = new Painter(() => true);
    painter.show(turn, 4);
    painter.follow(nextTurn(transcript, "u").turn);
    expect([painter.turn, painter.behind]).toEqual([turn, true]);
  });
});
