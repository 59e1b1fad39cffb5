/** What was said, oldest first. */
import type { VNode } from "preact";
import { Delivery, type MessageView, type TurnView } from "@backchannel/client";
import type { Chat } from "./chat.js";
import { Icon } from "./icon.js";
import { memo } from "./memo.js";
import { TurnBlock } from "./turn.js";

export function Timeline({ chat }: { chat: Chat }): VNode {
  const { transcript, painter, unsent } = chat;
  const empty = transcript.items.length === 0 && unsent.length === 0 && transcript.queued.length === 0;
  if (empty && !chat.creating) {
    return chat.conversation && chat.link.connection.state === "connecting" ? <Loading /> : <Welcome chat={chat} />;
  }
  const last = transcript.lastTurn;
  // While nothing is being said, what waits is simply next.
  const next = transcript.running
    ? []
    : [...transcript.queued, ...unsent.map((each) => ({ ...each, delivery: Delivery.QUEUE }))];
  const waits = chat.link.lostAtMs === undefined ? "sending…" : "is sent when the connection is back";
  return (
    <div class="timeline">
      {chat.shelf.originOf(chat.sessionId) !== "" && (
        <p class="notice" role="note">
          Another way on from <a href={`#s=${chat.shelf.originOf(chat.sessionId)}`}>the chat before</a>, which is as it was.
        </p>
      )}
      {transcript.items.map((item, index) => {
        if (item.kind === "message") {
          const { seq } = item;
          return (
            <Said
              key={`m${index}`}
              text={item.text}
              delivery={item.delivery}
              state=""
              {...(seq === undefined ? {} : { onEdit: () => chat.edit(seq, item.text) })}
            />
          );
        }
        if (item.kind === "notice") {
          return (
            <p key={`n${index}`} class="notice" role="note">
              {item.text}
            </p>
          );
        }
        const isLast = item === last;
        return (
          <TurnBlock
            key={item.turnId}
            turn={item}
            revision={item.revision}
            shown={painter.indexFor(item)}
            painting={painter.paints(item)}
            stopping={chat.stopping === item.turnId && item === transcript.running}
            lost={item === transcript.running && chat.link.lostAtMs !== undefined}
            nowMs={counts(item, transcript.running) ? Math.floor((chat.conversation?.serverNow() ?? 0) / 250) * 250 : 0}
            isLast={isLast}
            onCancel={(callId) => void chat.cancelCall(callId)}
          />
        );
      })}
      {next.map((message) => (
        <Said key={message.frameId} text={message.text} delivery={message.delivery} state={waits} />
      ))}
      {chat.creating && (
        <div class="turn">
          <Dots label="Beginning a chat" />
        </div>
      )}
    </div>
  );
}

/** Something in it is counted down. */
function counts(turn: TurnView, running: TurnView | undefined): boolean {
  return turn === running || turn.calls.some(({ state }) => state === "open");
}

interface SaidProps {
  text: string;
  delivery: Delivery;
  state: string;
  /** Absent where it can't be said anew. */
  onEdit?: () => void;
}

const Said = memo(
  ({ text, delivery, state, onEdit }: SaidProps): VNode => (
    <div class={state === "" ? "said" : "said sending"}>
      <h2 class="unseen">You said</h2>
      <div class="bubble">{text}</div>
      {delivery === Delivery.INTERRUPT && <small class="faint">redirected</small>}
      {delivery === Delivery.STEER && <small class="faint">steered</small>}
      {onEdit && (
        <button type="button" class="quiet edit" title="In a new chat with the same past; this one stays" onClick={onEdit}>
          Edit and retry
        </button>
      )}
      {state !== "" && <small class="faint">{state}</small>}
    </div>
  ),
  (before, after) => before.text === after.text && before.state === after.state,
);

/** Messages that wait until the answer has ended; each can be taken back. */
export function Queue({ chat }: { chat: Chat }): VNode | null {
  const { transcript, unsent } = chat;
  if (!transcript.running) {
    return null;
  }
  const sending: (Pick<MessageView, "frameId" | "text"> & { sent: boolean })[] = [
    ...transcript.queued.map(({ frameId, text }) => ({ frameId, text, sent: true })),
    ...unsent.map((each) => ({ ...each, sent: false })),
  ];
  if (sending.length === 0) {
    return null;
  }
  return (
    <ol class="queue" aria-label="Waiting for their turn">
      {sending.map(({ frameId, text, sent }) => (
        <li key={frameId}>
          <span class="faint">{sent ? "next" : "sending…"}</span>
          <span class="queued-text">{text}</span>
          <button
            type="button"
            class="quiet"
            disabled={frameId === ""}
            onClick={() => void chat.withdraw(frameId)}
          >
            Take back
          </button>
        </li>
      ))}
    </ol>
  );
}

export function Dots({ label }: { label: string }): VNode {
  return (
    <p class="dots" role="img" aria-label={label}>
      <span />
      <span />
      <span />
    </p>
  );
}

function Loading(): VNode {
  return (
    <div class="timeline">
      <Dots label="Loading the chat" />
    </div>
  );
}

const ABILITIES = [
  ["stop", "Stop it", "In mid-sentence: only what you saw is remembered."],
  ["redirect", "Talk over it", "Redirect it while it speaks, or be next."],
  ["again", "Lose it", "Reload, drop the network, open a second tab: it goes on where it was."],
] as const;

const STARTERS = [
  "Hello! Who are you?",
  "What is (17.5 + 4) * 12?",
  "What time is it?",
];

function Welcome({ chat }: { chat: Chat }): VNode {
  const card = chat.models.named(chat.model);
  if (chat.link.over) {
    return (
      <div class="welcome">
        <h2>Nothing here any more.</h2>
      </div>
    );
  }
  return (
    <div class="welcome">
      <h2>Say something.</h2>
      <ul class="abilities">
        {ABILITIES.map(([icon, name, text]) => (
          <li key={name}>
            <Icon name={icon} />
            <strong>{name}</strong>
            <span>{text}</span>
          </li>
        ))}
      </ul>
      {card && (
        <div class="card-about">
          <strong>{card.name}</strong>
          <p>{card.description}</p>
          <ul class="chips" aria-label="What it can">
            {card.maxContextTokens > 0 && <li>{card.maxContextTokens.toLocaleString()} tokens of context</li>}
            {card.capabilities.map((each) => (
              <li key={each}>{each.replaceAll("_", " ")}</li>
            ))}
          </ul>
        </div>
      )}
      {card && (
        <ul class="starters">
          {STARTERS.map((text) => (
            <li key={text}>
              <button type="button" onClick={() => void chat.say(text, Delivery.QUEUE)}>
                {text}
              </button>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}
