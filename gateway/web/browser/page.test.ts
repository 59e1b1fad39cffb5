/** The page in a real browser, through a real Envoy. */
import {
  Client,
  FinishReason,
  ReceiptStatus,
  type Snapshot,
  type Turn,
  indexOfChar,
} from "@backchannel/client";
import { type Browser, type BrowserContext, type Page, chromium } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { Site, until } from "./site.js";

const PATIENCE_MS = 15_000;

let site: Site;
let browser: Browser;
let context: BrowserContext;
let complaints: string[];
let served: Set<string>;

beforeAll(async () => {
  site = new Site();
  await site.start();
  const executablePath = process.env["CHROMIUM"] ?? "/usr/bin/chromium";
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
});

afterAll(async () => {
  await browser.close();
  await site.close();
});

beforeEach(async () => {
  complaints = [];
  served = new Set([site.url]);
  context = await browser.newContext({ viewport: { width: 1000, height: 700 } });
  context.setDefaultTimeout(PATIENCE_MS);
});

afterEach(async () => {
  await context.close();
  // A broken policy, an exception: whatever test it happened in.
  expect(complaints).toEqual([]);
});

interface Settings {
  readonly model: string;
  readonly engineOptions?: string;
  readonly maxTokens?: string;
  readonly tools?: string[];
}

/** A tab of the page with these settings. */
async function tab(settings: Settings, address = "", at = site): Promise<Page> {
  const page = await context.newPage();
  served.add(at.url);
  page.on("request", (request) => {
    if (!served.has(new URL(request.url()).origin)) {
      complaints.push(`it asks elsewhere: ${request.url()}`);
    }
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (/Content Security Policy|violates/i.test(message.text())) {
      complaints.push(message.text());
    }
  });
  await page.addInitScript((kept) => {
    localStorage.setItem("backchannel/settings", kept);
  }, JSON.stringify(settings));
  await page.goto(at.url + address);
  await page.locator("select:enabled").waitFor();
  return page;
}

async function say(page: Page, text: string, key = "Enter"): Promise<void> {
  await page.fill("#say", text);
  await page.press("#say", key);
  // The screen tells of it with the next frame.
  await page.evaluate(
    () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))),
  );
}

const answers = (page: Page) => page.locator("article.turn");
const idle = (page: Page) => page.locator('.app[data-speaking="false"]').waitFor();
/** What is on the screen of an answer, as the model wrote it. */
const shown = async (page: Page, nth = 0): Promise<string> =>
  (await answers(page).nth(nth).locator(".markdown p").allTextContents()).join("");

async function someText(page: Page, atLeast: number, nth = 0): Promise<void> {
  await until(`${atLeast} characters are painted`, async () => (await shown(page, nth)).length >= atLeast);
}

const sessionOf = (page: Page): string => new URL(page.url()).hash.replace("#s=", "");

/** The session by another reader. */
async function snapshotOf(page: Page, at = site): Promise<Snapshot> {
  const conversation = new Client({ baseUrl: at.url }).resume(sessionOf(page));
  try {
    return await new Promise<Snapshot>((resolve) => {
      conversation.subscribe({ snapshot: resolve });
      conversation.open();
    });
  } finally {
    conversation.close();
  }
}

const turnsOf = async (page: Page): Promise<Turn[]> => (await snapshotOf(page)).turns;

/** Asks the model what its prompt has of its own answers; for chats with `mirror/…`. */
async function toldNext(page: Page, key = "Enter"): Promise<string[]> {
  const before = (await turnsOf(page)).length;
  await say(page, "What did you say?", key);
  await until("it is answered", async () => (await turnsOf(page)).length > before);
  await idle(page);
  return JSON.parse((await turnsOf(page)).at(-1)?.text ?? "") as string[];
}

const keptOf = (turn: Turn | undefined): string =>
  turn ? turn.text.slice(0, indexOfChar(turn.text, turn.keptChars)) : "";

