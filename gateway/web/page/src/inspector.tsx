/** What crosses the wire, for developers. */
import type { VNode } from "preact";
import { useState } from "preact/hooks";
import type { Chat } from "./chat.js";
import type { Entry } from "./record.js";

export function Inspector({ chat }: { chat: Chat }): VNode {
  const [open, setOpen] = useState<number>();
  const [quiet, setQuiet] = useState(true);
  const entries = chat.record.entries.filter(({ name }) => !quiet || name !== "heartbeat");
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
        <dd data-testid="reconnects">{chat.reconnects}</dd>
        <dt>On its way up</dt>
        <dd>{conversation?.pending.length ?? 0}</dd>
      </dl>
      <label class="check">
        <input type="checkbox" checked={quiet} onChange={() => setQuiet(!quiet)} /> leave heartbeats out
      </label>
      {entries.length === 0 && <p class="faint">Nothing has come yet.</p>}
      <ol class="entries">
        {entries.toReversed().map((entry) => (
          <Line key={entry.id} entry={entry} open={open === entry.id} onToggle={() => setOpen(open === entry.id ? undefined : entry.id)} />
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
        <span class="name">{entry.name}</span>
        <time>{new Date(entry.atMs).toISOString().slice(11, 23)}</time>
      </button>
      {open && <pre>{entry.json()}</pre>}
    </li>
  );
}
