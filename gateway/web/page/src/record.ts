/** What came and went, for the raw view. */
import {
  type ClientFrame,
  type Connection,
  type Event,
  EventSchema,
  FinishReason,
  type Receipt,
  ReceiptSchema,
  ReceiptStatus,
  type ServerFrame,
  ServerFrameSchema,
  ToolCallOutcome,
  registry,
  textOf,
} from "@backchannel/client";
import { type DescMessage, type MessageShape, toJson } from "@bufbuild/protobuf";

/** One line of it. */
export interface Entry {
  readonly id: number;
  readonly atMs: number;
  /** An event's number; empty for what has none. */
  readonly seq: string;
  readonly name: string;
  readonly way: "down" | "up" | "link";
  /** The little of its content that says most; may be empty. */
  readonly brief: string;
  /** Its content as proto-JSON, made when somebody looks. */
  readonly json: () => string;
}

const MOST_ENTRIES = 500;
const LONGEST_BRIEF = 60;

export class Record {
  entries: Entry[] = [];
  #id = 0;

  frame(frame: ServerFrame): void {
    for (const event of frame.events) {
      this.#add("down", event.kind.case ?? "unknown", String(event.seq), briefOf(event), () =>
        json(EventSchema, event),
      );
    }
    for (const name of ["snapshot", "heartbeat", "goAway", "receipt"] as const) {
      if (frame[name]) {
        this.#add("down", name, "", "", () => json(ServerFrameSchema, frame));
      }
    }
  }

  receipt(receipt: Receipt, frame: ClientFrame | undefined): void {
    const what = frame?.frame.case ?? "frame";
    const status = ReceiptStatus[receipt.status]?.toLowerCase() ?? "";
    this.#add("up", `${what} → ${status}`, "", "", () => json(ReceiptSchema, receipt));
  }

  connection(connection: Connection): void {
    const said =
      connection.state === "lost" ? `lost: ${connection.error.message}` : connection.state;
    this.#add("link", said, "", "", () =>
      JSON.stringify(connection, (_key, value: unknown) =>
        typeof value === "bigint" ? String(value) : value instanceof Error ? String(value) : value,
      2),
    );
  }

  #add(way: Entry["way"], name: string, seq: string, brief: string, write: () => string): void {
    this.#id += 1;
    this.entries.push({ id: this.#id, atMs: Date.now(), way, name, seq, brief, json: write });
    if (this.entries.length > MOST_ENTRIES) {
      this.entries = this.entries.slice(-MOST_ENTRIES / 2);
    }
  }
}

function briefOf({ kind }: Event): string {
  switch (kind.case) {
    case "inputAccepted":
      return JSON.stringify(textOf(kind.value.message)).slice(0, LONGEST_BRIEF);
    case "outputDelta":
      return JSON.stringify(kind.value.text).slice(0, LONGEST_BRIEF);
    case "toolCallDelta":
      return kind.value.argumentsFragment.slice(0, LONGEST_BRIEF);
    case "toolCallStarted":
    case "toolCallReady":
      return kind.value.name;
    case "toolCallFinished":
      return ToolCallOutcome[kind.value.outcome]?.toLowerCase() ?? "";
    case "turnInterrupted":
    case "turnTruncated":
      return `kept ${kind.value.keptChars}, dropped ${kind.value.droppedChars}`;
    case "turnFinished":
      return FinishReason[kind.value.finishReason]?.toLowerCase() ?? "";
    default:
      return "";
  }
}

function json<Desc extends DescMessage>(schema: Desc, message: MessageShape<Desc>): string {
  try {
    return JSON.stringify(toJson(schema, message, { registry }), null, 2);
  } catch (error) {
    return `not to be had as JSON: ${String(error)}`;
  }
}
