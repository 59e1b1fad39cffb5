/** Running the tool calls of a conversation: once, whoever else is attached. */
import { type MessageInitShape, create } from "@bufbuild/protobuf";
import { ClosedError, ToolFailedError } from "./errors.js";
import { type ClientFrame, ClientFrameSchema } from "./gen/backchannel/v1/frame_pb.js";
import {
  Scheduling,
  SideEffect,
  type ToolCall,
  type ToolSpec,
  ToolSpecSchema,
  ToolResultSchema,
} from "./gen/backchannel/v1/session_pb.js";
import type { ToolCallReady } from "./gen/backchannel/v1/event_pb.js";
import { newId } from "./ids.js";
import type { Outbox } from "./outbox.js";
import type { FrameStore } from "./storage.js";

/** What a tool is told about its call. */
export interface ToolContext {
  readonly callId: string;
  /** Aborts when nobody waits for the result any more: stop, and undo what can be undone. */
  readonly signal: AbortSignal;
  /**
   * A sign of life; it moves the call's idle deadline.
   *
   * @param fraction 0 to 1; left out if it is not known.
   * @param note For people. At most 1 KiB.
   */
  progress(fraction?: number, note?: string): void;
}

/** A function that the model may call. */
export interface Tool {
  readonly spec: MessageInitShape<typeof ToolSpecSchema>;
  /** When the model is told a result that its turn did not wait for. Absent: when it is idle. */
  readonly scheduling?: Scheduling;
  /**
   * @param args The arguments, as parsed from the model's JSON: not validated.
   * @returns Whatever JSON can say. An async generator sends its result in parts: text at once, laid
   *     end to end; other values as the items of a list, each when the next has come.
   * @throws ToolFailedError To tell the model that it failed. Any other error tells it only that.
   */
  run(args: Readonly<Record<string, unknown>>, context: ToolContext): unknown;
}

/**
 * Makes sure that one of all attached pages runs a call.
 *
 * Waits until this page may, runs `work`, and lets go when that is done. Returns without having run
 * it when `signal` aborts first. When a page that holds the claim dies, the next one gets it.
 */
export type Claim = (
  name: string,
  signal: AbortSignal,
  /** `waited` tells that another page had it before: the call may be over by now. */
  work: (waited: boolean) => Promise<void>,
) => Promise<void>;

/** Claims by the Web Locks API, which reaches over all tabs of an origin. */
export function webLocksClaim(locks: LockManager): Claim {
  return async (name, signal, work) => {
    try {
      const taken = await locks.request(name, { ifAvailable: true }, async (lock) => {
        if (lock && !signal.aborted) {
          await work(false);
        }
        return lock === null;
      });
      if (taken) {
        await locks.request(name, { signal }, () => work(true));
      }
    } catch (error) {
      if (!signal.aborted) {
        throw error;
      }
    }
  };
}

/** For one page alone: everything may run. */
export const soleClaim: Claim = async (_name, signal, work) => {
  if (!signal.aborted) {
    await work(false);
  }
};

export function defaultClaim(): Claim {
  // Only secure contexts have it, and Node since 24.
  const locks = globalThis.navigator?.locks as LockManager | undefined;
  return locks ? webLocksClaim(locks) : soleClaim;
}

export interface ToolRunnerOptions {
  readonly sessionId: string;
  readonly tools: readonly Tool[];
  readonly outbox: Outbox;
  readonly store: FrameStore;
  readonly claim: Claim;
  /** Asks the server whether a call still waits for its result. */
  readonly isOpen: (callId: string) => Promise<boolean>;
  /** Told of errors that are a tool's own fault and not for the model. */
  readonly onError: (error: unknown) => void;
}

/** The open calls that this side can run. Calls of other tools are somebody else's. */
export class ToolRunner {
  readonly #running = new Map<string, AbortController>();

  constructor(private readonly options: ToolRunnerOptions) {}

