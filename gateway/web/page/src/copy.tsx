/** A button that copies a text. */
import type { VNode } from "preact";
import { useState } from "preact/hooks";
import { Icon } from "./icon.js";

const SHOWN_MS = 1500;

/** @param what What it copies, for its name: "code", "answer". */
export function Copy({ what, text }: { what: string; text: string }): VNode {
  const [copied, setCopied] = useState(false);
  return (
    <button
      type="button"
      class="quiet copy"
      aria-label={copied ? "Copied" : `Copy the ${what}`}
      title={`Copy the ${what}`}
      onClick={() => {
        // There is no clipboard where the page came over plain HTTP from elsewhere.
        void navigator.clipboard?.writeText(text).then(
          () => {
            setCopied(true);
            setTimeout(() => setCopied(false), SHOWN_MS);
          },
          () => undefined,
        );
      }}
    >
      <Icon name={copied ? "done" : "copy"} />
    </button>
  );
}
