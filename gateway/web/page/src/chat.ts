/** The chat behind the page: one session at a time, what is painted of it, and what is done to it. */
import {
  Client,
  type ClientFrame,
  type Connection,
  type Conversation,
  Delivery,
  type Event,
  FinishReason,
  type Model,
  ReceiptStatus,
  type SessionInit,
  type Snapshot,
  type SnapshotCause,
  StatusError,
  ToolDisposition,
  Transcript,
  type TurnView,
  callError,
  textOf,
} from "@backchannel/client";
import { Announcer } from "./announcer.js";
import { Painter } from "./painter.js";
import { Record } from "./record.js";
import {
  type Chat as KeptChat,
  type Settings,
  forgetChat,
  loadChats,
  loadSettings,
  parseOptions,
  rememberChat,
  saveSettings,
} from "./settings.js";
import { TOOLS } from "./tools.js";

/** A short word to the user that goes away by itself. */
export interface Toast {
  readonly text: string;
  readonly bad: boolean;
}

/** A message that was said here and is not in the log yet. */
export interface Unsent {
  readonly frameId: string;
  readonly text: string;
}

const ACK_EVERY_MS = 300;
const TICK_MS = 250;
const TOAST_MS = 6000;
// A stream that was quiet for longer than two heartbeats when somebody comes back is not trusted.
const STALE_MS = 20_000;

export class Chat {
  readonly client = new Client();
  readonly painter = new Painter(() => !matchMedia("(prefers-reduced-motion: reduce)").matches);
  transcript = new Transcript();
  record = new Record();
  conversation: Conversation | undefined;
  connection: Connection = { state: "connecting" };
  /** When the connection was lost, by the page's clock; undefined while there is one. */
  lostAtMs: number | undefined;
  /** How often a lost connection came back. */
  reconnects = 0;
  /** How often the server no longer had all events of the time in between. */
  gaps = 0;
  models: readonly Model[] | undefined;
  modelsError = "";
  settings: Settings = loadSettings();
  chats: readonly KeptChat[] = loadChats();
  toast: Toast | undefined;
  /** A session is being made for the first message. */
  creating = false;
  /** What the composer shall hold, when a message comes back. */
  returned: { readonly text: string } | undefined;
  /** For screen readers. */
  announcement = "";
  online = navigator.onLine;
  /** The message that the next one is said in place of: it is the event after this one. */
  editing: { readonly atSeq: bigint } | undefined;
  /** The turn that is being stopped: once is enough. */
  stopping = "";
  readonly #onRender: () => void;
  readonly #announcer = new Announcer();
  #frame = 0;
  #lastFrameMs = 0;
  #lastAckMs = 0;
  #ackedTurn: TurnView | undefined;
  #ackedChars = -1;
  #tick: ReturnType<typeof setTimeout> | undefined;
  #toastTimer: ReturnType<typeof setTimeout> | undefined;
  readonly #sent = new Map<string, ClientFrame>();
  // From when it is sent until its event has come: a receipt may be there before it.
  readonly #said = new Map<string, Unsent>();

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

  get sessionId(): string {
    return this.conversation?.sessionId ?? "";
  }

  /** The model of this chat, or of the one that the next message begins. */
  get model(): string {
    const { session } = this.conversation ?? {};
    return session?.config?.model ?? this.chosenModel?.name ?? "";
  }

  /** What is known of that model. */
  get modelCard(): Model | undefined {
    return this.models?.find(({ name }) => name === this.model);
  }

  get chosenModel(): Model | undefined {
    return this.models?.find(({ name }) => name === this.settings.model) ?? this.models?.[0];
  }

  /** The session is over: nothing more can be said in it. */
  get over(): boolean {
    return this.connection.state === "ended";
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
    return [...this.#said.values()].filter(({ frameId }) => !this.#isKnown(frameId));
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
      this.#remember(text);
    } catch (error) {
      this.painter.thaw();
      this.#refuse(text, error, frameId);
    }
    this.render();
  }

  /** The chat that this one was made from, to say something anew. */
  get origin(): string {
    return this.chats.find(({ sessionId }) => sessionId === this.sessionId)?.from ?? "";
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
    this.chats = forgetChat(sessionId);
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
    this.modelsError = "";
    try {
      this.models = await this.client.models();
    } catch (error) {
      this.modelsError = callError(error).message;
    }
    this.render();
  }

