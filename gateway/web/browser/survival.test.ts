/** What a page outlives: its own end, the network, the server, Envoy, what the log forgets. */
import { Client, FinishReason } from "@backchannel/client";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Site, until } from "./site.js";
import {
  answers,
  context,
  idle,
  say,
  sessionOf,
  shown,
  site,
  snapshotOf,
  someText,
  tab,
  turnsOf,
  useBrowser,
} from "./support.js";

useBrowser();

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

describe("a page away for longer than the server keeps events", () => {
  let forgetful: Site;
  beforeAll(async () => {
    forgetful = new Site({
      BACKCHANNEL_SESSIONS__RETENTION__MAX_EVENTS: "40",
      BACKCHANNEL_SESSIONS__SWEEP_S: "0.2",
    });
    await forgetful.start();
  });
  afterAll(() => forgetful.close());

  it("has all of the chat when it is back, and says that there is a gap", async () => {
    const settings = { model: "scripted/count", maxTokens: "60" };
    const page = await tab(settings, "", forgetful);
    await say(page, "first");
    await idle(page);
    await context.setOffline(true);
    await page.getByTestId("lost").waitFor();
    const away = (await snapshotOf(page, forgetful)).seq;
    const client = new Client({ baseUrl: forgetful.url });
    const elsewhere = client.resume(sessionOf(page));
    elsewhere.open();
    for (const text of ["second", "third"]) {
      for await (const _ of elsewhere.ask(text)) {
        // Only the events count.
      }
    }
    elsewhere.close();
    await until("what the page needs is gone", async () => {
      const { session } = await snapshotOf(page, forgetful);
      return (session?.earliestSeq ?? 0n) > away + 1n;
    });
    await context.setOffline(false);
    await page.locator(".notice", { hasText: "no longer kept" }).waitFor();
    await until("all are there", async () => (await answers(page).count()) === 3);
    await idle(page);
    const { turns } = await snapshotOf(page, forgetful);
    for (const [index, turn] of turns.entries()) {
      expect(await shown(page, index)).toBe(turn.text);
      expect(await answers(page).nth(index).locator(".strip").count()).toBe(1);
    }
    expect(await page.getByText(/Nothing was missed/).count()).toBe(0);
    expect(await page.locator(".pill").getAttribute("title")).toContain("not every event");
    await say(page, "fourth");
    await until("it goes on", async () => (await answers(page).count()) === 4);
    await idle(page);
    expect(await shown(page, 3)).toMatch(/^1 2 3 .* 60$/);
  });
});
