/** A session's events folded into what a page shows: messages, turns, calls, notices. */
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { milliseconds, statusError } from "./errors.js";
import { Channel, type Event, type InputAccepted } from "./gen/backchannel/v1/event_pb.js";
import type { Snapshot } from "./gen/backchannel/v1/frame_pb.js";
import {
  Delivery,
  FinishReason,
  type Message,
  Role,
  Scheduling,
  type Timing,
  type ToolCall,
  ToolCallOutcome,
  type ToolResult,
  type Turn,
  type Usage,
  type UserMessage,
} from "./gen/backchannel/v1/session_pb.js";

/** A message that was said. */
export interface MessageView {
  readonly kind: "message";
  /** Empty if it came without. */
  readonly frameId: string;
  readonly text: string;
  readonly delivery: Delivery;
  /** Its event; undefined if it came by a snapshot, or from another session. */
  readonly seq: bigint | undefined;
}

/** A result that came after its call had ended. */
export interface LateResult {
  readonly result: ToolResult;
  /** Whether the model is told, with a later turn. */
  readonly told: boolean;
}

/** A tool call, from its first letter to its end. */
export interface CallView {
  readonly callId: string;
  readonly name: string;
  /** The arguments as far as they have come; whole once `state` is not `writing`. */
  argumentsText: string;
  /** `dropped`: the turn was stopped before the call was whole; nobody was asked to run it. */
  state: "writing" | "open" | "over" | "dropped";
  /** Where it stands in the turn's text: UTF-16 units from its start. */
  readonly textIndex: number;
  /** By the server's clock, in milliseconds; undefined before the call is whole. */
  idleDeadlineMs: number | undefined;
  deadlineMs: number | undefined;
  /** 0 to 1, as the runner reported. */
  fraction: number | undefined;
  note: string;
  /** What has come of its result, while it comes in parts: JSON values, or pieces of a text. */
  parts: string[];
  outcome: ToolCallOutcome;
  result: ToolResult | undefined;
  /** When the model is told a result that its turn did not wait for; else UNSPECIFIED. */
  scheduling: Scheduling;
  /** A later turn has been told the result. */
  told: boolean;
  /** Why it was cancelled, e.g. `INTERRUPTED`. */
  cancelled: string;
  /** Results that came after its end. */
  late: LateResult[];
}

/** Where the time of a turn went, in milliseconds. */
export interface TimingView {
  readonly queuedMs: number | undefined;
  readonly firstTokenMs: number | undefined;
  readonly perTokenMs: number | undefined;
  readonly maxGapMs: number | undefined;
  /** How long it waited for readers to say what they had seen. */
  readonly pausedMs: number | undefined;
  readonly totalMs: number | undefined;
}

/** One answer. */
export interface TurnView {
  readonly kind: "turn";
  readonly turnId: string;
  /** The messages that it answers. None if it began by itself. */
  readonly frameIds: readonly string[];
  /** The tools of earlier turns whose results the model is told with it. */
  readonly tells: readonly string[];
  readonly model: string;
  text: string;
  /** Code points in `text`: what displayed offsets count in. */
  textChars: number;
  reasoning: string;
  readonly calls: CallView[];
  /** Until which code point each event had brought the text; the newest at the end. */
  marks: { readonly seq: bigint; readonly chars: number }[];
  /** Output tokens in the log so far. */
  tokens: number;
  /** FINISH_REASON_UNSPECIFIED while it runs. */
  finishReason: FinishReason;
  /** How much of `text` stays in the context, in code points, where that is not all of it. */
  keptChars: number | undefined;
  /** It was stopped: no text follows. */
  stopped: boolean;
  /** Generation went on after an owner was lost, for this reason. */
  recovered: string;
  usage: Usage | undefined;
  timing: TimingView | undefined;
  /** Why it failed, for people. */
  error: string;
  /** By the server's clock, in milliseconds; undefined if it came by a snapshot. */
  startedMs: number | undefined;
  firstDeltaMs: number | undefined;
  lastDeltaMs: number | undefined;
  /** Goes up with every change. */
  revision: number;
}

/** Something to tell between the messages. */
export interface NoticeView {
  readonly kind: "notice";
  readonly text: string;
}

export type ItemView = MessageView | TurnView | NoticeView;

/** How many code points a string has. */
export function countChars(text: string): number {
  let count = text.length;
  for (let index = 1; index < text.length; index += 1) {
    if (isPair(text, index)) {
      count -= 1;
      index += 1;
    }
  }
  return count;
}