  /** Says a word to the user. */
  tell(text: string, bad = false): void {
    this.toast = { text, bad };
    clearTimeout(this.#toastTimer);
    this.#toastTimer = setTimeout(() => this.dismiss(), TOAST_MS);
    this.render();
  }

  dismiss(): void {
    this.toast = undefined;
    this.render();
  }

  /** Has the page drawn anew with the next frame. */
  render(): void {
    if (this.#frame === 0) {
      this.#frame = requestAnimationFrame((nowMs) => this.#paint(nowMs));
    }
  }

  // --- a session -----------------------------------------------------------------------------

  async #create(text: string): Promise<void> {
    this.creating = true;
    this.render();
    const { settings } = this;
    const model = this.chosenModel;
    const takesTools = model?.capabilities.includes("tools") ?? true;
    const sampling = {
      ...(settings.maxTokens === "" ? {} : { maxTokens: Number(settings.maxTokens) }),
      ...(settings.temperature === "" ? {} : { temperature: Number(settings.temperature) }),
    };
    const config: SessionInit = {
      model: model?.name ?? settings.model,
      system: settings.system,
      sampling,
      engineOptions: parseOptions(settings.engineOptions),
    };
    const tools = takesTools ? TOOLS.filter(({ spec }) => settings.tools.includes(spec.name ?? "")) : [];
    try {
      const conversation = await this.client.create(config, tools);
      this.creating = false;
      this.#attach(conversation);
      history.pushState(null, "", `#s=${conversation.sessionId}`);
      await this.say(text, Delivery.QUEUE);
    } catch (error) {
      this.creating = false;
      this.#refuse(text, error, "");
    }
  }

