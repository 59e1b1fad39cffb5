/** What crosses the wire, for developers. */
import type { VNode } from "preact";
import { useRef, useState } from "preact/hooks";
import type { Chat } from "./chat.js";
import type { Entry } from "./record.js";

export function Inspector({ chat }: { chat: Chat }): VNode {
  const [open, setOpen] = useState<number>();
  const [quiet, setQuiet] = useState(true);
  // What is being read stays where it is: newer entries wait until it is closed.
  const until = useRef(0);
  const wanted = chat.record.entries.filter(({ name }) => !quiet || name !== "heartbeat");
  const entries = open === undefined ? wanted : wanted.filter(({ id }) => id <= until.current);
  const newer = wanted.length - entries.length;
  const toggle = (id: number): void => {
    if (open === undefined) {
      until.current = chat.record.entries.at(-1)?.id ?? 0;
    }
    setOpen(open === id ? undefined : id);
  };
  const { conversation } = chat;
  return (
    <div class="inspector">
      <dl class="facts">
        <dt>Session</dt>
        <dd>
          <code>{conversation ? `${conversation.sessionId.slice(0, 6)}…` : "none yet"}</code>
        </dd>
        <dt>Last event</dt>
        <dd data-testid="seq">{conversation ? String(conversation.seq) : "–"}</dd>
        <dt>Reconnects</dt>
        <dd data-testid="reconnects">{chat.link.reconnects}</dd>
        <dt>Gaps</dt>
        <dd data-testid="gaps">{chat.link.gaps}</dd>
        <dt>On its way up</dt>
        <dd>{conversation?.pending.length ?? 0}</dd>
      </dl>
      <label class="check">
        <input type="checkbox" checked={quiet} onChange={() => setQuiet(!quiet)} />
        <span>Leave heartbeats out</span>
      </label>
      {newer > 0 && (
        <button type="button" onClick={() => setOpen(undefined)}>
          {newer} newer
        </button>
      )}
      {entries.length === 0 && <p class="faint">Nothing has come yet.</p>}
      <ol class="entries">
        {entries.toReversed().map((entry) => (
          <Line key={entry.id} entry={entry} open={open === entry.id} onToggle={() => toggle(entry.id)} />
        ))}
      </ol>
    </div>
  );
}

function Line({ entry, open, onToggle }: { entry: Entry; open: boolean; onToggle: () => void }): VNode {
  const arrow = { down: "↓", up: "↑", link: "·" }[entry.way];
  return (
    <li class={entry.way}>
      <button type="button" class="line" aria-expanded={open} onClick={onToggle}>
        <span class="way">{arrow}</span>
        <span class="seq">{entry.seq}</span>
        <span class="name">
          {entry.name} <span class="brief">{entry.brief}</span>
        </span>
        <time>{new Date(entry.atMs).toISOString().slice(11, 23)}</time>
      </button>
      {open && <pre>{entry.json()}</pre>}
    </li>
  );
}
