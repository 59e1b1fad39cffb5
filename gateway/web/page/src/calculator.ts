/** Arithmetic, and nothing else: no names, no calls, no numbers that never end. */

const MAX_CHARS = 500;
// Of a numerator or denominator: some 600 decimal digits, far beyond what anybody asks for.
const MAX_BITS = 2048;
const MAX_EXPONENT = 1000n;
const MAX_DEPTH = 100;
const SIGNIFICANT_DIGITS = 12;
const EXACT_BITS = 64;
// Larger whole numbers are not exact in JSON for everybody who reads it.
const MAX_EXACT = 2n ** 53n;

/** The expression can't be evaluated; the message says why, for the model and for people. */
export class CalculationError extends Error {
  override name = "CalculationError";
}

/** A fraction in lowest terms, its denominator positive. */
interface Ratio {
  readonly over: bigint;
  readonly under: bigint;
}

/**
 * The value of an expression of numbers, `+ - * /`, `**` or `^`, and parentheses.
 *
 * Decimals are exact: 0.1 + 0.2 is 0.3.
 *
 * @throws CalculationError It is not one, or its value is out of bounds.
 */
export function evaluate(expression: string): number {
  if (expression.length > MAX_CHARS) {
    throw new CalculationError(`the expression is longer than ${MAX_CHARS} characters`);
  }
  const text = expression
    .replace(/[×·]/g, "*")
    .replace(/÷/g, "/")
    .replace(/[−–]/g, "-")
    .replace(/(?<=\d),(?=\d{3}(?!\d))/g, "")
    .replace(/\^/g, "**")
    .trim()
    .replace(/=$/, "")
    .trim();
  return toNumber(new Parser(text).whole());
}

class Parser {
  readonly #tokens: string[];
  #at = 0;
  #depth = 0;

  constructor(text: string) {
    const token = /\s*(\*\*|[-+*/()]|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*/y;
    this.#tokens = [];
    while (token.lastIndex < text.length) {
      const found = token.exec(text);
      if (!found?.[1]) {
        throw notArithmetic();
      }
      this.#tokens.push(found[1]);
    }
  }

  whole(): Ratio {
    const value = this.#sum();
    if (this.#at < this.#tokens.length) {
      throw notArithmetic();
    }
    return value;
  }

  #take(...wanted: string[]): string | undefined {
    const token = this.#tokens[this.#at];
    if (token === undefined || !wanted.includes(token)) {
      return undefined;
    }
    this.#at += 1;
    return token;
  }

  #sum(): Ratio {
    let value = this.#product();
    for (let sign = this.#take("+", "-"); sign; sign = this.#take("+", "-")) {
      const right = this.#product();
      const over = right.over * value.under;
      value = ratio(value.over * right.under + (sign === "+" ? over : -over), value.under * right.under);
    }
    return value;
  }

  #product(): Ratio {
    let value = this.#signed();
    for (let sign = this.#take("*", "/"); sign; sign = this.#take("*", "/")) {
      const right = this.#signed();
      value =
        sign === "*"
          ? ratio(value.over * right.over, value.under * right.under)
          : ratio(value.over * right.under, value.under * right.over);
    }
    return value;
  }

  #signed(): Ratio {
    this.#depth += 1;
    if (this.#depth > MAX_DEPTH) {
      throw new CalculationError("the expression is nested too deeply");
    }
    try {
      const sign = this.#take("+", "-");
      if (sign) {
        const value = this.#signed();
        return sign === "-" ? { over: -value.over, under: value.under } : value;
      }
      return this.#power();
    } finally {
      this.#depth -= 1;
    }
  }

  #power(): Ratio {
    const base = this.#atom();
    // From the right, and stronger than a sign before it: -2 ** 2 is -4.
    return this.#take("**") ? power(base, this.#signed()) : base;
  }

  #atom(): Ratio {
    if (this.#take("(")) {
      const value = this.#sum();
      if (!this.#take(")")) {
        throw notArithmetic();
      }
      return value;
    }
    const token = this.#tokens[this.#at];
    if (token === undefined || !/^[\d.]/.test(token)) {
      throw notArithmetic();
    }
    this.#at += 1;
    return literal(token);
  }
}

function literal(token: string): Ratio {
  const [digits = "", exponent = "0"] = token.toLowerCase().split("e");
  const [whole = "", part = ""] = digits.split(".");
  const shift = BigInt(exponent) - BigInt(part.length);
  if (shift > MAX_EXPONENT || shift < -MAX_EXPONENT) {
    throw new CalculationError("a number is too large");
  }
  const value = BigInt(whole + part || "0");
  return shift < 0n ? ratio(value, 10n ** -shift) : ratio(value * 10n ** shift, 1n);
}

function power(base: Ratio, exponent: Ratio): Ratio {
  if (exponent.under !== 1n) {
    throw new CalculationError("only whole exponents are understood");
  }
  const times = exponent.over < 0n ? -exponent.over : exponent.over;
  if (times > MAX_EXPONENT) {
    throw new CalculationError(`exponents beyond ${MAX_EXPONENT} are too large`);
  }
  // Before it is computed, since afterwards is too late.
  if (Math.max(bits(base.over), bits(base.under)) * Number(times) > MAX_BITS + Number(times)) {
    throw new CalculationError("the result is too large");
  }
  const [over, under] = [base.over ** times, base.under ** times];
  return exponent.over < 0n ? ratio(under, over) : ratio(over, under);
}

function ratio(over: bigint, under: bigint): Ratio {
  if (under === 0n) {
    throw new CalculationError("division by zero");
  }
  if (Math.max(bits(over), bits(under)) > 2 * MAX_BITS) {
    throw new CalculationError("the result is too large");
  }
  let [a, b] = [over < 0n ? -over : over, under < 0n ? -under : under];
  while (b) {
    [a, b] = [b, a % b];
  }
  const divisor = under < 0n ? -a : a;
  const lowest = divisor === 0n ? { over: 0n, under: 1n } : { over: over / divisor, under: under / divisor };
  if (Math.max(bits(lowest.over), bits(lowest.under)) > MAX_BITS) {
    throw new CalculationError("the result is too large");
  }
  return lowest;
}

function bits(value: bigint): number {
  return (value < 0n ? -value : value).toString(2).length;
}

function toNumber({ over, under }: Ratio): number {
  if (under === 1n && over <= MAX_EXACT && over >= -MAX_EXACT) {
    return Number(over);
  }
  // Enough bits of the quotient, then the power of two that they stand for, in two steps.
  const shift = EXACT_BITS - (bits(over) - bits(under));
  const quotient = shift >= 0 ? (over << BigInt(shift)) / under : over / (under << BigInt(-shift));
  const half = Math.trunc(shift / 2);
  const value = Number(quotient) * 2 ** -half * 2 ** -(shift - half);
  if (!Number.isFinite(value)) {
    throw new CalculationError("the result is too large");
  }
  return Number(value.toPrecision(SIGNIFICANT_DIGITS));
}

function notArithmetic(): CalculationError {
  return new CalculationError("that is not an arithmetic expression");
}
