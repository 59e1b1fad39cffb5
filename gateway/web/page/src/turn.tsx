/** One answer: its text as far as it is painted, its tool calls, and what it cost. */
import type { VNode } from "preact";
import { useState } from "preact/hooks";
import { FinishReason, type TurnView, countChars } from "@backchannel/client";
import { CallCard } from "./call-card.js";
import { Copy } from "./copy.js";
import { endingOf } from "./ending.js";
import { Icon } from "./icon.js";
import { Markdown } from "./markdown.js";
import { memo } from "./memo.js";
import { Dots } from "./timeline.js";

interface Props {
  turn: TurnView;
  revision: number;
  /** How much of the text is on the screen, in UTF-16 units. */
  shown: number;
  painting: boolean;
  stopping: boolean;
  lost: boolean;
  /** The server's clock while the turn or a call of it runs, in steps; else 0. */
  nowMs: number;
  isLast: boolean;
  onCancel: (callId: string) => void;
}

export const TurnBlock = memo(
  (props: Props): VNode => {
    const { turn, shown, painting, nowMs } = props;
    const running = turn.finishReason === FinishReason.UNSPECIFIED;
    const pieces = piecesOf(turn, shown);
    const silent = pieces.length === 0 && turn.reasoning === "";
    const speaks = (running && !turn.stopped && !turn.calls.some(({ state }) => state === "open")) || painting;
    return (
      <article class={speaks ? "turn speaking" : "turn"} aria-busy={running} data-turn={turn.turnId}>
        <h2 class="unseen">{turn.model || "The model"} said</h2>
        {turn.tells.length > 0 && (
          <p class="notice" role="note">
            {turn.frameIds.length === 0 ? "Began by itself" : "Told meanwhile"}: {turn.tells.join(", ")}{" "}
            {turn.tells.length === 1 ? "has" : "have"} answered
          </p>
        )}
        {turn.reasoning !== "" && (
          <details class="reasoning" open={running && turn.text === ""}>
            <summary>Thinking</summary>
            <p>{turn.reasoning}</p>
          </details>
        )}
        {silent && running && !props.stopping && (
          <Dots label={props.lost ? "Waiting for the connection" : "Waiting for the first word"} />
        )}
        {pieces.map((piece) =>
          piece.kind === "text" ? (
            <Markdown key={piece.key} text={piece.text} />
          ) : (
            <CallCard
              key={piece.call.callId}
              call={piece.call}
              nowMs={nowMs}
              outlives={!running && piece.call.state === "open"}
              onCancel={() => props.onCancel(piece.call.callId)}
            />
          ),
        )}
        {turn.recovered !== "" && (
          <p class="ending">Its server was lost in the middle; another one went on.</p>
        )}
        <Ending turn={turn} shown={shown} painting={painting} stopping={props.stopping} />
        <Figures turn={turn} shown={shown} painting={painting} lost={props.lost} />
      </article>
    );
  },
  (before, after) =>
    before.turn === after.turn &&
    before.revision === after.revision &&
    before.shown === after.shown &&
    before.painting === after.painting &&
    before.stopping === after.stopping &&
    before.lost === after.lost &&
    before.nowMs === after.nowMs,
);

type Piece =
  | { readonly kind: "text"; readonly key: number; readonly text: string }
  | { readonly kind: "call"; readonly call: TurnView["calls"][number] };

function piecesOf(turn: TurnView, shown: number): Piece[] {
  const pieces: Piece[] = [];
  let from = 0;
  const text = (to: number): void => {
    const part = turn.text.slice(from, Math.min(to, shown));
    if (part.trim() !== "") {
      pieces.push({ kind: "text", key: from, text: part });
    }
    from = Math.max(from, to);
  };
  for (const call of turn.calls) {
    text(call.textIndex);
    if (call.textIndex <= shown || turn.stopped) {
      pieces.push({ kind: "call", call });
    }
  }
  text(turn.text.length);
  return pieces;
}

function Ending(props: { turn: TurnView; shown: number; painting: boolean; stopping: boolean }): VNode | null {
  const { turn, painting } = props;
  const [open, setOpen] = useState(false);
  if (props.stopping && !turn.stopped) {
    return <p class="ending">stopping…</p>;
  }
  if (turn.finishReason === FinishReason.UNSPECIFIED || painting) {
    return null;
  }
  const truncated = turn.keptChars !== undefined && turn.keptChars < turn.textChars;
  const said = endingOf(turn) || (turn.keptChars === undefined ? "" : "stopped");
  if (said === "" && !truncated) {
    return null;
  }
  const rest = truncated ? turn.text.slice(props.shown) : "";
  const bad = turn.error !== "" || turn.finishReason === FinishReason.ERROR;
  return (
    <div class={bad ? "ending bad" : "ending"}>
      <Icon name={bad ? "alert" : "cut"} />
      <span>
        {said}
        {turn.error !== "" && `: ${turn.error}`}
        {truncated && ` here · ${countChars(rest)} more characters had come and are forgotten`}
      </span>
      {truncated && (
        <button type="button" class="quiet" aria-expanded={open} onClick={() => setOpen(!open)}>
          {open ? "hide them" : "show them"}
        </button>
      )}
      {open && <pre class="dropped">{rest}</pre>}
    </div>
  );
}