  async #fork(before: Conversation, atSeq: bigint, text: string): Promise<void> {
    this.creating = true;
    this.editing = undefined;
    this.render();
    try {
      const conversation = await this.client.fork({ sessionId: before.sessionId, atSeq }, {}, TOOLS);
      this.creating = false;
      this.#leave();
      this.#attach(conversation);
      history.pushState(null, "", `#s=${conversation.sessionId}`);
      this.#remember(text, before.sessionId);
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
    this.transcript = new Transcript();
    this.record = new Record();
    this.connection = { state: "connecting" };
    this.lostAtMs = undefined;
    this.reconnects = 0;
    this.gaps = 0;
    this.editing = undefined;
    this.#sent.clear();
    this.#said.clear();
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
      events: (events) => current(() => events.forEach((event) => this.#take(event))),
      snapshot: (snapshot, cause) => current(() => this.#adopt(snapshot, cause)),
      connection: (connection) => current(() => this.#connected(connection)),
      pending: () => current(() => this.#notePending(conversation)),
      receipt: (receipt) =>
        current(() => {
          // What a snapshot holds has no event any more.
          if (receipt.seq > 0n && receipt.seq <= this.transcript.seq) {
            this.#said.delete(receipt.frameId);
          }
          if (receipt.frameId !== "") {
            this.record.receipt(receipt, this.#sent.get(receipt.frameId));
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

  #take(event: Event): void {
    this.transcript.apply(event);
    this.#said.delete(event.frameId);
    if (event.kind.case === "turnStarted") {
      const turn = this.transcript.turn(event.kind.value.turnId);
      if (turn) {
        this.painter.follow(turn);
      }
    }
  }

  #adopt(snapshot: Snapshot, cause: SnapshotCause): void {
    const before = this.painter.newest;
    const chars = before ? this.painter.charsOf(before) : 0;
    this.transcript.reset(snapshot);
    if (cause === "cursor lost") {
      this.gaps += 1;
      this.transcript.notice(
        `Some of what happened is no longer kept by the server: this is its state as of event ${snapshot.seq}.`,
      );
    }
    for (const frameId of this.#said.keys()) {
      if (this.#isKnown(frameId)) {
        this.#said.delete(frameId);
      }
    }
    const last = this.transcript.lastTurn;
    if (last) {
      // What this page had painted of it goes on from there; else it was there before.
      const known = before?.turnId === last.turnId && cause !== "opening";
      this.painter.show(last, known ? chars : last.textChars);
      this.#announcer.skip(last.turnId, last.text);
    }
  }

  #connected(connection: Connection): void {
    this.record.connection(connection);
    this.connection = connection;
    if (connection.state === "lost") {
      this.lostAtMs ??= performance.now();
    } else if (connection.state === "open") {
      // The server may have lost what was seen, and generation may wait for it.
      this.#ackedChars = -1;
      if (this.lostAtMs !== undefined) {
        this.reconnects += 1;
        const seconds = ((performance.now() - this.lostAtMs) / 1000).toFixed(1);
        this.tell(
          connection.resumed
            ? `Back after ${seconds} s. Nothing was missed: it went on after event ${connection.afterSeq}.`
            : `Back after ${seconds} s.`,
        );
      }
      this.lostAtMs = undefined;
    } else if (connection.state === "ended" && connection.error?.gone) {
      this.chats = forgetChat(this.sessionId);
    }
  }

  #network(online: boolean): void {
    this.online = online;
    if (online) {
      this.conversation?.hurry();
      if (!this.models) {
        void this.loadModels();
      }
    } else {
      // The stream will not notice for a while.
      this.conversation?.reconnect("the network is gone");
    }
    this.render();
  }

  #notePending(conversation: Conversation): void {
    for (const sent of conversation.pending) {
      const { frameId, frame } = sent;
      this.#sent.set(frameId, sent);
      if (frame.case === "message" && !this.#isKnown(frameId)) {
        this.#said.set(frameId, { frameId, text: textOf(frame.value) });
      }
    }
    while (this.#sent.size > 200) {
      const [oldest = ""] = this.#sent.keys();
      this.#sent.delete(oldest);
    }
  }

  #remember(text: string, from = ""): void {
    const known = this.chats.find(({ sessionId }) => sessionId === this.sessionId);
    this.chats = rememberChat({
      sessionId: this.sessionId,
      title: known?.title ?? text,
      model: this.model,
      atMs: Date.now(),
      from: known?.from ?? from,
    });
  }

  /** A message was not taken: its text goes back to where it came from. */
  #refuse(text: string, thrown: unknown, frameId: string): void {
    if (!(thrown instanceof StatusError)) {
      return;
    }
    this.#sent.delete(frameId);
    this.#said.delete(frameId);
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

  #isKnown(frameId: string): boolean {
    return (
      this.transcript.queued.some((message) => message.frameId === frameId) ||
      this.transcript.items.some((item) => item.kind === "message" && item.frameId === frameId)
    );
  }

  // --- painting ------------------------------------------------------------------------------

  #paint(nowMs: number): void {
    this.#frame = 0;
    this.painter.step(this.#lastFrameMs === 0 ? 16 : nowMs - this.#lastFrameMs);
    this.#lastFrameMs = nowMs;
    this.#announce();
    this.#ack(nowMs);
    this.#onRender();
    if (this.painter.behind) {
      this.render();
    } else {
      this.#lastFrameMs = 0;
      this.#tickIfNeeded();
    }
  }

  /** Deadlines and waits are counted down. */
  #tickIfNeeded(): void {
    const counts =
      this.connection.state === "lost" ||
      this.transcript.running !== undefined ||
      this.transcript.callsOpen ||
      this.waiting;
    clearTimeout(this.#tick);
    if (counts) {
      this.#tick = setTimeout(() => this.render(), TICK_MS);
    }
  }

  #announce(): void {
    const turn = this.painter.turn;
    if (turn && this.transcript.turn(turn.turnId) === turn) {
      const text = turn.text.slice(0, this.painter.indexFor(turn));
      const over = turn.finishReason !== FinishReason.UNSPECIFIED && !this.painter.behind;
      this.announcement = this.#announcer.next(turn.turnId, text, over) || this.announcement;
    }
  }

  /** Tells the server what is on the screen, while that can still count. */
  #ack(nowMs: number): void {
    const { painter, conversation } = this;
    const turn = painter.turn;
    if (turn !== this.#ackedTurn) {
      this.#ackedTurn = turn;
      this.#ackedChars = -1;
    }
    const running = turn !== undefined && turn === this.transcript.running && !turn.stopped;
    if (!conversation || !running || document.hidden || painter.chars === this.#ackedChars) {
      return;
    }
    // Soon after the first word, and whenever all that has come is painted.
    const due = nowMs - this.#lastAckMs >= ACK_EVERY_MS;
    if (painter.chars > 0 && (due || this.#ackedChars < 0)) {
      this.#lastAckMs = nowMs;
      this.#ackedChars = painter.chars;
      conversation.ack(painter.seq, painter.chars);
    }
  }
}

/** How a turn ended, for people; empty while it runs or when all is well. */
export function endingOf(turn: TurnView): string {
  switch (turn.finishReason) {
    case FinishReason.UNSPECIFIED:
    case FinishReason.STOP:
      return "";
    case FinishReason.LENGTH:
      return "cut off: the limit of tokens was reached";
    case FinishReason.TOOL_CALLS:
      return "ended: the model asked for too many rounds of tools";
    case FinishReason.INTERRUPTED:
      return "stopped";
    case FinishReason.STEERED:
      return "steered";
    case FinishReason.DISCONNECTED:
      return "ended: nobody was connected any more";
    case FinishReason.DEADLINE:
      return "ended: it took too long";
    case FinishReason.OWNER_LOST:
      return "ended: the server that spoke was lost";
    case FinishReason.CONTENT_FILTER:
      return "ended by the engine's content filter";
    default:
      return "failed";
  }
}
