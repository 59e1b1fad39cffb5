/** The page's few pictures, each one line. */
import type { VNode } from "preact";

const ICONS = {
  new: "M12 5v14M5 12h14",
  list: "M4 6h16M4 12h16M4 18h10",
  events: "M9 6 3 12l6 6M15 6l6 6-6 6",
  settings: "M4 8h9M17 8h3M4 16h3M11 16h9M13 8a2 2 0 1 0 4 0 2 2 0 1 0-4 0M7 16a2 2 0 1 0 4 0 2 2 0 1 0-4 0",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  clock: "M12 7v5l3 2M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18",
  copy: "M8 8h11v12H8zM16 8V4H5v12h3",
  done: "M5 12l5 5 9-10",
  down: "M12 5v14M6 13l6 6 6-6",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  close: "M6 6l12 12M18 6 6 18",
  chevron: "M7 10l5 5 5-5",
  alert: "M12 7v6M12 16.5v.5M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18",
  redirect: "M4 12h10a5 5 0 0 0 5-5V4M4 12l4-4M4 12l4 4",
  again: "M19 12a7 7 0 1 1-2-5M19 3v5h-5",
  cut: "M4 12h9M17 5v14",
  tool: "M14 7a4 4 0 0 1 5-4l-2 3 1 1 3-2a4 4 0 0 1-5 5l-8 8a2 2 0 0 1-3-3l8-8z",
} as const;

export type IconName = keyof typeof ICONS;

export function Icon({ name }: { name: IconName }): VNode {
  return (
    <svg class={`icon-${name}`} viewBox="0 0 24 24" width="18" height="18" aria-hidden="true">
      <path d={ICONS[name]} />
    </svg>
  );
}
