/** What a person has set, and the chats they had: kept in this browser alone. */
import { DEFAULT_TOOLS } from "./tools.js";

export type Theme = "auto" | "light" | "dark";

export interface Settings {
  readonly theme: Theme;
  /** The model for new chats; empty: the server's default. */
  readonly model: string;
  readonly system: string;
  /** Empty: the engine's own. */
  readonly maxTokens: string;
  readonly temperature: string;
  /** `key=value` pairs, set apart by blanks. */
  readonly engineOptions: string;
  /** The names of the tools that new chats bring along. */
  readonly tools: readonly string[];
}

/** A chat that one may go back to. */
export interface Chat {
  readonly sessionId: string;
  readonly title: string;
  readonly model: string;
  readonly atMs: number;
  /** The chat that it was made from; absent or empty: none. */
  readonly from?: string;
}

const DEFAULTS: Settings = {
  theme: "auto",
  model: "",
  system: "",
  maxTokens: "",
  temperature: "",
  engineOptions: "",
  tools: DEFAULT_TOOLS,
};
const SETTINGS = "backchannel/settings";
const CHATS = "backchannel/chats";
const MOST_CHATS = 30;
const LONGEST_TITLE = 60;

export function loadSettings(): Settings {
  const kept = read(SETTINGS);
  return isRecord(kept) ? { ...DEFAULTS, ...pick(kept) } : DEFAULTS;
}

export function saveSettings(settings: Settings): void {
  write(SETTINGS, settings);
}

/** The newest first. */
export function loadChats(): Chat[] {
  const kept = read(CHATS);
  return Array.isArray(kept) ? kept.filter(isChat) : [];
}

/** Puts a chat at the head of the list. */
export function rememberChat(chat: Chat): Chat[] {
  const title = chat.title.trim().replace(/\s+/g, " ").slice(0, LONGEST_TITLE);
  const others = loadChats().filter((each) => each.sessionId !== chat.sessionId);
  const chats = [{ ...chat, title }, ...others].slice(0, MOST_CHATS);
  write(CHATS, chats);
  return chats;
}

export function forgetChat(sessionId: string): Chat[] {
  const chats = loadChats().filter((each) => each.sessionId !== sessionId);
  write(CHATS, chats);
  return chats;
}

/** Reads `a=1 b=two`; what has no `=` is passed over. */
export function parseOptions(text: string): Record<string, string> {
  return Object.fromEntries(
    text
      .split(/[\s,]+/)
      .map((pair) => pair.split("=", 2))
      .filter((pair): pair is [string, string] => pair.length === 2 && pair[0] !== ""),
  );
}

// Only what is of the right type: an older page may have written otherwise.
function pick(kept: Record<string, unknown>): Partial<Settings> {
  const known = Object.entries(DEFAULTS).filter(([name, value]) => {
    const found = kept[name];
    return typeof found === typeof value && Array.isArray(found) === Array.isArray(value);
  });
  return Object.fromEntries(known.map(([name]) => [name, kept[name]]));
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isChat(value: unknown): value is Chat {
  return isRecord(value) && typeof value["sessionId"] === "string" && typeof value["title"] === "string";
}

// Even to name the storage may be forbidden, and throws then.
function read(key: string): unknown {
  try {
    return JSON.parse(localStorage.getItem(key) ?? "null");
  } catch {
    return null;
  }
}

function write(key: string, value: unknown): void {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // Full or forbidden: then it is not kept.
  }
}