/** The UTF-16 index of a code point, counted from `from` (an index). */
export function indexOfChar(text: string, chars: number, from = 0): number {
  let index = from;
  for (let left = chars; left > 0 && index < text.length; left -= 1) {
    index += isPair(text, index + 1) ? 2 : 1;
  }
  return index;
}

// Whether the two units around this index are one code point.
function isPair(text: string, index: number): boolean {
  const [high, low] = [text.charCodeAt(index - 1), text.charCodeAt(index)];
  return high >= 0xd800 && high <= 0xdbff && low >= 0xdc00 && low <= 0xdfff;
}

/** The text of a message. */
export function textOf(message: Pick<UserMessage, "parts"> | undefined): string {
  return (message?.parts ?? [])
    .map((part) => (part.content.case === "text" ? part.content.value : ""))
    .join("");
}

/** Everything that happened, in the order it is read in. Feed it events and snapshots. */
export class Transcript {
  /** What was said, oldest first. Messages that wait for their turn are not here. */
  items: ItemView[] = [];
  /** Messages that wait for their turn, in order. */
  queued: MessageView[] = [];
  /** The turn that runs. */
  running: TurnView | undefined;
  /** Why the session was closed; empty while it lives. */
  closed = "";
  /** The last event taken. */
  seq = 0n;
  readonly #turns = new Map<string, TurnView>();
  readonly #calls = new Map<string, { turn: TurnView; call: CallView }>();

  /** The newest turn, running or not. */
  get lastTurn(): TurnView | undefined {
    return this.items.findLast((item) => item.kind === "turn");
  }

  turn(turnId: string): TurnView | undefined {
    return this.#turns.get(turnId);
  }

