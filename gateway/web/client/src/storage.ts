/**
 * Where frames wait until they are receipted. A frame that was written here before it was sent can
 * be sent again by the next page under the same id, and is applied once.
 */
import { base64Decode, base64Encode } from "@bufbuild/protobuf/wire";

/** A client frame as it is kept. */
export interface StoredFrame {
  readonly frameId: string;
  /** The frame's bytes, frame id included. */
  readonly bytes: Uint8Array;
}

/** Keeps frames beyond the life of a page. All calls are synchronous: a page can die any time. */
export interface FrameStore {
  /** The frames of a session that have no receipt yet, oldest first. */
  load(sessionId: string): StoredFrame[];
  put(sessionId: string, frame: StoredFrame): void;
  remove(sessionId: string, frameId: string): void;
  /** Notes that a tool call is being run. */
  markStarted(sessionId: string, callId: string): void;
  /** Whether some page has begun to run a tool call. */
  wasStarted(sessionId: string, callId: string): boolean;
  /** Forgets the note. */
  clearStarted(sessionId: string, callId: string): void;
}

/** The part of `Storage` that is used. */
export type KeyValueStorage = Pick<
  Storage,
  "getItem" | "setItem" | "removeItem" | "key" | "length"
>;

// The server remembers frame ids for a day. An older frame might be applied a second time.
const LONGEST_KEPT_MS = 23 * 60 * 60 * 1000;
const FRAMES = "backchannel/frame/";
const CALLS = "backchannel/call/";

/** Frames in `localStorage`, shared by all tabs of the origin. */
export class WebFrameStore implements FrameStore {
  #lastMs = 0;

  /**
   * @param storage Where. Full or forbidden, it is passed over: frames are then sent all the same,
   *     but do not outlive the page.
   * @param nowMs The wall clock.
   */
  constructor(
    private readonly storage: KeyValueStorage,
    private readonly nowMs: () => number = Date.now,
  ) {
    this.#sweep();
  }

  load(sessionId: string): StoredFrame[] {
    const prefix = `${FRAMES}${sessionId}/`;
    return this.#keys()
      .filter((key) => key.startsWith(prefix))
      .map((key) => ({ key, ...this.#read(key) }))
      .filter((entry) => entry.savedMs > this.nowMs() - LONGEST_KEPT_MS)
      .sort((one, other) => one.savedMs - other.savedMs)
      .flatMap(({ key, value }) => {
        try {
          return [{ frameId: key.slice(prefix.length), bytes: base64Decode(value) }];
        } catch {
          // Not written by us.
          return [];
        }
      });
  }

  put(sessionId: string, frame: StoredFrame): void {
    this.#write(`${FRAMES}${sessionId}/${frame.frameId}`, base64Encode(frame.bytes));
  }

  remove(sessionId: string, frameId: string): void {
    this.#remove(`${FRAMES}${sessionId}/${frameId}`);
  }

  markStarted(sessionId: string, callId: string): void {
    this.#write(`${CALLS}${sessionId}/${callId}`, "");
  }

  wasStarted(sessionId: string, callId: string): boolean {
    return this.#get(`${CALLS}${sessionId}/${callId}`) !== null;
  }

  clearStarted(sessionId: string, callId: string): void {
    this.#remove(`${CALLS}${sessionId}/${callId}`);
  }

  #sweep(): void {
    const oldestMs = this.nowMs() - LONGEST_KEPT_MS;
    for (const key of this.#keys()) {
      if ((key.startsWith(FRAMES) || key.startsWith(CALLS)) && this.#read(key).savedMs < oldestMs) {
        this.#remove(key);
      }
    }
  }

  #keys(): string[] {
    try {
      return Array.from({ length: this.storage.length }, (_, index) => this.storage.key(index) ?? "");
    } catch {
      return [];
    }
  }

  #get(key: string): string | null {
    try {
      return this.storage.getItem(key);
    } catch {
      return null;
    }
  }

  #read(key: string): { savedMs: number; value: string } {
    const [savedMs = "", value = ""] = (this.#get(key) ?? "").split(".");
    return { savedMs: Number(savedMs) || 0, value };
  }

  #write(key: string, value: string): void {
    // Frames of one millisecond keep their order.
    this.#lastMs = Math.max(this.nowMs(), this.#lastMs + 1);
    try {
      this.storage.setItem(key, `${this.#lastMs}.${value}`);
    } catch {
      // Full, or forbidden: see the constructor.
    }
  }

  #remove(key: string): void {
    try {
      this.storage.removeItem(key);
    } catch {
      // Forbidden: then nothing was written either.
    }
  }
}

/** A `Storage` that ends with the page. */
export function memoryStorage(): KeyValueStorage {
  const entries = new Map<string, string>();
  return {
    get length() {
      return entries.size;
    },
    key: (index) => [...entries.keys()][index] ?? null,
    getItem: (key) => entries.get(key) ?? null,
    setItem: (key, value) => void entries.set(key, value),
    removeItem: (key) => void entries.delete(key),
  };
}

/** `localStorage` where there is one, else memory. */
export function defaultStorage(): KeyValueStorage {
  try {
    // Reading the property alone may be forbidden.
    return globalThis.localStorage ?? memoryStorage();
  } catch {
    return memoryStorage();
  }
}
