/**
 * How much of an answer is on the screen.
 *
 * Text comes in bursts and is painted evenly: the more is waiting, the faster, so that the screen is
 * never far behind. What counts as displayed is what was painted, not what has come. When the next
 * turn begins before one is painted, the rest of it is painted in a hurry, and then the next.
 */
import { type TurnView, indexOfChar } from "@backchannel/client";

// What waits is painted within about this time.
const HORIZON_S = 0.25;
// The end of a text must not creep.
const SLOWEST_CHARS_PER_S = 60;
// The same while another turn waits to be painted.
const HURRIED_HORIZON_S = 0.08;
const HURRIED_CHARS_PER_S = 600;
// After a frame that came late: no leap.
const LONGEST_STEP_S = 0.1;

export class Painter {
  #turn: TurnView | undefined;
  // Turns that are to be painted after it.
  #next: TurnView[] = [];
  #index = 0;
  #chars = 0;
  #carry = 0;
  #frozen: TurnView | undefined;

  /** @param smooth Whether to pace at all; without it all that has come is painted at once. */
  constructor(private readonly smooth: () => boolean) {}

  /** Paints this turn from now on. What it has already said is painted. */
  show(turn: TurnView, paintedChars: number): void {
    this.#turn = turn;
    this.#next = [];
    this.#chars = Math.min(paintedChars, turn.textChars);
    this.#index = indexOfChar(turn.text, this.#chars);
    this.#carry = 0;
    this.#frozen = undefined;
  }

  /** Paints this turn, which has just begun, as soon as the one before it is painted. */
  follow(turn: TurnView): void {
    this.#next.push(turn);
  }

  /** The turn that is being painted, or was last. */
  get turn(): TurnView | undefined {
    return this.#turn;
  }

  /** The newest turn that is painted, or is going to be. */
  get newest(): TurnView | undefined {
    return this.#next.at(-1) ?? this.#turn;
  }

  /** How many code points of it are on the screen. */
  get chars(): number {
    return this.#chars;
  }

  /** How many code points of a turn, this one or one that is to come, are on the screen. */
  charsOf(turn: TurnView): number {
    return turn === this.#turn ? this.#chars : 0;
  }

  /** Whether more has come than is on the screen, and is going to be. */
  get behind(): boolean {
    return this.#unpainted || (this.#next.length > 0 && !this.#held);
  }

  /** Whether more of this turn is going to be painted than there is now. */
  paints(turn: TurnView): boolean {
    return turn === this.#turn ? this.#unpainted : this.#next.includes(turn);
  }

  /** Paints this turn no further: somebody said stop. */
  freeze(turn: TurnView): void {
    this.#frozen = turn;
  }

  /** Goes on: the stop came too late, or was refused. */
  thaw(): void {
    this.#frozen = undefined;
  }

  /** How much of a turn's text to show, in UTF-16 units. */
  indexFor(turn: TurnView): number {
    if (turn === this.#turn) {
      return this.#index;
    }
    if (this.#next.includes(turn)) {
      return 0;
    }
    return turn.keptChars === undefined ? turn.text.length : indexOfChar(turn.text, turn.keptChars);
  }

  /**
   * The newest event all of whose text is on the screen, of the turn that is being painted; while
   * there is none, its first, which says of which turn `chars` are.
   */
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
    this.#advance();
    const turn = this.#turn;
    if (!turn) {
      return false;
    }
    const waiting = this.#end - this.#chars;
    if (waiting < 0) {
      // The server has the last word on what stays.
      return this.#moveTo(turn, this.#end);
    }
    if (this.#held || waiting === 0) {
      this.#carry = 0;
      return false;
    }
    if (!this.smooth()) {
      return this.#moveTo(turn, this.#end);
    }
    const seconds = Math.min(elapsedMs / 1000, LONGEST_STEP_S);
    this.#carry +=
      seconds *
      (this.#next.length > 0
        ? Math.max(HURRIED_CHARS_PER_S, waiting / HURRIED_HORIZON_S)
        : Math.max(SLOWEST_CHARS_PER_S, waiting / HORIZON_S));
    const whole = Math.min(Math.floor(this.#carry), waiting);
    this.#carry -= whole;
    return this.#moveTo(turn, this.#chars + whole);
  }

  /** Goes to the next turn if there is one and this one is painted. */
  #advance(): void {
    if (this.#next.length > 0 && (!this.#turn || this.#chars === this.#end)) {
      this.#turn = this.#next.shift();
      this.#index = this.#chars = this.#carry = 0;
    }
  }

  /** Somebody said stop, and the server has not said yet what stays. */
  get #held(): boolean {
    return this.#turn !== undefined && this.#turn === this.#frozen && this.#turn.keptChars === undefined;
  }

  get #unpainted(): boolean {
    return !this.#held && this.#chars < this.#end;
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
