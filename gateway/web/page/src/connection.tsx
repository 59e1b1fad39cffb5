/** What the page knows of its connection, said as it is. */
import type { VNode } from "preact";
import type { Chat } from "./chat.js";

export function ConnectionPill({ chat }: { chat: Chat }): VNode | null {
  const { kind, text, detail } = stateOf(chat);
  if (kind === "none") {
    return null;
  }
  return (
    <p class={`pill ${kind}`} role="status" title={detail} data-state={kind}>
      <span class="dot" aria-hidden="true" />
      <span class="pill-text">{text}</span>
    </p>
  );
}

interface State {
  readonly kind: "none" | "open" | "connecting" | "lost" | "ended";
  readonly text: string;
  readonly detail: string;
}

function stateOf(chat: Chat): State {
  const { conversation, link } = chat;
  const { connection } = link;
  if (!conversation) {
    return { kind: "none", text: "", detail: "" };
  }
  switch (connection.state) {
    case "open": {
      const times = link.reconnects === 1 ? "once" : `${link.reconnects} times`;
      const detail =
        link.reconnects === 0
          ? "Connected; nothing was lost."
          : link.gaps === 0
            ? `Connected. The connection was lost ${times} and came back, with nothing missed.`
            : `Connected. The connection was lost ${times}; not every event of the time between was still kept.`;
      return { kind: "open", text: "Live", detail };
    }
    case "ended":
      return { kind: "ended", text: "Ended", detail: connection.error?.message ?? "The session was closed." };
    case "lost":
      return {
        kind: "lost",
        text: chat.online ? "Reconnecting" : "Offline",
        detail: connection.error.message,
      };
    default:
      return link.lostAtMs === undefined
        ? { kind: "connecting", text: "Connecting", detail: "" }
        : { kind: "lost", text: chat.online ? "Reconnecting" : "Offline", detail: "" };
  }
}

/** Above the composer, while something is wrong. */
export function Banner({ chat }: { chat: Chat }): VNode | null {
  const { connection } = chat.link;
  if (!chat.conversation) {
    return chat.models.error === "" ? null : (
      <p class="banner bad">
        The server can’t be reached: {chat.models.error}
        <button type="button" onClick={() => void chat.loadModels()}>
          Try again
        </button>
      </p>
    );
  }
  if (connection.state === "ended") {
    const why = connection.error?.gone
      ? "This chat no longer exists on the server: it was deleted, has expired, or the server keeps nothing."
      : connection.error
        ? `The server refuses: ${connection.error.message}`
        : "This chat was closed.";
    return (
      <p class="banner">
        {why}
        <button type="button" onClick={() => chat.fresh()}>
          New chat
        </button>
      </p>
    );
  }
  if (chat.link.lostAtMs === undefined) {
    return null;
  }
  const seconds = Math.max(0, Math.round((performance.now() - chat.link.lostAtMs) / 1000));
  const running = chat.transcript.running !== undefined;
  return (
    <p class="banner bad" data-testid="lost">
      <span>
        {chat.online ? `No connection for ${seconds} s.` : `Offline for ${seconds} s.`}{" "}
        {running
          ? "The answer may be going on at the server; what is missing will be caught up on."
          : "What you say is sent when it is back."}
      </span>
      <button type="button" onClick={() => chat.conversation?.hurry()}>
        Try now
      </button>
    </p>
  );
}
