/** What was said on this page, until it can be seen in the log. */
import { type ClientFrame, type Conversation, type Transcript, textOf } from "@backchannel/client";

/** A message that was said here and is not in the log yet. */
export interface Unsent {
  readonly frameId: string;
  readonly text: string;
}

// Of what was sent, for those who look at receipts.
const MOST_FRAMES = 200;

export class Utterances {
  readonly #frames = new Map<string, ClientFrame>();
  // From when it is sent until its event has come: a receipt may be there before it.
  readonly #said = new Map<string, Unsent>();

  /** What is not in the log yet. */
  unsent(transcript: Transcript): Unsent[] {
    return [...this.#said.values()].filter(({ frameId }) => !isKnown(transcript, frameId));
  }

  frame(frameId: string): ClientFrame | undefined {
    return this.#frames.get(frameId);
  }

  /** Takes what the conversation has sent and has no receipt for. */
  note(conversation: Conversation, transcript: Transcript): void {
    for (const sent of conversation.pending) {
      const { frameId, frame } = sent;
      this.#frames.set(frameId, sent);
      if (frame.case === "message" && !isKnown(transcript, frameId)) {
        this.#said.set(frameId, { frameId, text: textOf(frame.value) });
      }
    }
    while (this.#frames.size > MOST_FRAMES) {
      const [oldest = ""] = this.#frames.keys();
      this.#frames.delete(oldest);
    }
  }

  /** Its event has come. */
  settle(frameId: string): void {
    this.#said.delete(frameId);
  }

  /** The transcript was replaced by a snapshot. */
  settleAll(transcript: Transcript): void {
    for (const frameId of this.#said.keys()) {
      if (isKnown(transcript, frameId)) {
        this.#said.delete(frameId);
      }
    }
  }

  /** It was refused. */
  drop(frameId: string): void {
    this.#frames.delete(frameId);
    this.#said.delete(frameId);
  }
}

function isKnown({ queued, items }: Transcript, frameId: string): boolean {
  return (
    queued.some((message) => message.frameId === frameId) ||
    items.some((item) => item.kind === "message" && item.frameId === frameId)
  );
}
