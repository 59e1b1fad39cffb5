import { describe, expect, it } from "vitest";
import { Announcer } from "../src/announcer.js";
import { parseOptions } from "../src/settings.js";

describe("the announcer", () => {
  it("says sentences once they are whole, and the rest at the end", () => {
    const announcer = new Announcer();
    expect(announcer.next("t", "One. Tw", false)).toBe("One.");
    expect(announcer.next("t", "One. Two 3.5 is", false)).toBe("");
    expect(announcer.next("t", "One. Two 3.5 is it! An", false)).toBe("Two 3.5 is it!");
    expect(announcer.next("t", "One. Two 3.5 is it! And", true)).toBe("And");
    expect(announcer.next("t", "One. Two 3.5 is it! And", true)).toBe("");
    expect(announcer.next("u", "New", true)).toBe("New");
  });

  it("says long texts without sentences in pieces", () => {
    const announcer = new Announcer();
    const said = announcer.next("t", "12 ".repeat(200), false);
    expect(said.length).toBeGreaterThan(200);
    expect(said.length).toBeLessThan(241);
  });

  it("does not say what was there before", () => {
    const announcer = new Announcer();
    announcer.skip("t", "One. Two. ");
    expect(announcer.next("t", "One. Two. Three. ", false)).toBe("Three.");
  });
});

describe("engine options", () => {
  it("are read from pairs", () => {
    expect(parseOptions("rate=20, prefill_ms=300  junk =x")).toEqual({ rate: "20", prefill_ms: "300" });
  });
});
