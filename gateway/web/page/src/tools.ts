/** The tools that this page runs: what a language model is bad at by itself. */
import { SideEffect, type Tool, ToolFailedError } from "@backchannel/client";
import { CalculationError, evaluate } from "./calculator.js";

const SECONDS = (seconds: number) => ({ seconds: BigInt(seconds) });
const LONGEST_TIMER_S = 120;

function schema(properties: Record<string, unknown>, required: string[] = []): string {
  const whole = { additionalProperties: false, properties, type: "object" };
  return JSON.stringify(required.length > 0 ? { ...whole, required } : whole);
}

// Small models get the name of the one argument wrong now and then.
function only(args: Readonly<Record<string, unknown>>, name: string): unknown {
  return args[name] ?? Object.values(args)[0];
}

const calculator: Tool = {
  spec: {
    name: "calculator",
    description: "Evaluates an arithmetic expression: numbers, + - * /, powers, parentheses.",
    parametersJsonSchema: schema(
      { expression: { description: "Such as (3 + 4) * 12.", type: "string" } },
      ["expression"],
    ),
    timeout: SECONDS(10),
    sideEffect: SideEffect.NONE,
  },
  run: (args) => {
    try {
      return { result: evaluate(String(only(args, "expression") ?? "")) };
    } catch (error) {
      if (error instanceof CalculationError) {
        throw new ToolFailedError(error.message, "CALCULATION");
      }
      throw error;
    }
  },
};

const clock: Tool = {
  spec: {
    name: "clock",
    description: "Tells the date and the time.",
    parametersJsonSchema: schema({}),
    timeout: SECONDS(10),
    sideEffect: SideEffect.NONE,
  },
  run: () => ({ time: localIso(new Date()), zone: Intl.DateTimeFormat().resolvedOptions().timeZone }),
};

const timer: Tool = {
  spec: {
    name: "timer",
    description: "Waits for some seconds, then tells that they have passed.",
    parametersJsonSchema: schema(
      { seconds: { description: `1 to ${LONGEST_TIMER_S}.`, type: "number" } },
      ["seconds"],
    ),
    timeout: SECONDS(LONGEST_TIMER_S + 30),
    sideEffect: SideEffect.NONE,
  },
  run: async (args, { signal, progress }) => {
    const seconds = Number(only(args, "seconds"));
    if (!(seconds > 0 && seconds <= LONGEST_TIMER_S)) {
      throw new ToolFailedError(`seconds must be from 1 to ${LONGEST_TIMER_S}`, "SECONDS");
    }
    const beganMs = performance.now();
    for (;;) {
      const passedS = (performance.now() - beganMs) / 1000;
      if (signal.aborted || passedS >= seconds) {
        return { waited_seconds: seconds };
      }
      progress(passedS / seconds, `${Math.ceil(seconds - passedS)} s left`);
      await new Promise((resolve) => setTimeout(resolve, Math.min(1, seconds - passedS) * 1000));
    }
  },
};

/** All of them, by name. */
export const TOOLS: readonly Tool[] = [calculator, clock, timer];

export const DEFAULT_TOOLS: readonly string[] = ["calculator", "clock"];

/** The local time with its distance from UTC, to the second: 2026-03-01T12:00:00+01:00. */
export function localIso(date: Date): string {
  const minutes = -date.getTimezoneOffset();
  const local = new Date(date.getTime() + minutes * 60_000).toISOString().slice(0, 19);
  if (minutes === 0) {
    return `${local}Z`;
  }
  const two = (value: number) => String(Math.trunc(Math.abs(value))).padStart(2, "0");
  return `${local}${minutes < 0 ? "-" : "+"}${two(minutes / 60)}:${two(minutes % 60)}`;
}
