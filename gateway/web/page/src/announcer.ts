/**
 * What a screen reader is told of an answer: whole sentences, as they are painted.
 *
 * The text itself is in no live region, since each new word would be read as a change of it all.
 */
const SENTENCE = /^[\s\S]*?(?:[.!?…:](?=\s)|\n+)/;
const LONGEST = 240;

export class Announcer {
  #turnId = "";
  #said = 0;

  /**
   * What is to be said now.
   *
   * @param text What is on the screen of this turn.
   * @param over Whether it is all there will be.
   */
  next(turnId: string, text: string, over: boolean): string {
    if (turnId !== this.#turnId) {
      this.#turnId = turnId;
      this.#said = 0;
    }
    const fresh = text.slice(this.#said);
    const whole = over ? fresh : sentences(fresh);
    this.#said += whole.length;
    return whole.trim();
  }

  /** Takes what is on the screen for said: it was there before. */
  skip(turnId: string, text: string): void {
    this.#turnId = turnId;
    this.#said = text.length;
  }
}

function sentences(text: string): string {
  let whole = "";
  for (;;) {
    const found = SENTENCE.exec(text.slice(whole.length));
    if (!found) {
      break;
    }
    whole += found[0];
  }
  // Some answers have no sentences: a list of numbers, say.
  return whole === "" && text.length > LONGEST ? text.slice(0, text.lastIndexOf(" ", LONGEST) + 1) : whole;
}
