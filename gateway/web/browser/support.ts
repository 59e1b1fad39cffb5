/** A browser with tabs of the page, for tests: what one does there, and what is to be seen. */
import { Client, type Snapshot, type Turn, indexOfChar } from "@backchannel/client";
import { type Browser, type BrowserContext, type Page, chromium } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, expect } from "vitest";
import { Site, until } from "./site.js";

const PATIENCE_MS = 15_000;

export let site: Site;
let browser: Browser;
export let context: BrowserContext;
let complaints: string[];
let served: Set<string>;

/** Has a site and a browser for all tests of a file, and a fresh context for each. */
export function useBrowser(): void {
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
}

export interface Settings {
  readonly model: string;
  readonly engineOptions?: string;
  readonly maxTokens?: string;
  readonly tools?: string[];
  readonly theme?: "light" | "dark";
}

/** A tab of the page with these settings. */
export async function tab(settings: Settings, address = "", at = site): Promise<Page> {
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

export async function say(page: Page, text: string, key = "Enter"): Promise<void> {
  await page.fill("#say", text);
  await page.press("#say", key);
  // The screen tells of it with the next frame.
  await page.evaluate(
    () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))),
  );
}

export const answers = (page: Page) => page.locator("article.turn");
export const idle = (page: Page) => page.locator('.app[data-speaking="false"]').waitFor();
/** What is on the screen of an answer, as the model wrote it. */
export const shown = async (page: Page, nth = 0): Promise<string> =>
  (await answers(page).nth(nth).locator(".markdown p").allTextContents()).join("");

export async function someText(page: Page, atLeast: number, nth = 0): Promise<void> {
  await until(`${atLeast} characters are painted`, async () => (await shown(page, nth)).length >= atLeast);
}

export const sessionOf = (page: Page): string => new URL(page.url()).hash.replace("#s=", "");

/** The session by another reader. */
export async function snapshotOf(page: Page, at = site): Promise<Snapshot> {
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

export const turnsOf = async (page: Page): Promise<Turn[]> => (await snapshotOf(page)).turns;

/** Asks the model what its prompt has of its own answers; for chats with `mirror/…`. */
export async function toldNext(page: Page, key = "Enter"): Promise<string[]> {
  const before = (await turnsOf(page)).length;
  await say(page, "What did you say?", key);
  await until("it is answered", async () => (await turnsOf(page)).length > before);
  await idle(page);
  return JSON.parse((await turnsOf(page)).at(-1)?.text ?? "") as string[];
}

export const keptOf = (turn: Turn | undefined): string =>
  turn ? turn.text.slice(0, indexOfChar(turn.text, turn.keptChars)) : "";

/** Presses Escape, and tells what was on the screen at that moment. */
export async function stopAndLook(page: Page): Promise<string> {
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

/** Presses Escape as soon as the answer has come whole, while it is still being painted. */
export function stopOnceWhole(page: Page): Promise<string> {
  return page.evaluate(
    () =>
      new Promise<string>((resolve) => {
        const look = (): void => {
          const turn = document.querySelector("article.turn:last-of-type");
          const seen = [...(turn?.querySelectorAll(".markdown p") ?? [])].map((part) => part.textContent).join("");
          if (turn?.getAttribute("aria-busy") === "false" && seen !== "") {
            dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", cancelable: true }));
            resolve(seen);
          } else {
            // In a task of its own, as a key is: between two frames, not within one.
            setTimeout(look);
          }
        };
        look();
      }),
  );
}
