/** What the user has seen of an answer, as the server is told. */
import type { Conversation, Transcript, TurnView } from "@backchannel/client";
import type { Painter } from "./painter.js";

const EVERY_MS = 300;

export class Displayed {
  #lastMs = 0;
  #turn: TurnView | undefined;
  #chars = -1;

  /** Has all of it told again: the server may have lost it, and generation may wait for it. */
  forget(): void {
    this.#chars = -1;
  }

  /** Tells what is on the screen, while that can still count. */
  tell(conversation: Conversation | undefined, transcript: Transcript, painter: Painter, nowMs: number): void {
    const turn = painter.turn;
    if (turn !== this.#turn) {
      this.#turn = turn;
      this.#chars = -1;
    }
    const running = turn !== undefined && turn === transcript.running && !turn.stopped;
    if (!conversation || !running || document.hidden || painter.chars === this.#chars) {
      return;
    }
    // Soon after the first word, and whenever all that has come is painted.
    const due = nowMs - this.#lastMs >= EVERY_MS;
    if (painter.chars > 0 && (due || this.#chars < 0)) {
      this.#lastMs = nowMs;
      this.#chars = painter.chars;
      conversation.ack(painter.seq, painter.chars);
    }
  }
}
