/** A tool call as a card, from its first letter to its result. */
import type { ComponentChildren, VNode } from "preact";
import { useState } from "preact/hooks";
import { type CallView, Scheduling, ToolCallOutcome, type ToolResult } from "@backchannel/client";
import { Icon } from "./icon.js";
import { TOOLS } from "./tools.js";

interface Props {
  call: CallView;
  /** The server's clock while the call runs; else 0. */
  nowMs: number;
  /** The answer has ended, and the call goes on. */
  outlives: boolean;
  onCancel: () => void;
}

export function CallCard({ call, nowMs, outlives, onCancel }: Props): VNode {
  const [cancelled, setCancelled] = useState(false);
  const { kind, text } = statusOf(call, cancelled);
  const ours = TOOLS.some(({ spec }) => spec.name === call.name);
  return (
    <section class={`call ${kind}`} aria-label={`Tool call: ${call.name}`} data-testid="call" data-state={kind}>
      <header>
        <Icon name="tool" />
        <strong>{call.name}</strong>
        <span class="call-status">
          {kind === "completed" && <Icon name="done" />}
          {kind === "failed" && <Icon name="alert" />}
          {text}
          {outlives && "; the answer did not wait for it"}
        </span>
        {call.state === "open" && <Countdown call={call} nowMs={nowMs} />}
        {call.state === "open" && (
          <button
            type="button"
            class="quiet"
            disabled={cancelled}
            onClick={() => {
              setCancelled(true);
              onCancel();
            }}
          >
            Cancel
          </button>
        )}
      </header>
      <Row name="asked">
        <pre aria-label="Arguments">
          {pretty(call.argumentsText)}
          {call.state === "writing" && <span class="caret" aria-hidden="true" />}
        </pre>
      </Row>
      {call.state === "open" && !ours && (
        <p class="faint">This page can’t run {call.name}; another client of this session has to.</p>
      )}
      {call.state === "open" && (call.fraction !== undefined || call.note !== "") && (
        <p class="call-progress">
          {call.fraction !== undefined && <progress value={call.fraction} max={1} />}
          <span class="faint">{call.note}</span>
        </p>
      )}
      {call.parts.length > 0 && !call.result && (
        <Row name={call.state === "open" ? "so far" : "result"}>
          <pre aria-label="Result so far">{call.parts.join("")}</pre>
        </Row>
      )}
      {call.result && !wasCancelledHere(call) && (
        <Row name="result">
          <Result result={call.result} />
        </Row>
      )}
      {call.scheduling !== Scheduling.UNSPECIFIED && (
        <p class="faint">{call.told ? "The model was told this later." : TOLD[call.scheduling]}</p>
      )}
      {call.late.map(({ result, told }, index) => (
        <Row key={index} name={told ? "came late; told later" : "too late; not told"} late>
          <Result result={result} />
        </Row>
      ))}
    </section>
  );
}

function Countdown({ call, nowMs }: { call: CallView; nowMs: number }): VNode | null {
  const deadlines = [call.idleDeadlineMs, call.deadlineMs].filter((each) => each !== undefined);
  if (deadlines.length === 0 || nowMs === 0) {
    return null;
  }
  const seconds = Math.max(0, Math.ceil((Math.min(...deadlines) - nowMs) / 1000));
  return (
    <span class={seconds <= 5 ? "countdown soon" : "countdown"} title="Then the server gives this call up">
      <Icon name="clock" />
      <span class="unseen">times out in </span>
      {seconds} s
    </span>
  );
}

function Row(props: { name: string; late?: boolean; children: ComponentChildren }): VNode {
  return (
    <div class={props.late ? "call-row late" : "call-row"}>
      <span class="call-name">{props.name}</span>
      {props.children}
    </div>
  );
}

function Result({ result }: { result: ToolResult }): VNode {
  const { outcome } = result;
  switch (outcome.case) {
    case "error":
      return (
        <p class="bad">
          {outcome.value.message || "failed"} {outcome.value.code && <code>{outcome.value.code}</code>}
        </p>
      );
    case "json":
      return (
        <pre aria-label="Result">
          {pretty(outcome.value)}
        </pre>
      );
    default: {
      const parts = outcome.case === "content" ? outcome.value.parts : [];
      const text = parts.map(({ content }) => (content.case === "text" ? content.value : "")).join("");
      return (
        <pre aria-label="Result">
          {text}
        </pre>
      );
    }
  }
}

function statusOf(call: CallView, cancelled: boolean): { kind: string; text: string } {
  switch (call.state) {
    case "writing":
      return { kind: "writing", text: "being written" };
    case "dropped":
      return { kind: "dropped", text: "not run: the answer was stopped first" };
    case "open":
      return { kind: "open", text: cancelled ? "cancelling…" : "running" };
    default:
      if (wasCancelledHere(call)) {
        return { kind: "cancelled", text: "cancelled by the user" };
      }
      return OVER[call.outcome] ?? { kind: "failed", text: "ended" };
  }
}

/** The button was pressed, on this page or another: for the session that is a failure like any. */
function wasCancelledHere({ outcome, result }: CallView): boolean {
  const said = result?.outcome;
  return outcome === ToolCallOutcome.FAILED && said?.case === "error" && said.value.code === "CANCELLED";
}

const TOLD: Partial<Record<Scheduling, string>> = {
  [Scheduling.WHEN_IDLE]: "The model is told this next.",
  [Scheduling.INTERRUPT]: "The model is told this at once.",
  [Scheduling.SILENT]: "The model is told this with the next message.",
};

const OVER: Partial<Record<ToolCallOutcome, { kind: string; text: string }>> = {
  [ToolCallOutcome.COMPLETED]: { kind: "completed", text: "done" },
  [ToolCallOutcome.FAILED]: { kind: "failed", text: "failed" },
  [ToolCallOutcome.TIMED_OUT]: { kind: "failed", text: "timed out" },
  [ToolCallOutcome.CANCELLED]: { kind: "cancelled", text: "cancelled; it may have run" },
  [ToolCallOutcome.UNKNOWN]: { kind: "failed", text: "lost with its server; it may have run" },
};

/** JSON on one line with air in it; what is no JSON yet as it is. */
function pretty(json: string): string {
  try {
    const value: unknown = JSON.parse(json);
    const indented = JSON.stringify(value, null, 2);
    return indented.length <= 80 ? indented.replace(/\n\s*/g, " ") : indented;
  } catch {
    return json;
  }
}
