/** What is said and shown, in a real browser, through a real Envoy. */
import { FinishReason } from "@backchannel/client";
import type { Page } from "playwright-core";
import { describe, expect, it } from "vitest";
import { until } from "./site.js";
import {
  answers,
  idle,
  keptOf,
  say,
  shown,
  someText,
  stopAndLook,
  stopOnceWhole,
  tab,
  toldNext,
  turnsOf,
  useBrowser,
} from "./support.js";

useBrowser();

describe("an answer", () => {
  it("is painted as it comes, evenly, and moves nothing else", async () => {
    const page = await tab({ model: "scripted/count", engineOptions: "rate=20", maxTokens: "40" });
    await page.evaluate(() => {
      const paints: string[] = [];
      let moved = 0;
      const look = (): void => {
        const text = document.querySelector("article .markdown")?.textContent ?? "";
        if (text !== (paints.at(-1) ?? "")) {
          paints.push(text);
        }
        requestAnimationFrame(look);
      };
      look();
      new PerformanceObserver((list) => {
        for (const entry of list.getEntries() as (PerformanceEntry & { value: number; hadRecentInput: boolean })[]) {
          moved += entry.hadRecentInput ? 0 : entry.value;
        }
      }).observe({ type: "layout-shift", buffered: false });
      Object.assign(window, { paints, moved: () => moved });
    });
    await say(page, "count");
    await page.getByText("40", { exact: false }).first().waitFor();
    await idle(page);
    const { paints, moved } = await page.evaluate(() => {
      const seen = window as unknown as { paints: string[]; moved: () => number };
      return { paints: seen.paints, moved: seen.moved() };
    });
    expect(paints.length).toBeGreaterThanOrEqual(20);
    const steps = paints.map((text, index) => text.length - (paints[index - 1] ?? "").length);
    expect(Math.max(...steps)).toBeLessThan(12);
    expect(paints.every((text, index) => text.startsWith(paints[index - 1] ?? ""))).toBe(true);
    expect(moved).toBeLessThan(0.05);
    expect(await page.locator("[data-testid=figures]").innerText()).toMatch(
      /queued.*first token.*tok\/s.*gap.*generated 40.*displayed 40.*wasted 0/s,
    );
  });

  it("is followed to its end, but not by somebody who reads further up", async () => {
    const page = await tab({ model: "scripted/echo", engineOptions: "rate=60" });
    const long = Array.from({ length: 120 }, (_, line) => `line ${line}`).join("\n\n");
    await say(page, long);
    await someText(page, 300);
    const main = page.locator("main");
    const fromEnd = () => main.evaluate((it) => it.scrollHeight - it.scrollTop - it.clientHeight);
    expect(await fromEnd()).toBeLessThan(60);
    await main.hover();
    await page.mouse.wheel(0, -400);
    await until("it is scrolled up", async () => (await fromEnd()) > 200);
    const top = await main.evaluate((it) => it.scrollTop);
    await someText(page, 800);
    expect(await main.evaluate((it) => it.scrollTop)).toBe(top);
    await page.getByRole("button", { name: "To the newest" }).click();
    await until("it is at the end", async () => (await fromEnd()) < 60);
  });

  it("that is stopped keeps exactly what was on the screen", async () => {
    // Words so long that the screen is always in the middle of one.
    const page = await tab({ model: "mirror/echo", engineOptions: "rate=6" });
    await say(page, "abcdefgh👍jklmn ".repeat(40).trim());
    await someText(page, 40);
    const seen = await stopAndLook(page);
    await idle(page);
    const [turn] = await turnsOf(page);
    expect(turn?.finishReason).toBe(FinishReason.INTERRUPTED);
    expect(seen.length).toBeGreaterThan(35);
    expect(keptOf(turn)).toBe(seen);
    expect(turn?.text.length).toBeGreaterThan(seen.length);
    expect(await shown(page)).toBe(seen);
    expect(await toldNext(page)).toEqual([seen]);
  });

  it("that had come whole before the stop is cut back to what was on the screen", async () => {
    const page = await tab({ model: "mirror/count", maxTokens: "600" });
    await say(page, "count");
    const seen = await stopOnceWhole(page);
    await idle(page);
    const [turn] = await turnsOf(page);
    expect(turn?.finishReason).toBe(FinishReason.STOP);
    expect(seen.length).toBeLessThan(turn?.text.length ?? 0);
    expect(keptOf(turn)).toBe(seen);
    expect(await shown(page)).toBe(seen);
    await page.getByText("more characters had come").waitFor();
    expect(await toldNext(page)).toEqual([seen]);
  });

  it("is painted to its end, fast but without a leap, when the next one begins", async () => {
    const page = await tab({ model: "scripted/count", maxTokens: "1500" });
    await page.evaluate(() => {
      const paints: { first: string; second: string }[] = [];
      const look = (): void => {
        const [first = "", second = ""] = [...document.querySelectorAll("article.turn")].map((turn) =>
          [...turn.querySelectorAll(".markdown p")].map((part) => part.textContent).join(""),
        );
        paints.push({ first, second });
        requestAnimationFrame(look);
      };
      look();
      Object.assign(window, { paints });
    });
    await say(page, "count");
    await someText(page, 10);
    await say(page, "again");
    await until("both are there", async () => (await answers(page).count()) === 2);
    await someText(page, 10, 1);
    const paints = await page.evaluate(
      () => (window as unknown as { paints: { first: string; second: string }[] }).paints,
    );
    const whole = paints.at(-1)?.first ?? "";
    expect(whole).toMatch(/^1 2 3 .* 1499 1500$/);
    const sizes = paints.map(({ first }) => first.length);
    const steps = sizes.map((size, index) => size - (sizes[index - 1] ?? 0));
    expect(Math.max(...steps)).toBeLessThan(whole.length / 2);
    expect(steps.filter((step) => step > 0).length).toBeGreaterThan(8);
    // Nothing of the second while the first is unfinished.
    expect(paints.filter(({ first, second }) => second !== "" && first !== whole)).toEqual([]);
    await page.press("#say", "Escape");
    await idle(page);
  });

  it("is read to screen readers by sentences", async () => {
    const page = await tab({ model: "scripted/echo", engineOptions: "rate=50" });
    await say(page, "One sentence. Another one here.");
    await page.locator("[data-testid=announcer]", { hasText: "Another one here." }).waitFor();
  });

  it("never becomes markup of its own making", async () => {
    const page = await tab({ model: "scripted/echo" });
    await say(page, '<img src=x onerror="document.title=1"> [x](javascript:alert(1)) **bold**');
    await idle(page);
    expect(await answers(page).locator("img, a").count()).toBe(0);
    expect(await answers(page).locator("strong").innerText()).toBe("bold");
    expect(await page.title()).toBe("Backchannel");
  });
});

