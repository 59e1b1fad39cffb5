/** The page, put together. */
import type { VNode } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Banner, ConnectionPill } from "./connection.js";
import { Drawer } from "./drawer.js";
import { Icon, type IconName } from "./icon.js";
import { Inspector } from "./inspector.js";
import { SettingsForm } from "./settings-form.js";
import { Timeline } from "./timeline.js";

export type Panel = "none" | "events" | "settings" | "chats";

// This near to the end counts as at the end.
const NEAR_PX = 48;

/** The one chat of this page, and a call of this component whenever it has changed. */
function useChat(): Chat {
  const [, setCount] = useState(0);
  const ref = useRef<Chat>(undefined);
  ref.current ??= new Chat(() => setCount((count) => count + 1));
  return ref.current;
}

/** Shows the newest, where something was said; what else there is, is read from its beginning. */
function showNewest(element: HTMLElement): void {
  if (element.querySelector(".timeline")) {
    element.scrollTop = element.scrollHeight;
  }
}

export function App(): VNode {
  const chat = useChat();
  const [panel, setPanel] = useState<Panel>("none");
  const { scroller, atEnd, toEnd } = useStickyEnd(chat.sessionId);
  const toggle = (wanted: Panel) => () => setPanel(panel === wanted ? "none" : wanted);

  useEffect(() => {
    const { theme } = chat.settings;
    document.documentElement.dataset["theme"] = theme;
  }, [chat.settings.theme]);

  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      if (event.key !== "Escape" || event.isComposing || event.defaultPrevented) {
        return;
      }
      // Beside a panel, too, the box says that it stops the answer.
      const inBox = document.activeElement?.id === "say";
      if (panel !== "none" && !(inBox && chat.speaking)) {
        setPanel("none");
      } else if (chat.speaking) {
        event.preventDefault();
        void chat.stop();
      }
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [panel]);

  return (
    <div class="app" data-panel={panel} data-speaking={chat.speaking}>
      <a class="skip" href="#say" onClick={(event) => {
        event.preventDefault();
        document.getElementById("say")?.focus();
      }}>
        Skip to the message box
      </a>
      <header class="top">
        <h1>Backchannel</h1>
        <ModelPicker chat={chat} />
        <ConnectionPill chat={chat} />
        <nav aria-label="Page">
          <button type="button" class="quiet" onClick={() => chat.fresh()} title="Begin a new chat">
            <Icon name="new" />
            <span>New</span>
          </button>
          <IconButton label="Chats" icon="list" pressed={panel === "chats"} onClick={toggle("chats")} />
          <IconButton label="Raw events" icon="events" pressed={panel === "events"} onClick={toggle("events")} />
          <IconButton label="Settings" icon="settings" pressed={panel === "settings"} onClick={toggle("settings")} />
        </nav>
      </header>
      <main class="scroller" ref={scroller} tabIndex={-1} aria-label="Conversation">
        <Timeline chat={chat} />
      </main>
      <footer class="bottom">
        {!atEnd && (
          <button type="button" class="to-end" onClick={toEnd}>
            <Icon name="down" /> To the newest
          </button>
        )}
        <Banner chat={chat} />
        <Composer chat={chat} onSaid={toEnd} />
      </footer>
      {panel === "events" && (
        <Drawer title="Raw events" onClose={toggle("events")} wide>
          <Inspector chat={chat} />
        </Drawer>
      )}
      {panel === "settings" && (
        <Drawer title="Settings" onClose={toggle("settings")}>
          <SettingsForm chat={chat} />
        </Drawer>
      )}
      {panel === "chats" && (
        <Drawer title="Chats" onClose={toggle("chats")}>
          <Chats chat={chat} onPick={toggle("chats")} />
        </Drawer>
      )}
      <div class="toasts" role="status">
        {chat.toaster.toast && (
          <p class={chat.toaster.toast.bad ? "toast bad" : "toast"}>
            {chat.toaster.toast.text}
            <button type="button" class="quiet" aria-label="Dismiss" onClick={() => chat.toaster.dismiss()}>
              ✕
            </button>
          </p>
        )}
      </div>
      <div class="unseen" aria-live="polite" data-testid="announcer">
        {chat.scene.announcement}
      </div>
    </div>
  );
}

