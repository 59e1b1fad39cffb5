/**
 * How much of an answer is on the screen.
 *
 * Text comes in bursts and is painted evenly: the more is waiting, the faster, so that the screen is
 * never far behind. What counts as displayed is what was painted, not what has come.
 */
import { type TurnView, indexOfChar } from "@backchannel/client";

// What waits is painted within about this time.
const HORIZON_S = 0.25;
// The end of a text must not creep.
const SLOWEST_CHARS_PER_S = 60;
// After a frame that came late: no leap.
const LONGEST_STEP_S = 0.1;

export class Painter {
  #turn: TurnView | undefined;
  #index = 0;
  #chars = 0;
  #carry = 0;
  #frozen = false;

  /** @param smooth Whether to pace at all; without it all that has come is painted at once. */
  constructor(private readonly smooth: () => boolean) {}

  /** Paints this turn from now on. What it has already said is painted. */
  show(turn: TurnView, paintedChars: number): void {
    this.#turn = turn;
    this.#chars = Math.min(paintedChars, turn.textChars);
    this.#index = indexOfChar(turn.text, this.#chars);
    this.#carry = 0;
    this.#frozen = false;
  }

  /** The turn that is being painted, or was last. */
  get turn(): TurnView | undefined {
    return this.#turn;
  }

  /** How many code points of it are on the screen. */
  get chars(): number {
    return this.#chars;
  }

  /** Whether more of it has come than is on the screen, and is going to be. */
  get behind(): boolean {
    return this.#turn !== undefined && !this.#frozen && this.#chars < this.#end;
  }

  /** Paints no further: somebody said stop. */
  freeze(): void {
    this.#frozen = true;
  }

  /** Goes on: the stop came too late, or was refused. */
  thaw(): void {
    this.#frozen = false;
  }

  /** How much of a turn's text to show, in UTF-16 units. */
  indexFor(turn: TurnView): number {
    if (turn === this.#turn) {
      return this.#index;
    }
    return turn.keptChars === undefined ? turn.text.length : indexOfChar(turn.text, turn.keptChars);
  }

  /** The newest event all of whose text is on the screen. */
  get seq(): bigint {
    const marks = this.#turn?.marks ?? [];
    const shown = marks.findLast(({ chars }) => chars <= this.#chars) ?? marks[0];
    return shown?.seq ?? 0n;
  }

  /**
   * Paints what is due.
   *
   * @returns Whether anything changed.
   */
  step(elapsedMs: number): boolean {
    const turn = this.#turn;
    if (!turn) {
      return false;
    }
    if (turn.keptChars !== undefined && turn.stopped) {
      // The server has the last word on what stays.
      return this.#moveTo(turn, turn.keptChars);
    }
    const waiting = turn.textChars - this.#chars;
    if (this.#frozen || waiting <= 0) {
      this.#carry = 0;
      return false;
    }
    if (!this.smooth()) {
      return this.#moveTo(turn, turn.textChars);
    }
    const seconds = Math.min(elapsedMs / 1000, LONGEST_STEP_S);
    this.#carry += seconds * Math.max(SLOWEST_CHARS_PER_S, waiting / HORIZON_S);
    const whole = Math.min(Math.floor(this.#carry), waiting);
    this.#carry -= whole;
    return this.#moveTo(turn, this.#chars + whole);
  }

  get #end(): number {
    const turn = this.#turn;
    return turn?.stopped ? (turn.keptChars ?? turn.textChars) : (turn?.textChars ?? 0);
  }

  #moveTo(turn: TurnView, chars: number): boolean {
    if (chars === this.#chars) {
      return false;
    }
    this.#index =
      chars > this.#chars
        ? indexOfChar(turn.text, chars - this.#chars, this.#index)
        : indexOfChar(turn.text, chars);
    this.#chars = chars;
    return true;
  }
}
