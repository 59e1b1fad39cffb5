/** Frames on their way up: each is sent until it is receipted, and is applied once. */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import type { Backoff } from "./backoff.js";
import { ClosedError, StatusError, callError, statusError } from "./errors.js";
import { type ClientFrame, ClientFrameSchema, type Receipt, ReceiptStatus } from "./gen/backchannel/v1/frame_pb.js";
import type { FrameStore } from "./storage.js";
import { Doze, type Time } from "./time.js";

export interface OutboxOptions {
  readonly sessionId: string;
  /** One attempt to send a frame. */
  readonly call: (frame: ClientFrame, signal: AbortSignal) => Promise<Receipt>;
  readonly store: FrameStore;
  readonly time: Time;
  readonly backoff: () => Backoff;
  /** Told whenever the frames without a receipt have changed. */
  readonly onChange: () => void;
  /** Told when a frame that an earlier page had sent is refused, since nobody here waits for it. */
  readonly onRefused: (frame: ClientFrame, error: StatusError) => void;
}

// A call is told open again only around its end: the newest are enough.
const MOST_ANSWERED = 1000;

interface Pending {
  readonly frame: ClientFrame;
  readonly doze: Doze;
  /** Settles, always well, when the frame is done with. */
  done: Promise<void>;
}

/**
 * Frames with an id stay here, and in the store, until their receipt has come. Messages go one
 * after the other, in the order they were said, and taking one back waits for it; a stop of a turn
 * and the result of a tool wait for nobody.
 */
export class Outbox {
  readonly #pending = new Map<string, Pending>();
  readonly #latest = new Map<string, { busy: boolean; next: ClientFrame | undefined }>();
  readonly #end = new AbortController();
  readonly #answered = new Set<string>();
  #lastMessage: Pending | undefined;

  constructor(private readonly options: OutboxOptions) {}

  /** The frames that have no receipt yet, in the order they were sent. */
  get pending(): ClientFrame[] {
    return [...this.#pending.values()].map((entry) => entry.frame);
  }

  /** Whether a result of this tool call was sent from here, receipted or not. */
  hasResult(callId: string): boolean {
    return this.#answered.has(callId);
  }

  /** Sends again what an earlier page has left. */
  restore(): void {
    for (const stored of this.options.store.load(this.options.sessionId)) {
      let frame: ClientFrame;
      try {
        frame = fromBinary(ClientFrameSchema, stored.bytes);
      } catch {
        this.options.store.remove(this.options.sessionId, stored.frameId);
        continue;
      }
      if (frame.frameId === "" || this.#pending.has(frame.frameId)) {
        continue;
      }
      this.send(frame).catch((error: unknown) => {
        if (error instanceof StatusError) {
          this.options.onRefused(frame, error);
        }
      });
    }
  }

  /**
   * Sends a frame and waits for its receipt, over however many connections that takes. A frame that
   * is refused for now (the log is away, the server leaves) is sent again.
   *
   * @throws StatusError It was refused.
   * @throws ClosedError The conversation was closed first. The frame is still in the store.
   */
  send(frame: ClientFrame): Promise<Receipt> {
    if (frame.frameId === "" || this.#pending.has(frame.frameId)) {
      throw new TypeError(`a frame needs an id of its own, not ${JSON.stringify(frame.frameId)}`);
    }
    if (this.#end.signal.aborted) {
      return Promise.reject(new ClosedError("the conversation is closed"));
    }
    const { sessionId, store } = this.options;
    store.put(sessionId, { frameId: frame.frameId, bytes: toBinary(ClientFrameSchema, frame) });
    const entry: Pending = {
      frame,
      doze: new Doze(this.options.time, this.#end.signal),
      done: Promise.resolve(),
    };
    const receipt = this.#deliver(entry, this.#before(frame)).finally(() => {
      this.#pending.delete(frame.frameId);
      if (this.#lastMessage === entry) {
        this.#lastMessage = undefined;
      }
      if (!this.#end.signal.aborted) {
        store.remove(sessionId, frame.frameId);
        this.options.onChange();
      }
    });
    entry.done = receipt.then(
      () => undefined,
      () => undefined,
    );
    this.#pending.set(frame.frameId, entry);
    if (frame.frame.case === "message") {
      this.#lastMessage = entry;
    } else if (frame.frame.case === "toolResult" && !frame.frame.value.partial) {
      this.#noteAnswered(frame.frame.value.callId);
    }
    this.options.onChange();
    return receipt;
  }

  /** Sends a frame without an id, in place of an older one on the same subject; it may get lost. */
  post(subject: string, frame: ClientFrame): void {
    const slot = this.#latest.get(subject) ?? { busy: false, next: undefined };
    this.#latest.set(subject, slot);
    slot.next = create(ClientFrameSchema, { ...frame, frameId: "" });
    if (!slot.busy) {
      slot.busy = true;
      void this.#drain(subject, slot);
    }
  }

  /** There is a connection again: do not wait any longer. */
  hurry(): void {
    for (const entry of this.#pending.values()) {
      entry.doze.wake();
    }
  }

  /** Sends nothing more. What has no receipt stays in the store. */
  close(): void {
    this.#end.abort();
  }

  /** What has to be receipted before this frame may go. */
  #before(frame: ClientFrame): Promise<void> | undefined {
    if (frame.frame.case === "message") {
      return this.#lastMessage?.done;
    }
    if (frame.frame.case === "interrupt" && frame.frame.value.targetFrameId !== "") {
      return this.#pending.get(frame.frame.value.targetFrameId)?.done;
    }
    return undefined;
  }

  async #deliver(entry: Pending, before: Promise<void> | undefined): Promise<Receipt> {
    await before;
    const backoff = this.options.backoff();
    for (;;) {
      if (this.#end.signal.aborted) {
        throw new ClosedError("the conversation is closed");
      }
      const outcome = await this.#attempt(entry.frame);
      if (!(outcome instanceof StatusError)) {
        return outcome;
      }
      await entry.doze.sleep(backoff.next(outcome.retryAfterMs));
    }
  }

  #noteAnswered(callId: string): void {
    this.#answered.add(callId);
    if (this.#answered.size > MOST_ANSWERED) {
      const [oldest = ""] = this.#answered;
      this.#answered.delete(oldest);
    }
  }

  /** The receipt, or why there is none yet. */
  async #attempt(frame: ClientFrame): Promise<Receipt | StatusError> {
    let receipt: Receipt;
    try {
      receipt = await this.options.call(frame, this.#end.signal);
    } catch (thrown) {
      const error = callError(thrown);
      if (!error.transient && !this.#end.signal.aborted) {
        throw error;
      }
      return error;
    }
    if (receipt.status !== ReceiptStatus.REJECTED) {
      return receipt;
    }
    const error = statusError(receipt.error);
    // Of what is refused only this passes by itself.
    if (error.code !== Code.Unavailable) {
      throw error;
    }
    return error;
  }

  async #drain(subject: string, slot: { busy: boolean; next: ClientFrame | undefined }): Promise<void> {
    while (slot.next && !this.#end.signal.aborted) {
      const frame = slot.next;
      slot.next = undefined;
      try {
        await this.options.call(frame, this.#end.signal);
      } catch {
        // It only counted while it was new.
      }
    }
    slot.busy = false;
    this.#latest.delete(subject);
  }
}
