/** How long to wait before one more attempt. */
export interface BackoffOptions {
  /** The longest wait before the first repeated attempt, in milliseconds. */
  readonly initialMs: number;
  /** The longest wait of all, in milliseconds. */
  readonly maxMs: number;
  /** A number from 0 (included) to 1 (excluded). */
  readonly random: () => number;
}

export const defaultBackoff: BackoffOptions = {
  initialMs: 250,
  maxMs: 10_000,
  random: Math.random,
};

/**
 * A schedule for trying again: longer from one attempt to the next, and never the same for two
 * clients that were cut together ("equal jitter": half of each wait is certain, half is chance).
 */
export class Backoff {
  #longestMs: number;

  constructor(private readonly options: BackoffOptions = defaultBackoff) {
    this.#longestMs = options.initialMs;
  }

  /** It works again. */
  reset(): void {
    this.#longestMs = this.options.initialMs;
  }

  /** The next wait in milliseconds: never less than what the server asked for. */
  next(retryAfterMs = 0): number {
    const delayMs = this.#longestMs * (0.5 + 0.5 * this.options.random());
    this.#longestMs = Math.min(this.#longestMs * 2, this.options.maxMs);
    return retryAfterMs + delayMs;
  }
}
