/** A panel beside the chat, or over it where there is no room. */
import type { ComponentChildren, VNode } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Icon } from "./icon.js";

interface Props {
  title: string;
  wide?: boolean;
  onClose: () => void;
  children: ComponentChildren;
}

export function Drawer({ title, wide = false, onClose, children }: Props): VNode {
  const panel = useRef<HTMLElement>(null);
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    const before = document.activeElement;
    heading.current?.focus();
    return () => {
      // Back to where it was opened from, but not out of somewhere else.
      const { activeElement } = document;
      const ours = activeElement === document.body || panel.current?.contains(activeElement);
      if (before instanceof HTMLElement && ours) {
        before.focus();
      }
    };
  }, []);
  return (
    <aside ref={panel} class={wide ? "drawer wide" : "drawer"} aria-label={title}>
      <div class="drawer-top">
        <h2 ref={heading} tabIndex={-1}>
          {title}
        </h2>
        <button type="button" class="quiet icon" aria-label={`Close ${title}`} onClick={onClose}>
          <Icon name="close" />
        </button>
      </div>
      <div class="drawer-body">{children}</div>
    </aside>
  );
}