  /** A call is open: run it, if it is ours and not on its way already. */
  ready(call: ToolCall | ToolCallReady): void {
    const tool = this.options.tools.find((candidate) => candidate.spec.name === call.name);
    if (!tool || this.#running.has(call.callId) || this.options.outbox.hasResult(call.callId)) {
      return;
    }
    const controller = new AbortController();
    this.#running.set(call.callId, controller);
    const { sessionId, claim, onError } = this.options;
    claim(`backchannel/${sessionId}/${call.callId}`, controller.signal, (waited) =>
      this.#run(tool, call, controller.signal, waited),
    )
      .catch(onError)
      .finally(() => this.#running.delete(call.callId));
  }

  /** The call is over: nobody waits for it any more. */
  stop(callId: string): void {
    this.#running.get(callId)?.abort();
    this.options.store.clearStarted(this.options.sessionId, callId);
  }

  /**
   * Ends a call from this side, with an error that tells the model why.
   *
   * @returns Once the server has it.
   */
  async fail(callId: string, message: string, code: string): Promise<void> {
    this.#running.get(callId)?.abort();
    await this.#send(callId, { case: "error", value: { message, code } });
  }

  /** Stops everything; what is open stays open for whoever comes next. */
  close(): void {
    for (const controller of this.#running.values()) {
      controller.abort();
    }
  }

  async #run(
    tool: Tool,
    call: ToolCall | ToolCallReady,
    signal: AbortSignal,
    waited: boolean,
  ): Promise<void> {
    const { sessionId, store } = this.options;
    // The page before may have answered, and its answer not have come round to this one yet.
    if (signal.aborted || (waited && !(await this.options.isOpen(call.callId)))) {
      return;
    }
    const spec = create(ToolSpecSchema, tool.spec);
    if (spec.sideEffect === SideEffect.IRREVERSIBLE && store.wasStarted(sessionId, call.callId)) {
      // The page that ran it is gone, and did not say how far it had come.
      const message = `${spec.name} was started and its runner was lost: it may or may not have run`;
      await this.#send(call.callId, { case: "error", value: { message, code: "RUNNER_LOST" } });
      return;
    }
    store.markStarted(sessionId, call.callId);
    const outcome = await this.#outcome(tool, spec, call, signal);
    if (!signal.aborted) {
      await this.#send(call.callId, outcome, tool.scheduling);
    }
  }

  async #outcome(
    tool: Tool,
    spec: ToolSpec,
    call: ToolCall | ToolCallReady,
    signal: AbortSignal,
  ): Promise<Outcome> {
    const progress = (fraction?: number, note = ""): void => {
      if (!signal.aborted) {
        const value = fraction === undefined ? { note } : { note, fraction };
        this.options.outbox.post(
          `progress ${call.callId}`,
          create(ClientFrameSchema, {
            frame: { case: "toolProgress", value: { callId: call.callId, ...value } },
          }),
        );
      }
    };
    try {
      const args = JSON.parse(call.argumentsJson) as Record<string, unknown>;
      const result = await tool.run(args, { callId: call.callId, signal, progress });
      if (isAsyncIterable(result)) {
        return await this.#collect(result, tool, call.callId, signal);
      }
      return json(result);
    } catch (error) {
      if (error instanceof ToolFailedError) {
        return { case: "error", value: { message: error.message, code: error.code } };
      }
      if (!signal.aborted) {
        this.options.onError(error);
      }
      return { case: "error", value: { message: `${spec.name} failed`, code: "TOOL_BROKEN" } };
    }
  }

  /** Sends all parts but the last, which is returned: the server wants to know that it is the last. */
  async #collect(
    values: AsyncIterable<unknown>,
    { scheduling }: Tool,
    callId: string,
    signal: AbortSignal,
  ): Promise<Outcome> {
    let held: Outcome | undefined;
    let texts = true;
    for await (const value of values) {
      if (signal.aborted) {
        break;
      }
      const part = typeof value === "string" ? content(value) : json(value);
      texts &&= typeof value === "string";
      const ready = texts ? part : held;
      if (ready) {
        await this.#send(callId, ready, scheduling, true);
      }
      held = texts ? undefined : part;
    }
    return held ?? { case: "content", value: {} };
  }

  async #send(
    callId: string,
    outcome: Outcome,
    scheduling = Scheduling.UNSPECIFIED,
    partial = false,
  ): Promise<void> {
    const frame: ClientFrame = create(ClientFrameSchema, {
      frameId: newId(),
      frame: { case: "toolResult", value: create(ToolResultSchema, { callId, outcome, scheduling, partial }) },
    });
    try {
      await this.options.outbox.send(frame);
    } catch (error) {
      if (!(error instanceof ClosedError)) {
        throw error;
      }
    }
  }
}

function isAsyncIterable(value: unknown): value is AsyncIterable<unknown> {
  return typeof value === "object" && value !== null && Symbol.asyncIterator in value;
}

function json(value: unknown): Outcome {
  return { case: "json", value: JSON.stringify(value) ?? "null" };
}

function content(text: string): Outcome {
  return { case: "content", value: { parts: [{ content: { case: "text", value: text } }] } };
}

type Outcome = NonNullable<MessageInitShape<typeof ToolResultSchema>["outcome"]>;
