/** One answer: piece by piece while it comes, and whole when it has ended. */
import { ClientError, ClosedError, TurnFailedError, statusError } from "./errors.js";
import { Channel, type Event } from "./gen/backchannel/v1/event_pb.js";
import type { Snapshot } from "./gen/backchannel/v1/frame_pb.js";
import { FinishReason, type Timing, type Usage } from "./gen/backchannel/v1/session_pb.js";
import type { Connection } from "./stream.js";
import type { Conversation, Sent } from "./conversation.js";

/** An answer that has ended. */
export interface Reply {
  readonly turnId: string;
  /** All TEXT that was sent, cut or not. */
  readonly text: string;
  readonly reasoning: string;
  /** Why it ended. Only FINISH_REASON_STOP says that the model was done. */
  readonly finishReason: FinishReason;
  readonly usage: Usage | undefined;
  readonly timing: Timing | undefined;
}

/** The pieces of one answer's text, then its end. */
export class Answer implements AsyncIterable<string> {
  #reply: Reply | undefined;
  #turnId = "";
  #text = "";
  #reasoning = "";
  #pieces: string[] = [];
  #over = false;
  #error: Error | undefined;
  #wake: () => void = () => undefined;
  #seq = 0n;

  constructor(
    private readonly conversation: Conversation,
    private readonly send: () => Sent,
  ) {}

  /**
   * The whole answer, once it has ended.
   *
   * @throws ClientError It has not: what was iterated so far is a part, not an answer.
   */
  get reply(): Reply {
    if (!this.#reply) {
      throw new ClientError("the answer has not ended yet; iterate it to its end first");
    }
    return this.#reply;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string> {
    let frameId = "";
    const unsubscribe = this.conversation.subscribe({
      events: (events) => {
        for (const event of events) {
          this.#seq = event.seq;
          this.#take(event, frameId);
        }
        this.#wake();
      },
      snapshot: (snapshot) => {
        this.#seq = snapshot.seq;
        this.#adopt(snapshot, frameId);
        this.#wake();
      },
      connection: (connection) => {
        this.#connection(connection);
        this.#wake();
      },
    });
    try {
      const sent = this.send();
      frameId = sent.frameId;
      sent.receipt.catch((error: Error) => {
        this.#end(error);
        this.#wake();
      });
      for (;;) {
        while (this.#pieces.length > 0) {
          const seq = this.#seq;
          yield this.#pieces.splice(0).join("");
          // Whoever asks for more has seen this; in a session with a window it goes on only then.
          if (this.conversation.session?.config?.limits?.maxUnackedChars !== undefined) {
            this.conversation.ack(seq);
          }
        }
        if (this.#error) {
          throw this.#error;
        }
        if (this.#over) {
          return;
        }
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    } finally {
      unsubscribe();
    }
  }

  #take({ kind }: Event, frameId: string): void {
    switch (kind.case) {
      case "turnStarted":
        if (kind.value.frameIds.includes(frameId)) {
          this.#turnId = kind.value.turnId;
        }
        break;
      case "inputWithdrawn":
        if (kind.value.frameId === frameId) {
          this.#end(new ClientError("the message was taken back before it was answered"));
        }
        break;
      case "outputDelta":
        if (kind.value.turnId === this.#turnId) {
          this.#append(kind.value.channel, kind.value.text);
        }
        break;
      case "turnFinished":
        if (kind.value.turnId === this.#turnId) {
          const { finishReason, usage, timing, error } = kind.value;
          const failed = error ? statusError(error).message : "the turn failed";
          this.#finish(finishReason, usage, timing, failed);
        }
        break;
    }
  }

  #append(channel: Channel, text: string): void {
    if (channel === Channel.REASONING) {
      this.#reasoning += text;
    } else if (text !== "") {
      this.#text += text;
      this.#pieces.push(text);
    }
  }

  /** Goes on from a snapshot, which stands in for events that are no longer kept. */
  #adopt(snapshot: Snapshot, frameId: string): void {
    const turn = snapshot.turns.find(
      (each) => each.turnId === this.#turnId || (frameId !== "" && each.frameId === frameId),
    );
    if (!turn) {
      return;
    }
    this.#turnId = turn.turnId;
    this.#append(Channel.TEXT, turn.text.slice(this.#text.length));
    this.#reasoning = turn.reasoning;
    if (turn.finishReason !== FinishReason.UNSPECIFIED) {
      this.#finish(turn.finishReason, turn.usage, turn.timing, "the turn failed");
    }
  }

  #connection(connection: Connection): void {
    if (connection.state === "ended" || connection.state === "closed") {
      const error = connection.state === "ended" ? connection.error : undefined;
      this.#end(error ?? new ClosedError("the conversation was over before the answer had ended"));
    }
  }

  #finish(
    finishReason: FinishReason,
    usage: Usage | undefined,
    timing: Timing | undefined,
    failed: string,
  ): void {
    const [text, reasoning, turnId] = [this.#text, this.#reasoning, this.#turnId];
    this.#reply = { turnId, text, reasoning, finishReason, usage, timing };
    const bad = finishReason === FinishReason.ERROR || finishReason === FinishReason.OWNER_LOST;
    this.#end(bad ? new TurnFailedError(failed, text) : undefined);
  }

  #end(error: Error | undefined): void {
    if (!this.#over) {
      this.#over = true;
      this.#error = error;
    }
  }
}