  /** Whether a call waits for its result, of whatever turn. */
  get callsOpen(): boolean {
    return [...this.#calls.values()].some(({ call }) => call.state === "open");
  }

  /** Replaces everything by a snapshot. */
  reset(snapshot: Snapshot): void {
    this.items = [];
    this.#turns.clear();
    this.#calls.clear();
    this.running = undefined;
    this.seq = snapshot.seq;
    this.#recall(snapshot.session?.config?.history ?? []);
    for (const turn of snapshot.turns) {
      if (turn.input) {
        this.items.push(messageView(turn.frameId, turn.input));
      }
      for (const message of turn.furtherInputs) {
        this.items.push(messageView("", message));
      }
      const view = this.#turnOf(turn, snapshot);
      this.items.push(view);
      if (turn.finishReason === FinishReason.UNSPECIFIED) {
        this.running = view;
      }
    }
    this.queued = snapshot.queued.map((accepted) => queuedView(accepted));
  }

  /** Takes one event. Kinds that it does not know are passed over. */
  apply(event: Event): void {
    this.seq = event.seq;
    const { kind } = event;
    const timeMs = event.time ? timestampMs(event.time) : 0;
    switch (kind.case) {
      case "sessionOpened":
        this.#recall(kind.value.session?.config?.history ?? []);
        break;
      case "inputAccepted":
        this.queued.push(queuedView(kind.value, event.seq));
        break;
      case "inputWithdrawn":
        this.#unqueue(kind.value.frameId);
        break;
      case "turnStarted": {
        const { turnId, frameIds, callIds, model } = kind.value;
        for (const frameId of frameIds) {
          const message = this.#unqueue(frameId);
          if (message) {
            this.items.push(message);
          }
        }
        const turn = newTurn(turnId, frameIds, model, this.#tell(callIds));
        turn.startedMs = timeMs;
        this.#turns.set(turnId, turn);
        this.items.push(turn);
        this.running = turn;
        break;
      }
      case "outputDelta": {
        const { turnId, channel, text, offset, tokenCount } = kind.value;
        this.#change(this.#turns.get(turnId), (turn) => {
          if (channel === Channel.REASONING) {
            turn.reasoning += text;
          } else {
            turn.text += text;
            turn.textChars = offset + countChars(text);
            turn.marks.push({ seq: event.seq, chars: turn.textChars });
          }
          turn.tokens += tokenCount;
          turn.firstDeltaMs ??= timeMs;
          turn.lastDeltaMs = timeMs;
        });
        break;
      }
      case "toolCallStarted": {
        const { turnId, callId, name } = kind.value;
        this.#change(this.#turns.get(turnId), (turn) => {
          this.#addCall(turn, newCall(callId, name, turn.text.length));
        });
        break;
      }
      case "toolCallDelta": {
        const { callId, argumentsFragment, tokenCount } = kind.value;
        this.#changeCall(callId, (call, turn) => {
          call.argumentsText += argumentsFragment;
          turn.tokens += tokenCount;
          turn.firstDeltaMs ??= timeMs;
          turn.lastDeltaMs = timeMs;
        });
        break;
      }
      case "toolCallReady": {
        const { callId, argumentsJson, idleDeadline, deadline } = kind.value;
        this.#changeCall(callId, (call) => {
          call.state = "open";
          call.argumentsText = argumentsJson;
          call.idleDeadlineMs = idleDeadline && timestampMs(idleDeadline);
          call.deadlineMs = deadline && timestampMs(deadline);
        });
        break;
      }
      case "toolCallProgressed": {
        const { callId, fraction, note, idleDeadline } = kind.value;
        this.#changeCall(callId, (call) => {
          call.fraction = fraction;
          call.note = note;
          call.idleDeadlineMs = idleDeadline && timestampMs(idleDeadline);
        });
        break;
      }
      case "toolCallOutput": {
        const { callId, part, idleDeadline } = kind.value;
        this.#changeCall(callId, (call) => {
          call.parts.push(part.case === "content" ? textOf(part.value) : (part.value ?? ""));
          call.idleDeadlineMs = idleDeadline && timestampMs(idleDeadline);
        });
        break;
      }
      case "toolCallCancelled":
        this.#changeCall(kind.value.callId, (call) => {
          call.cancelled = kind.value.reason;
        });
        break;
      case "toolCallFinished": {
        const { callId, outcome, late, result, scheduling } = kind.value;
        this.#changeCall(callId, (call) => {
          if (late) {
            if (result) {
              call.late.push({ result, told: scheduling !== Scheduling.UNSPECIFIED });
            }
            return;
          }
          call.scheduling = scheduling;
          call.state = "over";
          call.outcome = outcome;
          call.result = result;
        });
        break;
      }
      case "turnInterrupted": {
        const { turnId, keptChars } = kind.value;
        this.#change(this.#turns.get(turnId), (turn) => {
          turn.stopped = true;
          turn.keptChars = keptChars;
          dropUnfinished(turn);
        });
        break;
      }
      case "turnTruncated": {
        const { turnId, keptChars } = kind.value;
        this.#change(this.#turns.get(turnId), (turn) => {
          turn.keptChars = keptChars;
        });
        break;
      }
      case "turnRecovered":
        this.#change(this.#turns.get(kind.value.turnId), (turn) => {
          turn.recovered = kind.value.reason || "OWNER_LOST";
        });
        break;
      case "turnFinished": {
        const { turnId, finishReason, usage, timing, error } = kind.value;
        this.#change(this.#turns.get(turnId), (turn) => {
          turn.finishReason = finishReason;
          turn.stopped = true;
          turn.usage = usage;
          turn.timing = timing && timingView(timing);
          turn.error = error ? statusError(error).message : "";
          dropUnfinished(turn);
        });
        if (this.running?.turnId === turnId) {
          this.running = undefined;
        }
        break;
      }
      case "contextTrimmed": {
        const { droppedTurns } = kind.value;
        this.notice(
          `The model no longer sees the ${droppedTurns === 1 ? "oldest turn" : `${droppedTurns} oldest turns`}: its context is full.`,
        );
        break;
      }
      case "sessionClosed":
        this.closed = kind.value.reason || "CLOSED";
        break;
    }
  }

  /** Adds a notice of the page's own. */
  notice(text: string): void {
    this.items.push({ kind: "notice", text });
  }

  #turnOf(turn: Turn, snapshot: Snapshot): TurnView {
    const model = snapshot.session?.config?.model ?? "";
    const frameIds = turn.frameId === "" ? [] : [turn.frameId];
    const view = newTurn(turn.turnId, frameIds, model, this.#tell(turn.callIds));
    const over = turn.finishReason !== FinishReason.UNSPECIFIED;
    view.text = turn.text;
    view.textChars = countChars(turn.text);
    view.reasoning = turn.reasoning;
    view.finishReason = turn.finishReason;
    view.stopped = over;
    view.usage = turn.usage;
    view.timing = turn.timing && timingView(turn.timing);
    view.error = turn.error ? statusError(turn.error).message : "";
    view.marks.push({ seq: snapshot.seq, chars: view.textChars });
    if (over && turn.keptChars < view.textChars) {
      view.keptChars = turn.keptChars;
    }
    for (const call of turn.toolCalls) {
      this.#addCall(view, callOf(call, indexOfChar(turn.text, call.textOffset), over));
    }
    this.#turns.set(turn.turnId, view);
    return view;
  }

  /** Calls whose results a turn is told: their names. */
  #tell(callIds: readonly string[]): string[] {
    const names = callIds.map((callId) => {
      this.#changeCall(callId, (call) => {
        call.told = true;
      });
      return this.#calls.get(callId)?.call.name ?? "a tool";
    });
    return [...new Set(names)];
  }

  /** What took place elsewhere, before this session. */
  #recall(history: readonly Message[]): void {
    for (const message of history) {
      const text = textOf(message);
      if (message.role === Role.USER) {
        this.items.push({ kind: "message", frameId: "", text, delivery: Delivery.QUEUE, seq: undefined });
      } else if (message.role === Role.TOOL) {
        this.#changeCall(message.callId, (call) => {
          call.parts.push(text);
        });
      } else {
        const turn = newTurn(`history ${this.items.length}`, [], "", []);
        turn.text = text;
        turn.textChars = countChars(text);
        turn.finishReason = FinishReason.STOP;
        turn.stopped = true;
        for (const call of message.toolCalls) {
          const view = callOf(call, text.length, true);
          view.state = "over";
          view.outcome ||= ToolCallOutcome.COMPLETED;
          this.#addCall(turn, view);
        }
        this.items.push(turn);
      }
    }
  }

  #addCall(turn: TurnView, call: CallView): void {
    turn.calls.push(call);
    this.#calls.set(call.callId, { turn, call });
  }

  #change(turn: TurnView | undefined, change: (turn: TurnView) => void): void {
    if (turn) {
      change(turn);
      turn.revision += 1;
    }
  }

  #changeCall(callId: string, change: (call: CallView, turn: TurnView) => void): void {
    const found = this.#calls.get(callId);
    if (found) {
      change(found.call, found.turn);
      found.turn.revision += 1;
    }
  }

  #unqueue(frameId: string): MessageView | undefined {
    const index = this.queued.findIndex((message) => message.frameId === frameId);
    return index < 0 ? undefined : this.queued.splice(index, 1)[0];
  }
}