describe("saying something while it speaks", () => {
  it("redirects it: what was on the screen stays, and the new message is answered at once", async () => {
    const page = await tab({ model: "scripted/echo", engineOptions: "rate=20" });
    await say(page, "word ".repeat(60));
    await someText(page, 20);
    await page.fill("#say", "now this");
    await page.getByRole("button", { name: "Redirect now" }).click();
    await page.getByText("redirected", { exact: true }).waitFor();
    await idle(page);
    const [first, second] = await turnsOf(page);
    expect(first?.finishReason).toBe(FinishReason.INTERRUPTED);
    expect(keptOf(first)).toBe(await shown(page, 0));
    expect(first?.keptChars).toBeLessThan(200);
    expect(second?.text).toBe("now this");
  });

  it("redirects it by the keyboard, and the very next prompt has what was on the screen", async () => {
    const page = await tab({ model: "mirror/echo", engineOptions: "rate=6" });
    await say(page, "abcdefgh👍jklmn ".repeat(40).trim());
    await someText(page, 40);
    const told = await toldNext(page, "Control+Enter");
    expect(told).toEqual([await shown(page, 0)]);
    expect(told[0]?.length).toBeGreaterThan(35);
    expect(told[0]?.length).toBeLessThan(400);
  });

  it("waits its turn, and can be taken back", async () => {
    const page = await tab({ model: "scripted/count", engineOptions: "rate=20", maxTokens: "30" });
    await say(page, "count");
    await someText(page, 3);
    await say(page, "first after");
    await say(page, "never");
    const queue = page.getByRole("list", { name: "Waiting for their turn" });
    await until("both wait", async () => (await queue.getByText("next", { exact: true }).count()) === 2);
    await queue.locator("li", { hasText: "never" }).getByRole("button").click();
    await until("one waits", async () => (await queue.locator("li").count()) === 1);
    await until("both are answered", async () => (await answers(page).count()) === 2);
    await idle(page);
    const turns = await turnsOf(page);
    expect(turns).toHaveLength(2);
    expect(turns.map(({ finishReason }) => finishReason)).toEqual([FinishReason.STOP, FinishReason.STOP]);
    expect(await page.getByText("never", { exact: true }).count()).toBe(0);
  });

  it("steers it: the sentence is finished, all of it stays, then the new message is answered", async () => {
    const page = await tab({ model: "mirror/echo", engineOptions: "rate=20" });
    await say(page, "Some words make a sentence, which is rather long. ".repeat(30).trim());
    await someText(page, 20);
    await page.fill("#say", "What did you say?");
    await page.getByRole("button", { name: "Steer" }).click();
    await until("it is answered", async () => (await turnsOf(page)).length === 2);
    await idle(page);
    const [first, second] = await turnsOf(page);
    expect(first?.finishReason).toBe(FinishReason.STEERED);
    expect(first?.text.trim()).toMatch(/rather long\.$/);
    expect(first?.text.length).toBeLessThan(1000);
    expect(JSON.parse(second?.text ?? "")).toEqual([first?.text]);
    expect(await shown(page, 0)).toBe(first?.text);
  });
});

