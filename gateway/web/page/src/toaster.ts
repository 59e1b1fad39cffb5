/** A short word to the user that goes away by itself. */
export interface Toast {
  readonly text: string;
  readonly bad: boolean;
}

const SHOWN_MS = 6000;

/** Shows one at a time. */
export class Toaster {
  toast: Toast | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** @param onChange Told when there is another one, or none. */
  constructor(private readonly onChange: () => void) {}

  tell(text: string, bad: boolean): void {
    this.toast = { text, bad };
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.dismiss(), SHOWN_MS);
    this.onChange();
  }

  dismiss(): void {
    this.toast = undefined;
    this.onChange();
  }
}
