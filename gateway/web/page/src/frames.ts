/** When the page is drawn anew: with the next frame, at most once, and while something counts. */

const TICK_MS = 250;
const FRAME_MS = 16;

export class Frames {
  #frame = 0;
  #lastMs = 0;
  #tick: ReturnType<typeof setTimeout> | undefined;

  /**
   * @param paint Draws, given the page's clock and how long the frame before took; tells whether
   * the next frame has more to draw, or whether something is counted down.
   */
  constructor(private readonly paint: (nowMs: number, elapsedMs: number) => "more" | "counts" | "rests") {}

  /** Has the page drawn with the next frame. */
  ask(): void {
    if (this.#frame === 0) {
      this.#frame = requestAnimationFrame((nowMs) => this.#draw(nowMs));
    }
  }

  #draw(nowMs: number): void {
    this.#frame = 0;
    const elapsedMs = this.#lastMs === 0 ? FRAME_MS : nowMs - this.#lastMs;
    this.#lastMs = nowMs;
    const next = this.paint(nowMs, elapsedMs);
    if (next === "more") {
      this.ask();
      return;
    }
    this.#lastMs = 0;
    clearTimeout(this.#tick);
    if (next === "counts") {
      this.#tick = setTimeout(() => this.ask(), TICK_MS);
    }
  }
}