describe("a tool call", () => {
  it("is run by the page and answered on its card", async () => {
    const page = await tab({ model: "scripted/tool", engineOptions: "rate=30" });
    await say(page, "(17.5 + 4) * 12");
    const card = page.getByTestId("call");
    await page.locator('[data-testid=call][data-state="completed"]').waitFor();
    expect(await card.innerText()).toContain("258");
    await idle(page);
    expect(await shown(page)).toBe('result: {"result":258}');
  });

  it("is shown while it is written, and at its place in the text, also to who comes later", async () => {
    const page = await tab({ model: "mirror/tool", tools: ["calculator"], engineOptions: "rate=5" });
    await page.evaluate(() => {
      const pieces = new Set<string>();
      const look = (): void => {
        pieces.add(document.querySelector('.call[data-state="writing"] pre')?.textContent ?? "");
        requestAnimationFrame(look);
      };
      look();
      Object.assign(window, { pieces });
    });
    await say(page, "1 + 2 + 3 + 4");
    await page.locator('[data-testid=call][data-state="completed"]').waitFor();
    const pieces = await page.evaluate(() => [...(window as unknown as { pieces: Set<string> }).pieces]);
    expect(pieces).toContain('{"input": "1 + 2');
    expect(pieces.length).toBeGreaterThan(4);
    await idle(page);
    const look = (of: Page) =>
      answers(of).first().evaluate((turn) => [
        [...turn.querySelectorAll(".markdown, .call")].map((part) =>
          part.classList.contains("call") ? "(call)" : part.textContent,
        ),
        (turn.querySelector("[data-testid=figures]") as HTMLElement).innerText,
        turn.querySelector(".strip")?.getAttribute("aria-label"),
      ]);
    const [parts, figures, strip] = await look(page);
    expect(parts).toEqual(["Let me see. ", "(call)", 'result: {"result":10}']);
    expect(figures).toMatch(/queued.*first token.*tok\/s.*gap.*generated \d+.*displayed \d+.*wasted 0/s);
    expect(strip).toMatch(/^Took \d/);
    const other = await tab({ model: "mirror/tool" }, new URL(page.url()).hash);
    await answers(other).first().waitFor();
    expect(await look(other)).toEqual([parts, figures, strip]);
    await page.reload();
    await answers(page).first().waitFor();
    expect(await look(page)).toEqual([parts, figures, strip]);
  });

  it("shows its deadline, and can be cancelled", async () => {
    const page = await tab({ model: "scripted/tool", tools: ["timer"] });
    await say(page, "60");
    const card = page.getByTestId("call");
    await card.locator(".countdown", { hasText: /times out in\s*\d+ s/ }).waitFor();
    await card.getByRole("button", { name: "Cancel" }).click();
    await page.locator('[data-testid=call][data-state="cancelled"]').waitFor();
    await idle(page);
    expect(await shown(page)).toContain("the user cancelled this call");
  });

  it("is taken up again by a page that is loaded anew in the middle of it", async () => {
    const page = await tab({ model: "scripted/tool", tools: ["timer"] });
    await say(page, "2");
    await page.locator('[data-testid=call][data-state="open"]').waitFor();
    await page.reload();
    await page.locator('[data-testid=call][data-state="completed"]').waitFor();
    await idle(page);
    expect(await shown(page)).toBe('result: {"waited_seconds":2}');
    expect(await page.locator(".late").count()).toBe(0);
  });
});