function messageView(
  frameId: string,
  message: UserMessage | undefined,
  seq: bigint | undefined = undefined,
): MessageView {
  const delivery = message?.delivery ?? Delivery.UNSPECIFIED;
  return { kind: "message", frameId, text: textOf(message), delivery, seq };
}

function queuedView(accepted: InputAccepted, seq?: bigint): MessageView {
  return messageView(accepted.frameId, accepted.message, seq);
}

function timingView(timing: Timing): TimingView {
  const ms = (duration: Parameters<typeof milliseconds>[0] | undefined) =>
    duration && milliseconds(duration);
  return {
    queuedMs: ms(timing.queued),
    firstTokenMs: ms(timing.timeToFirstToken),
    perTokenMs: ms(timing.timePerOutputToken),
    maxGapMs: ms(timing.maxGap),
    pausedMs: ms(timing.paused),
    totalMs: ms(timing.total),
  };
}

function newTurn(
  turnId: string,
  frameIds: readonly string[],
  model: string,
  tells: readonly string[],
): TurnView {
  return {
    kind: "turn",
    turnId,
    frameIds,
    tells,
    model,
    text: "",
    textChars: 0,
    reasoning: "",
    calls: [],
    marks: [],
    tokens: 0,
    finishReason: FinishReason.UNSPECIFIED,
    keptChars: undefined,
    stopped: false,
    recovered: "",
    usage: undefined,
    timing: undefined,
    error: "",
    startedMs: undefined,
    firstDeltaMs: undefined,
    lastDeltaMs: undefined,
    revision: 0,
  };
}

function newCall(callId: string, name: string, textIndex: number): CallView {
  return {
    callId,
    name,
    textIndex,
    argumentsText: "",
    state: "writing",
    idleDeadlineMs: undefined,
    deadlineMs: undefined,
    fraction: undefined,
    note: "",
    parts: [],
    outcome: ToolCallOutcome.UNSPECIFIED,
    result: undefined,
    scheduling: Scheduling.UNSPECIFIED,
    told: false,
    cancelled: "",
    late: [],
  };
}

function callOf(call: ToolCall, textIndex: number, turnOver: boolean): CallView {
  const view = newCall(call.callId, call.name, textIndex);
  view.argumentsText = call.argumentsJson;
  view.idleDeadlineMs = call.idleDeadline && timestampMs(call.idleDeadline);
  view.deadlineMs = call.deadline && timestampMs(call.deadline);
  view.outcome = call.outcome;
  view.result = call.result;
  if (call.outcome !== ToolCallOutcome.UNSPECIFIED) {
    view.state = "over";
  } else if (call.deadline) {
    view.state = "open";
  } else if (turnOver) {
    view.state = "dropped";
  }
  return view;
}

function dropUnfinished(turn: TurnView): void {
  for (const call of turn.calls) {
    if (call.state === "writing") {
      call.state = "dropped";
    }
  }
}
