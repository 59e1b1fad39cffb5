/** Time as the client sees it: a monotonic clock that one can wait by. Tests bring their own. */
export interface Time {
  /** Milliseconds since some fixed moment; never goes back. */
  now(): number;
  /** Waits. Returns early, without an error, when `signal` aborts. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

// A longer delay overflows setTimeout and fires at once.
const LONGEST_SLEEP_MS = 2 ** 31 - 1;

/** The clock of the browser, or of Node. */
export const systemTime: Time = {
  now: () => performance.now(),
  sleep: (ms, signal) =>
    new Promise((resolve) => {
      if (signal?.aborted) {
        resolve();
        return;
      }
      const done = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, Math.min(ms, LONGEST_SLEEP_MS));
      signal?.addEventListener("abort", done);
    }),
};

/** A wait that somebody else can cut short. */
export class Doze {
  #waking = new AbortController();

  constructor(
    private readonly time: Time,
    private readonly end?: AbortSignal,
  ) {}

  /** Waits for `ms`, or until `wake` or the end. */
  async sleep(ms: number): Promise<void> {
    this.#waking = new AbortController();
    const signals = this.end ? [this.#waking.signal, this.end] : [this.#waking.signal];
    await this.time.sleep(ms, AbortSignal.any(signals));
  }

  /** Ends the current wait. */
  wake(): void {
    this.#waking.abort();
  }
}