/** Presses Escape, and tells what was on the screen at that moment. */
async function stopAndLook(page: Page): Promise<string> {
  await page.evaluate(() => {
    addEventListener(
      "keydown",
      () => {
        const parts = [...document.querySelectorAll("article.turn:last-of-type .markdown p")];
        document.body.dataset["seen"] = parts.map((part) => part.textContent).join("");
      },
      { capture: true, once: true },
    );
  });
  await page.press("#say", "Escape");
  return page.evaluate(() => document.body.dataset["seen"] ?? "");
}

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
    await someText(page, 10);
    const seen = await stopAndLook(page);
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

  it("cannot steer yet, and says why", async () => {
    const page = await tab({ model: "scripted/stall" });
    await say(page, "go");
    await someText(page, 3);
    await page.fill("#say", "left");
    const steer = page.getByRole("button", { name: "Steer" });
    expect(await steer.getAttribute("aria-disabled")).toBe("true");
    await steer.click({ force: true });
    await page.locator(".toast", { hasText: "can’t steer" }).waitFor();
    await page.press("#say", "Escape");
    await idle(page);
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
    await say(page, "1 + 2 + 3 + 4");
    const writing = page.locator('[data-testid=call][data-state="writing"] pre');
    const pieces = new Set<string>();
    await until("it is whole", async () => {
      for (const text of await writing.allTextContents()) {
        pieces.add(text);
      }
      return (await page.locator('[data-testid=call][data-state="completed"]').count()) === 1;
    });
    expect(pieces.size).toBeGreaterThan(3);
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

describe("a page", () => {
  it("that is loaded anew goes on in mid-sentence", async () => {
    const page = await tab({ model: "scripted/count", engineOptions: "rate=20", maxTokens: "60" });
    await say(page, "count");
    await someText(page, 30);
    await page.reload();
    await someText(page, 30);
    expect(await page.locator('.app[data-speaking="true"]').count()).toBe(1);
    await idle(page);
    const [turn] = await turnsOf(page);
    expect(turn?.finishReason).toBe(FinishReason.STOP);
    expect(await shown(page)).toBe(turn?.text);
  });

  it("has the same in two tabs, and a tool is run by one of them", async () => {
    const settings = { model: "scripted/tool", tools: ["timer"] };
    const one = await tab(settings);
    await say(one, "1");
    await one.locator('[data-testid=call][data-state="open"]').waitFor();
    const other = await tab(settings, new URL(one.url()).hash);
    for (const page of [one, other]) {
      await page.locator('[data-testid=call][data-state="completed"]').waitFor();
      await idle(page);
      expect(await shown(page)).toBe('result: {"waited_seconds":1}');
    }
    // The next call is announced to both at the same time.
    await say(other, "1");
    for (const page of [one, other]) {
      await until("both are answered", async () => (await answers(page).count()) === 2);
      await idle(page);
      expect(await shown(page, 1)).toBe('result: {"waited_seconds":1}');
      expect(await page.locator(".late").count()).toBe(0);
    }
    await one.close();
    await say(other, "1");
    await until("it goes on alone", async () => (await answers(other).count()) === 3);
    await idle(other);
  });

  it("follows what is stopped in another tab", async () => {
    const settings = { model: "scripted/count", engineOptions: "rate=20" };
    const one = await tab(settings);
    await say(one, "count");
    await someText(one, 10);
    const other = await tab(settings, new URL(one.url()).hash);
    await someText(other, 10);
    await other.press("#say", "Escape");
    await idle(one);
    await idle(other);
    expect(await shown(one)).toBe(await shown(other));
  });

  it("says that a chat is gone, and begins another", async () => {
    const page = await tab({ model: "scripted/echo" }, "#s=0123456789abcdef0123");
    await page.getByText("no longer exists").waitFor();
    await page.locator(".banner").getByRole("button", { name: "New chat" }).click();
    await say(page, "hello");
    await idle(page);
    expect(await shown(page)).toBe("hello");
  });

  it("says a message once when the network goes in the middle, and when it comes back", async () => {
    const page = await tab({ model: "scripted/count", engineOptions: "rate=20", maxTokens: "60" });
    await say(page, "count");
    await someText(page, 20);
    await context.setOffline(true);
    await page.getByTestId("lost").waitFor();
    await say(page, "said offline");
    await page.waitForTimeout(500);
    await context.setOffline(false);
    await until("both are answered", async () => (await answers(page).count()) === 2);
    await idle(page);
    const turns = await turnsOf(page);
    expect(turns).toHaveLength(2);
    expect(turns.map(({ finishReason }) => finishReason)).toEqual([FinishReason.STOP, FinishReason.STOP]);
    expect(await shown(page, 0)).toBe(turns[0]?.text);
    await page.getByText(/Nothing was missed/).waitFor();
  });

  it("that was closed before its message was sent leaves it to the next page, which sends it once", async () => {
    const settings = { model: "scripted/echo" };
    const page = await tab(settings);
    await say(page, "before");
    await idle(page);
    const { hash } = new URL(page.url());
    await context.setOffline(true);
    await page.getByTestId("lost").waitFor();
    await say(page, "said and left");
    await page.close();
    await context.setOffline(false);
    const next = await tab(settings, hash);
    await until("it is answered", async () => (await answers(next).count()) === 2);
    await idle(next);
    await next.reload();
    await until("both are there", async () => (await answers(next).count()) === 2);
    const turns = await turnsOf(next);
    expect(turns.map(({ text }) => text)).toEqual(["before", "said and left"]);
  });

  it("goes on when Envoy dies under it", async () => {
    const page = await tab({ model: "scripted/count", engineOptions: "rate=20", maxTokens: "80" });
    await say(page, "count");
    await someText(page, 20);
    const before = site.envoy;
    process.kill(before, "SIGKILL");
    await until("it is another Envoy", () => site.envoy !== before);
    await page.locator('[data-state="open"]').first().waitFor();
    await idle(page);
    const [turn] = await turnsOf(page);
    expect(turn?.finishReason).toBe(FinishReason.STOP);
    expect(await shown(page)).toBe(turn?.text);
    expect(turn?.text).toMatch(/^1 2 3 .* 79 80$/);
  });

  it("goes on when the server dies under it, and sends what was said meanwhile", async () => {
    const page = await tab({ model: "scripted/count", engineOptions: "rate=20", maxTokens: "200" });
    await say(page, "count");
    await someText(page, 20);
    await site.kill();
    await page.getByTestId("lost").waitFor();
    await say(page, "said meanwhile");
    await site.start();
    await page.getByText("the server that spoke was lost").waitFor();
    await until("both are answered", async () => (await answers(page).count()) === 2);
    await someText(page, 20, 1);
    await page.press("#say", "Escape");
    await idle(page);
    const turns = await turnsOf(page);
    expect(turns.map(({ finishReason }) => finishReason)).toEqual([
      FinishReason.OWNER_LOST,
      FinishReason.INTERRUPTED,
    ]);
    expect(await shown(page, 0)).toBe(turns[0]?.text);
  });

  it("goes on when the server is stopped as one should and started again", async () => {
    const page = await tab({ model: "scripted/echo" });
    await say(page, "before");
    await idle(page);
    await site.stop();
    await site.start();
    await say(page, "after");
    await until("it is answered", async () => (await answers(page).count()) === 2);
    await idle(page);
    expect(await shown(page, 1)).toBe("after");
  });
});

describe("the client in Node", () => {
  it("asks over gRPC-Web and is refused with a reason", async () => {
    const client = new Client({ baseUrl: site.url });
    await expect(client.create({ model: "no/such" })).rejects.toMatchObject({ reason: "MODEL_NOT_FOUND" });
    const conversation = await client.create({ model: "scripted/echo" });
    conversation.open();
    const answer = conversation.ask("hello there");
    let text = "";
    for await (const piece of answer) {
      text += piece;
    }
    expect(text).toBe("hello there");
    const { receipt } = conversation.interrupt({ turnId: answer.reply.turnId });
    expect((await receipt).status).toBe(ReceiptStatus.STALE);
    conversation.close();
  });

  it.each(["gRPC-Web", "server-sent events"])("resumes over %s when Envoy dies", async (door) => {
    const { EventSource } = await import("eventsource");
    const { eventSourceAttach } = await import("@backchannel/client");
    const client = new Client({
      baseUrl: site.url,
      ...(door === "gRPC-Web" ? {} : { attach: eventSourceAttach(site.url, EventSource) }),
    });
    const conversation = await client.create({
      model: "scripted/count",
      engineOptions: { rate: "40" },
      sampling: { maxTokens: 80 },
    });
    const seqs: bigint[] = [];
    let cuts = 0;
    conversation.subscribe({
      events: (events) => seqs.push(...events.map(({ seq }) => seq)),
      connection: ({ state }) => (cuts += state === "lost" ? 1 : 0),
    });
    conversation.open();
    let text = "";
    for await (const piece of conversation.ask("go")) {
      if (text.length < 20 && text.length + piece.length >= 20) {
        process.kill(site.envoy, "SIGKILL");
      }
      text += piece;
    }
    conversation.close();
    expect(text).toMatch(/^1 2 3 .* 79 80$/);
    expect(cuts).toBeGreaterThan(0);
    expect(seqs).toEqual(seqs.map((_, index) => BigInt(index + 1)));
  });
});
