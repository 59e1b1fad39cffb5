/** What of a session is on the screen: its transcript, how far it is painted, what is read out. */
import {
  type Conversation,
  type Event,
  FinishReason,
  type Snapshot,
  type SnapshotCause,
  Transcript,
} from "@backchannel/client";
import { Announcer } from "./announcer.js";
import { Displayed } from "./displayed.js";
import { Painter } from "./painter.js";

export class Scene {
  readonly painter = new Painter(() => !matchMedia("(prefers-reduced-motion: reduce)").matches);
  transcript = new Transcript();
  /** For screen readers. */
  announcement = "";
  readonly #announcer = new Announcer();
  readonly #displayed = new Displayed();

  /** Leaves the session. */
  clear(): void {
    this.transcript = new Transcript();
  }

  take(event: Event): void {
    this.transcript.apply(event);
    if (event.kind.case === "turnStarted") {
      const turn = this.transcript.turn(event.kind.value.turnId);
      if (turn) {
        this.painter.follow(turn);
      }
    }
  }

  adopt(snapshot: Snapshot, cause: SnapshotCause): void {
    const before = this.painter.newest;
    const chars = before ? this.painter.charsOf(before) : 0;
    this.transcript.reset(snapshot);
    if (cause === "cursor lost") {
      this.transcript.notice(
        `Some of what happened is no longer kept by the server: this is its state as of event ${snapshot.seq}.`,
      );
    }
    const last = this.transcript.lastTurn;
    if (last) {
      // What this page had painted of it goes on from there; else it was there before.
      const known = before?.turnId === last.turnId && cause !== "opening";
      this.painter.show(last, known ? chars : last.textChars);
      this.#announcer.skip(last.turnId, last.text);
    }
  }

  /** The server may have lost what was seen, and generation may wait for it. */
  reopened(): void {
    this.#displayed.forget();
  }

  /** Goes on painting, and tells the server and whoever listens what is to be seen. */
  step(conversation: Conversation | undefined, nowMs: number, elapsedMs: number): void {
    this.painter.step(elapsedMs);
    this.#announce();
    this.#displayed.tell(conversation, this.transcript, this.painter, nowMs);
  }

  #announce(): void {
    const { turn } = this.painter;
    if (turn && this.transcript.turn(turn.turnId) === turn) {
      const text = turn.text.slice(0, this.painter.indexFor(turn));
      const over = turn.finishReason !== FinishReason.UNSPECIFIED && !this.painter.behind;
      this.announcement = this.#announcer.next(turn.turnId, text, over) || this.announcement;
    }
  }
}