/** Where the time went, and what it cost. Room for it is there from the beginning. */
function Figures(props: { turn: TurnView; shown: number; painting: boolean; lost: boolean }): VNode {
  const { turn, painting, lost } = props;
  const whole = props.shown === turn.text.length;
  const running = turn.finishReason === FinishReason.UNSPECIFIED;
  const groups = running ? [liveFigures(turn)] : [timingFigures(turn), usageFigures(turn, whole)];
  return (
    <div class="figures" data-testid="figures">
      {!running && <Strip turn={turn} />}
      {groups.filter((figures) => figures.length > 0).map((figures, index) => (
        <span key={index} class="group">
          {figures.map(([name, value, hint]) => (
            <span key={name} class="figure" title={hint}>
              {name !== "" && <span class="figure-name">{name} </span>}
              {value}
            </span>
          ))}
        </span>
      ))}
      {lost && <span class="figure bad">no connection</span>}
      {!running && !painting && turn.text !== "" && <Copy what="answer" text={turn.text} />}
    </div>
  );
}

type Figure = readonly [name: string, value: string, hint: string];

function liveFigures(turn: TurnView): Figure[] {
  const figures: Figure[] = [];
  if (turn.startedMs !== undefined && turn.firstDeltaMs !== undefined) {
    figures.push(["first token", ms(turn.firstDeltaMs - turn.startedMs), "From the start of the turn"]);
  }
  const spanMs = (turn.lastDeltaMs ?? 0) - (turn.firstDeltaMs ?? 0);
  if (spanMs > 0 && turn.tokens > 1) {
    figures.push(["", perSecond(spanMs / (turn.tokens - 1)), "So far"]);
  }
  if (turn.tokens > 0) {
    figures.push(["generated", `${turn.tokens}`, "Tokens so far"]);
  }
  return figures;
}

function timingFigures({ timing }: TurnView): Figure[] {
  const figures: Figure[] = [];
  if (timing?.queuedMs !== undefined) {
    figures.push(["queued", ms(timing.queuedMs), "From your message until the engine took it up"]);
  }
  if (timing?.firstTokenMs !== undefined) {
    figures.push(["first token", ms(timing.firstTokenMs), "From your message to the first word"]);
  }
  if (timing?.perTokenMs) {
    figures.push(["", perSecond(timing.perTokenMs), "Mean, after the first token, tool waits left out"]);
  }
  if (timing?.maxGapMs !== undefined) {
    figures.push(["gap", ms(timing.maxGapMs), "The largest between two pieces, tool waits left out"]);
  }
  if (timing?.pausedMs) {
    figures.push(["paused", ms(timing.pausedMs), "It waited until what it had said was seen"]);
  }
  return figures;
}

/** @param whole Whether all of the answer is on this screen. */
function usageFigures({ usage }: TurnView, whole: boolean): Figure[] {
  if (!usage) {
    return [];
  }
  const about = usage.estimated ? "≈ " : "";
  return [
    ["generated", `${about}${usage.generatedTokens}`, "Tokens that the engine computed"],
    whole
      ? ["displayed", `${usage.deliveredTokens}`, "Tokens on this screen: all that were sent"]
      : ["displayed", `${usage.displayedTokens}`, "Tokens on a screen when the turn ended"],
    ["wasted", `${about}${usage.wastedTokens}`, "Tokens computed after a stop, which nobody gets"],
  ];
}

/** The turn's time as a bar: waiting, first token, the rest. */
function Strip({ turn }: { turn: TurnView }): VNode | null {
  const { timing } = turn;
  if (!timing?.totalMs || timing.firstTokenMs === undefined) {
    return null;
  }
  const queued = timing.queuedMs ?? 0;
  const first = Math.max(0, timing.firstTokenMs - queued);
  const rest = Math.max(0, timing.totalMs - first);
  const whole = queued + first + rest || 1;
  const width = (part: number) => (100 * part) / whole;
  const parts = [
    ["strip-queued", 0, width(queued)],
    ["strip-first", width(queued), width(first)],
    ["strip-rest", width(queued + first), width(rest)],
  ] as const;
  return (
    <svg class="strip" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label={`Took ${ms(timing.totalMs)}`}>
      {parts.map(([name, x, size]) => (
        <rect key={name} class={name} x={x} width={size} height="6" />
      ))}
    </svg>
  );
}

function ms(value: number): string {
  if (value < 1) {
    return "<1 ms";
  }
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(value < 10_000 ? 1 : 0)} s`;
}

function perSecond(perTokenMs: number): string {
  const rate = 1000 / perTokenMs;
  return `${rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString()} tok/s`;
}
