import { describe, expect, it } from "vitest";
import { CalculationError, evaluate } from "../src/calculator.js";

describe("the calculator", () => {
  it.each([
    ["(3 + 4) * 12", 84],
    ["0.1 + 0.2", 0.3],
    ["1/3", 0.333333333333],
    ["-2 ** 2", -4],
    ["2 ** -1", 0.5],
    ["2 ** 3 ** 2", 512],
    ["2^10", 1024],
    ["--3", 3],
    ["1,234 * 2 =", 2468],
    ["6 × 7 ÷ 2 − 1", 20],
    ["1.5e3", 1500],
    ["2**53", 9007199254740992],
    ["10 / 4", 2.5],
    ["1e300 * 10 / 1e300", 10],
    ["1e-300", 1e-300],
    ["0 / 5", 0],
  ])("says that %s is %d", (expression, value) => {
    expect(evaluate(expression)).toBe(value);
  });

  it.each([
    ["", "not an arithmetic"],
    ["1 +", "not an arithmetic"],
    ["(1", "not an arithmetic"],
    ["1 2", "not an arithmetic"],
    ["alert(1)", "not an arithmetic"],
    ["constructor", "not an arithmetic"],
    ["1/0", "division by zero"],
    ["0 ** -1", "division by zero"],
    ["2 ** 0.5", "whole exponents"],
    ["9 ** 9 ** 9", "too large"],
    ["9 ** 1000", "too large"],
    ["1e400", "too large"],
    ["1".repeat(501), "longer than"],
    ["(".repeat(200) + "1" + ")".repeat(200), "nested too deeply"],
  ])("refuses %s", (expression, why) => {
    expect(() => evaluate(expression)).toThrow(CalculationError);
    expect(() => evaluate(expression)).toThrow(why);
  });
});
