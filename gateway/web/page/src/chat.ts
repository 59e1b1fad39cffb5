/** The chat behind the page: one session at a time, what is painted of it, and what is done to it. */
import {
  Client,
  type Connection,
  type Conversation,
  Delivery,
  ReceiptStatus,
  StatusError,
  ToolDisposition,
  type Transcript,
  callError,
  textOf,
} from "@backchannel/client";
import { beginning } from "./beginning.js";
import { Frames } from "./frames.js";
import { Link } from "./link.js";
import { Models } from "./models.js";
import type { Painter } from "./painter.js";
import { Record } from "./record.js";
import { Scene } from "./scene.js";
import {
  type Settings,
  loadSettings,
  saveSettings,
} from "./settings.js";
import { Shelf } from "./shelf.js";
import { Toaster } from "./toaster.js";
import { TOOLS } from "./tools.js";
import { type Unsent, Utterances } from "./utterances.js";

// A stream that was quiet for longer than two heartbeats when somebody comes back is not trusted.
const STALE_MS = 20_000;

export class Chat {
  readonly client = new Client();
  readonly scene = new Scene();
  record = new Record();
  link = new Link();
  conversation: Conversation | undefined;
  readonly models = new Models();
  settings: Settings = loadSettings();
  readonly shelf = new Shelf();
  readonly toaster = new Toaster(() => this.render());
  /** A session is being made for the first message. */
  creating = false;
  /** What the composer shall hold, when a message comes back. */
  returned: { readonly text: string } | undefined;
  online = navigator.onLine;
  /** The message that the next one is said in place of: it is the event after this one. */
  editing: { readonly atSeq: bigint } | undefined;
  /** The turn that is being stopped: once is enough. */
  stopping = "";
  readonly #onRender: () => void;
  readonly #frames = new Frames((nowMs, elapsedMs) => this.#paint(nowMs, elapsedMs));
  #utterances = new Utterances();

  /** @param onRender Told, at most once a frame, when something to be seen has changed. */
  constructor(onRender: () => void) {
    this.#onRender = onRender;
    addEventListener("online", () => this.#network(true));
    addEventListener("offline", () => this.#network(false));
    addEventListener("hashchange", () => this.#follow());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) {
        this.conversation?.check(STALE_MS);
        this.conversation?.hurry();
        this.render();
      }
    });
    this.#follow();
    void this.loadModels();
  }

  // --- what is to be seen --------------------------------------------------------------------

  get transcript(): Transcript {
    return this.scene.transcript;
  }

  get painter(): Painter {
    return this.scene.painter;
  }

  get sessionId(): string {
    return this.conversation?.sessionId ?? "";
  }

  /** The model of this chat, or of the one that the next message begins. */
  get model(): string {
    const { session } = this.conversation ?? {};
    return session?.config?.model ?? this.models.choose(this.settings.model)?.name ?? "";
  }

  /** An answer is on its way, or has come and is still being painted. */
  get speaking(): boolean {
    return this.creating || this.transcript.running !== undefined || this.painter.behind || this.waiting;
  }

  /** Something was said that no turn answers yet. */
  get waiting(): boolean {
    return this.unsent.length > 0 || (this.transcript.queued.length > 0 && !this.transcript.running);
  }

  get unsent(): Unsent[] {
    return this.#utterances.unsent(this.transcript);
  }

  // --- what is done --------------------------------------------------------------------------

  /**
   * Says something.
   *
   * @param delivery How it meets a running turn; for the first message of a turn it is the same.
   */
  async say(text: string, delivery: Delivery): Promise<void> {
    if (this.creating) {
      return;
    }
    if (!this.conversation) {
      await this.#create(text);
      return;
    }
    if (this.editing) {
      await this.#fork(this.conversation, this.editing.atSeq, text);
      return;
    }
    const turn = this.painter.newest;
    const redirects = delivery === Delivery.INTERRUPT && turn !== undefined && this.speaking;
    if (redirects) {
      this.painter.freeze(turn);
    }
    const { receipt, frameId } = this.conversation.send(text, {
      delivery,
      ...(redirects
        ? {
            expectedTurnId: turn.turnId,
            displayedOffset: this.painter.charsOf(turn),
          }
        : {}),
    });
    this.render();
    try {
      await receipt;
      this.shelf.remember(this.sessionId, text, this.model);
    } catch (error) {
      this.painter.thaw();
      this.#refuse(text, error, frameId);
    }
    this.render();
  }

