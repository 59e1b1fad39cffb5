/** Where one types, and decides what becomes of it. */
import type { VNode } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Delivery, ToolDisposition } from "@backchannel/client";
import type { Chat } from "./chat.js";
import { Icon } from "./icon.js";
import { Queue } from "./timeline.js";

const MOST_ROWS = 8;
const STEERING = "At the end of its sentence or tool round, with all that it has said";

export function Composer({ chat, onSaid }: { chat: Chat; onSaid: () => void }): VNode {
  const [text, setText] = useState("");
  const box = useRef<HTMLTextAreaElement>(null);
  const { speaking } = chat;
  const { over } = chat.link;
  const some = text.trim() !== "";
  const answers = chat.transcript.running !== undefined || chat.painter.behind;

  useEffect(() => {
    if (chat.returned && !some) {
      setText(chat.returned.text);
    }
    chat.returned = undefined;
  }, [chat.returned]);
  useEffect(() => {
    // Not on touch screens, where it would bring the keyboard up.
    if (matchMedia("(pointer: fine)").matches) {
      box.current?.focus();
    }
  }, [chat.sessionId]);

  const say = (delivery: Delivery): void => {
    if (some && !over && !chat.creating) {
      setText("");
      onSaid();
      void chat.say(text, delivery);
      box.current?.focus();
    }
  };

  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      say(speaking && (event.ctrlKey || event.metaKey) ? Delivery.INTERRUPT : Delivery.QUEUE);
    }
  };

  return (
    <div class="composer">
      <Queue chat={chat} />
      <div class="box">
        <label class="unseen" for="say">
          Your message
        </label>
        <textarea
          id="say"
          ref={box}
          rows={Math.min(MOST_ROWS, text.split("\n").length)}
          value={text}
          disabled={over}
          placeholder={over ? "This chat is over" : answers ? "Type while it speaks…" : "Say something…"}
          aria-describedby="keys"
          onInput={({ currentTarget }) => setText(currentTarget.value)}
          onKeyDown={onKeyDown}
        />
        {speaking ? (
          <button
            type="button"
            class="round stop"
            aria-label="Stop"
            title={answers ? "Stop (Esc): what is on the screen stays" : "Take the message back (Esc)"}
            onClick={() => void chat.stop()}
          >
            <Icon name="stop" />
          </button>
        ) : (
          <button
            type="button"
            class="round send"
            aria-label="Send"
            title="Send (Enter)"
            disabled={!some || over}
            onClick={() => say(Delivery.QUEUE)}
          >
            <Icon name="send" />
          </button>
        )}
      </div>
      <div class="below">
        {chat.editing && (
          <p class="keys">
            Said anew in a new chat; this one stays as it is.{" "}
            <button type="button" class="quiet" onClick={() => chat.keep()}>
              Never mind
            </button>
          </p>
        )}
        {speaking && !some && chat.transcript.running && chat.transcript.callsOpen && (
          <button
            type="button"
            class="quiet"
            title="The tool goes on; the model is told what it found with your next message"
            onClick={() => void chat.stop(ToolDisposition.LET_FINISH)}
          >
            Stop, but let the tool finish
          </button>
        )}
        {speaking && some ? (
          <div class="choices" role="group" aria-label="When to say it">
            <button type="button" class="primary" onClick={() => say(Delivery.QUEUE)}>
              After this <kbd>↵</kbd>
            </button>
            <button type="button" onClick={() => say(Delivery.INTERRUPT)}>
              Redirect now <kbd>Ctrl ↵</kbd>
            </button>
            <button type="button" title={STEERING} onClick={() => say(Delivery.STEER)}>
              Steer
            </button>
          </div>
        ) : (
          <p id="keys" class="keys">
            {speaking ? (
              <>
                <kbd>Esc</kbd> {answers ? "stops it and keeps what you see" : "takes the message back"}
              </>
            ) : (
              <>
                <kbd>Enter</kbd> sends, <kbd>Shift Enter</kbd> begins a line
              </>
            )}
          </p>
        )}
      </div>
    </div>
  );
}