/** Follows the newest text, but only while the reader is at the end. */
function useStickyEnd(sessionId: string) {
  const scroller = useRef<HTMLElement>(null);
  const sticky = useRef(true);
  const lastTop = useRef(0);
  const [atEnd, setAtEnd] = useState(true);

  useEffect(() => {
    const element = scroller.current;
    if (!element) {
      return undefined;
    }
    const onScroll = (): void => {
      const near = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_PX;
      // Only a reader scrolls up; growing text never does.
      if (near) {
        sticky.current = true;
      } else if (element.scrollTop < lastTop.current) {
        sticky.current = false;
      }
      lastTop.current = element.scrollTop;
      setAtEnd(near || sticky.current);
    };
    element.addEventListener("scroll", onScroll, { passive: true });
    const resized = new ResizeObserver(() => {
      if (sticky.current) {
        showNewest(element);
      }
    });
    resized.observe(element);
    return () => {
      element.removeEventListener("scroll", onScroll);
      resized.disconnect();
    };
  }, []);

  useEffect(() => {
    sticky.current = true;
    setAtEnd(true);
  }, [sessionId]);

  useLayoutEffect(() => {
    const element = scroller.current;
    if (element && sticky.current) {
      showNewest(element);
    }
  });

  const toEnd = (): void => {
    sticky.current = true;
    setAtEnd(true);
    scroller.current?.scrollTo({ top: scroller.current.scrollHeight });
  };
  return { scroller, atEnd, toEnd };
}

function ModelPicker({ chat }: { chat: Chat }): VNode {
  const { conversation } = chat;
  const models = chat.models.all;
  const hint = conversation
    ? "Another model begins a new chat: a session keeps the model it was made with."
    : "The model to talk to";
  return (
    <label class="model" title={hint}>
      <span class="unseen">Model</span>
      <select
        value={chat.model}
        disabled={!models}
        onChange={({ currentTarget }) => {
          chat.set({ model: currentTarget.value });
          if (conversation) {
            chat.fresh();
          }
        }}
      >
        {!models && <option value="">{chat.models.error ? "no models" : "…"}</option>}
        {models && chat.model !== "" && !models.some(({ name }) => name === chat.model) && (
          <option value={chat.model}>{chat.model}</option>
        )}
        {models?.map(({ name }) => (
          <option key={name} value={name}>
            {name}
          </option>
        ))}
      </select>
      <Icon name="chevron" />
    </label>
  );
}

function Chats({ chat, onPick }: { chat: Chat; onPick: () => void }): VNode {
  if (chat.shelf.chats.length === 0) {
    return <p class="faint">No chats yet. They are remembered in this browser alone.</p>;
  }
  return (
    <>
      <p class="faint">
        Remembered in this browser alone. Whoever has a chat’s address can read it and write in it.
      </p>
      <ul class="chats">
        {chat.shelf.chats.map(({ sessionId, title, model, atMs }) => (
          <li key={sessionId} class={sessionId === chat.sessionId ? "current" : ""}>
            <a href={`#s=${sessionId}`} onClick={onPick} aria-current={sessionId === chat.sessionId}>
              <strong>{title || "Untitled"}</strong>
              <small>
                {model} · {new Date(atMs).toLocaleString()}
              </small>
            </a>
            <button
              type="button"
              class="quiet"
              aria-label={`Delete ${title}`}
              title="Delete, here and on the server"
              onClick={() => void chat.forget(sessionId)}
            >
              <Icon name="bin" />
            </button>
          </li>
        ))}
      </ul>
    </>
  );
}

function IconButton(props: {
  label: string;
  icon: IconName;
  pressed: boolean;
  onClick: () => void;
}): VNode {
  return (
    <button
      type="button"
      class="quiet icon"
      aria-label={props.label}
      aria-pressed={props.pressed}
      title={props.label}
      onClick={props.onClick}
    >
      <Icon name={props.icon} />
    </button>
  );
}