  /** Has a message in the composer, to be said anew in a chat of its own. */
  edit(seq: bigint, text: string): void {
    this.editing = { atSeq: seq - 1n };
    this.returned = { text };
    this.render();
  }

  /** Leaves the messages as they are. */
  keep(): void {
    this.editing = undefined;
    this.render();
  }

  /**
   * Stops what is being said: what is on the screen stays, and nothing else.
   *
   * @param tools What becomes of tools at work. Absent: as they declare, which is mostly to stop.
   */
  async stop(tools = ToolDisposition.UNSPECIFIED): Promise<void> {
    const { conversation, painter } = this;
    const turn = painter.newest;
    if (!conversation) {
      return;
    }
    if (turn && (turn === this.transcript.running || painter.paints(turn))) {
      if (this.stopping === turn.turnId) {
        return;
      }
      this.stopping = turn.turnId;
      painter.freeze(turn);
      this.render();
      await this.#told(
        conversation.interrupt({
          turnId: turn.turnId,
          displayedOffset: painter.charsOf(turn),
          tools,
        }).receipt,
        () => {
          this.stopping = "";
          painter.thaw();
        },
      );
      return;
    }
    const frameId = this.unsent[0]?.frameId ?? this.transcript.queued[0]?.frameId;
    if (frameId) {
      await this.#told(conversation.interrupt({ targetFrameId: frameId }).receipt, () => undefined);
    }
  }

  /** Takes a message back that waits for its turn. */
  async withdraw(frameId: string): Promise<void> {
    const { conversation } = this;
    if (conversation) {
      await this.#told(conversation.interrupt({ targetFrameId: frameId }).receipt, () =>
        this.tell("Too late: that message is being answered already.", true),
      );
    }
  }

  async cancelCall(callId: string): Promise<void> {
    try {
      await this.conversation?.cancelCall(callId, "the user cancelled this call");
    } catch (error) {
      this.tell(`The call could not be cancelled: ${callError(error).message}`, true);
    }
  }

  /** Leaves this chat; the next message begins another. */
  fresh(): void {
    this.#leave();
    history.pushState(null, "", location.pathname + location.search);
    this.render();
  }

  open(sessionId: string): void {
    location.hash = `s=${sessionId}`;
  }

  /** Deletes a chat, here and on the server. */
  async forget(sessionId: string): Promise<void> {
    try {
      await this.client.delete(sessionId);
    } catch (thrown) {
      const error = callError(thrown);
      if (!error.gone) {
        this.tell(`The chat could not be deleted: ${error.message}`, true);
        return;
      }
    }
    this.shelf.forget(sessionId);
    if (sessionId === this.sessionId) {
      this.fresh();
    }
    this.render();
  }

  set(settings: Partial<Settings>): void {
    this.settings = { ...this.settings, ...settings };
    saveSettings(this.settings);
    this.render();
  }

  async loadModels(): Promise<void> {
    await this.models.load(this.client);
    this.render();
  }

  /** Says a word to the user. */
  tell(text: string, bad = false): void {
    this.toaster.tell(text, bad);
  }

  /** Has the page drawn anew with the next frame. */
  render(): void {
    this.#frames.ask();
  }

  // --- a session -----------------------------------------------------------------------------

  #create(text: string): Promise<void> {
    const { config, tools } = beginning(this.settings, this.models.choose(this.settings.model));
    return this.#begin(text, "", () => this.client.create(config, tools));
  }

  #fork(before: Conversation, atSeq: bigint, text: string): Promise<void> {
    const { sessionId } = before;
    this.editing = undefined;
    return this.#begin(text, sessionId, () => this.client.fork({ sessionId, atSeq }, {}, TOOLS));
  }

  /** @param from The chat that this one goes on from; empty for one without a past. */
  async #begin(text: string, from: string, make: () => Promise<Conversation>): Promise<void> {
    this.creating = true;
    this.render();
    try {
      const conversation = await make();
      this.creating = false;
      if (from !== "") {
        this.#leave();
      }
      this.#attach(conversation);
      history.pushState(null, "", `#s=${conversation.sessionId}`);
      if (from !== "") {
        this.shelf.remember(this.sessionId, text, this.model, from);
      }
      await this.say(text, Delivery.QUEUE);
    } catch (error) {
      this.creating = false;
      this.#refuse(text, error, "");
    }
  }

  /** Goes where the address says. */
  #follow(): void {
    const sessionId = /^#s=([\w-]{16,64})$/.exec(location.hash)?.[1] ?? "";
    if (sessionId === this.sessionId) {
      return;
    }
    this.#leave();
    if (sessionId !== "") {
      this.#attach(this.client.resume(sessionId, TOOLS));
    }
    this.render();
  }

  #leave(): void {
    this.conversation?.close();
    this.conversation = undefined;
    this.scene.clear();
    this.record = new Record();
    this.link = new Link();
    this.editing = undefined;
    this.#utterances = new Utterances();
  }

  #attach(conversation: Conversation): void {
    this.conversation = conversation;
    const current = (tell: () => void): void => {
      if (this.conversation === conversation) {
        tell();
        this.render();
      }
    };
    conversation.subscribe({
      frame: (frame) => current(() => this.record.frame(frame)),
      events: (events) =>
        current(() => {
          for (const event of events) {
            this.scene.take(event);
            this.#utterances.settle(event.frameId);
          }
        }),
      snapshot: (snapshot, cause) =>
        current(() => {
          this.link.gaps += cause === "cursor lost" ? 1 : 0;
          this.scene.adopt(snapshot, cause);
          this.#utterances.settleAll(this.transcript);
        }),
      connection: (connection) => current(() => this.#connected(connection)),
      pending: () => current(() => this.#utterances.note(conversation, this.transcript)),
      receipt: (receipt) =>
        current(() => {
          // What a snapshot holds has no event any more.
          if (receipt.seq > 0n && receipt.seq <= this.transcript.seq) {
            this.#utterances.settle(receipt.frameId);
          }
          if (receipt.frameId !== "") {
            this.record.receipt(receipt, this.#utterances.frame(receipt.frameId));
          }
        }),
      refused: ({ frame, frameId }, error) =>
        current(() => {
          if (frame.case === "message") {
            this.#refuse(textOf(frame.value), error, frameId);
          }
        }),
    });
    conversation.open();
  }

  #connected(connection: Connection): void {
    this.record.connection(connection);
    const back = this.link.take(connection);
    if (back !== "") {
      this.tell(back);
    }
    if (connection.state === "open") {
      this.scene.reopened();
    } else if (connection.state === "ended" && connection.error?.gone) {
      this.shelf.forget(this.sessionId);
    }
  }

  #network(online: boolean): void {
    this.online = online;
    if (online) {
      this.conversation?.hurry();
      if (!this.models.all) {
        void this.loadModels();
      }
    } else {
      // The stream will not notice for a while.
      this.conversation?.reconnect("the network is gone");
    }
    this.render();
  }

  /** A message was not taken: its text goes back to where it came from. */
  #refuse(text: string, thrown: unknown, frameId: string): void {
    if (!(thrown instanceof StatusError)) {
      return;
    }
    this.#utterances.drop(frameId);
    const why =
      thrown.reason === "TURN_MISMATCH" ? "another answer had begun by then" : thrown.message;
    this.tell(`Not sent: ${why}`, true);
    this.returned = { text };
  }

  async #told(receipt: Promise<{ status: ReceiptStatus }>, late: () => void): Promise<void> {
    try {
      if ((await receipt).status === ReceiptStatus.STALE) {
        late();
      }
    } catch (error) {
      late();
      if (error instanceof StatusError) {
        this.tell(`That did not work: ${error.message}`, true);
      }
    }
    this.render();
  }

  // --- painting ------------------------------------------------------------------------------

  #paint(nowMs: number, elapsedMs: number): "more" | "counts" | "rests" {
    this.scene.step(this.conversation, nowMs, elapsedMs);
    this.#onRender();
    if (this.painter.behind) {
      return "more";
    }
    // Deadlines and waits are counted down.
    const { transcript } = this;
    const counts =
      this.link.connection.state === "lost" || transcript.running !== undefined || transcript.callsOpen || this.waiting;
    return counts ? "counts" : "rests";
  }
}
