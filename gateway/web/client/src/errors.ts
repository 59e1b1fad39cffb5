/** What can go wrong, by what the caller can do about it. */
import { Code, ConnectError } from "@connectrpc/connect";
import { type Message, createRegistry } from "@bufbuild/protobuf";
import { type GenMessage } from "@bufbuild/protobuf/codegenv2";
import { type Duration, anyUnpack } from "@bufbuild/protobuf/wkt";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
  file_google_rpc_error_details,
} from "./gen/google/rpc/error_details_pb.js";
import type { Status } from "./gen/google/rpc/status_pb.js";

/** The types that a status may carry, for reading and writing proto-JSON. */
export const registry = createRegistry(file_google_rpc_error_details);

const DOMAIN = "backchannel";
// What a connection that breaks looks like: nobody who speaks the protocol said it.
const CUT_CODES: ReadonlySet<Code> = new Set([
  Code.Unavailable,
  Code.Unknown,
  Code.Internal,
  Code.Canceled,
  Code.Aborted,
  Code.DeadlineExceeded,
]);
const GONE_REASONS: ReadonlySet<string> = new Set([
  "SESSION_NOT_FOUND",
  "SESSION_CLOSED",
  "SESSION_ID_RETIRED",
]);
const CURSOR_REASONS: ReadonlySet<string> = new Set(["CURSOR_TRIMMED", "CURSOR_BEYOND_END"]);

/** Anything that the client raises on its own account. */
export class ClientError extends Error {
  override name = "ClientError";
}

/** The conversation was closed, or the session has ended. */
export class ClosedError extends ClientError {
  override name = "ClosedError";
}

/** What the server, or the network on the way to it, said. */
export class StatusError extends ClientError {
  override name = "StatusError";
  /** The gRPC status code. */
  readonly code: Code;
  /** `ErrorInfo.reason`, e.g. `MODEL_NOT_FOUND`; empty if no Backchannel said it. */
  readonly reason: string;
  /** The request field at fault, as a dotted path; empty if it is none. */
  readonly field: string;
  /** Further facts, e.g. `{earliest_seq: "17"}`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** How long the server asks to wait before trying again; absent if it does not. */
  readonly retryAfterMs: number | undefined;

  constructor(code: Code, message: string, details: Details = {}) {
    super(message || Code[code]);
    this.code = code;
    this.reason = details.reason ?? "";
    this.field = details.field ?? "";
    this.metadata = details.metadata ?? {};
    this.retryAfterMs = details.retryAfterMs;
  }

  /** Whether the same may work later without anybody changing it. */
  get transient(): boolean {
    if (this.reason === "") {
      return CUT_CODES.has(this.code);
    }
    if (this.code === Code.ResourceExhausted) {
      return this.retryAfterMs !== undefined;
    }
    return this.code === Code.Unavailable;
  }

  /** Whether the session does not exist (any more): deleted, expired, or never there. */
  get gone(): boolean {
    return GONE_REASONS.has(this.reason);
  }

  /** Whether the events after the cursor can't be had; a snapshot can. */
  get cursorLost(): boolean {
    return CURSOR_REASONS.has(this.reason);
  }
}

/** A turn ended with an error. */
export class TurnFailedError extends ClientError {
  override name = "TurnFailedError";

  constructor(
    message: string,
    /** What was said until then; not a complete answer. */
    readonly text: string,
  ) {
    super(message);
  }
}

/** Throw it in a tool to tell the model, in your words, that the tool failed. */
export class ToolFailedError extends Error {
  override name = "ToolFailedError";

  constructor(
    message: string,
    /** For programs; free. At most 128 bytes. */
    readonly code = "",
  ) {
    super(message);
  }
}

interface Details {
  reason?: string;
  field?: string;
  metadata?: Record<string, string>;
  retryAfterMs?: number;
}

/** Whatever was thrown by a call, as a StatusError. */
export function callError(thrown: unknown): StatusError {
  if (thrown instanceof StatusError) {
    return thrown;
  }
  const error = ConnectError.from(thrown, Code.Unknown);
  return new StatusError(
    error.code,
    error.rawMessage,
    details((schema) => error.findDetails(schema)[0]),
  );
}

/** A status that came inside a message, as a StatusError. */
export function statusError(status: Status | undefined): StatusError {
  const code = status?.code && Code[status.code] !== undefined ? (status.code as Code) : Code.Unknown;
  const find = <T extends Message>(schema: GenMessage<T>): T | undefined => {
    for (const detail of status?.details ?? []) {
      const found = anyUnpack(detail, schema);
      if (found) {
        return found as T;
      }
    }
    return undefined;
  };
  return new StatusError(code, status?.message ?? "", details(find));
}

function details(find: <T extends Message>(schema: GenMessage<T>) => T | undefined): Details {
  const found: Details = {};
  const info = find(ErrorInfoSchema);
  if (info?.domain === DOMAIN) {
    found.reason = info.reason;
    found.metadata = info.metadata;
  }
  const field = find(BadRequestSchema)?.fieldViolations[0]?.field;
  if (field) {
    found.field = field;
  }
  const delay = find(RetryInfoSchema)?.retryDelay;
  if (delay) {
    found.retryAfterMs = milliseconds(delay);
  }
  return found;
}

/** A protobuf duration in milliseconds. */
export function milliseconds(duration: Pick<Duration, "seconds" | "nanos">): number {
  return Number(duration.seconds) * 1000 + duration.nanos / 1e6;
}
