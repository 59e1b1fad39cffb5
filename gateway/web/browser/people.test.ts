/** The page for those who use it: by keyboard, by ear, in both themes, on small screens, as developers. */
import { FinishReason } from "@backchannel/client";
import type { Page } from "playwright-core";
import { describe, expect, it } from "vitest";
import { tooFaint } from "./contrast.js";
import { until } from "./site.js";
import {
  type Settings,
  answers,
  context,
  idle,
  say,
  site,
  snapshotOf,
  someText,
  tab,
  turnsOf,
  useBrowser,
} from "./support.js";

useBrowser();

describe("whoever uses it", () => {
  it("needs no mouse", async () => {
    const page = await tab({ model: "scripted/count", engineOptions: "rate=20", maxTokens: "200" });
    const focused = () => page.evaluate(() => document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.id);
    // The first thing on the page is a way past its head.
    await page.locator("select").focus();
    await page.keyboard.press("Shift+Tab");
    expect(await page.evaluate(() => document.activeElement?.textContent?.trim())).toBe("Skip to the message box");
    await page.keyboard.press("Enter");
    expect(await focused()).toBe("say");
    await page.keyboard.type("one");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("two");
    await page.keyboard.press("Enter");
    await someText(page, 10);
    expect(await page.locator(".bubble").first().textContent()).toBe("one\ntwo");
    // To a panel and back, with the answer going on.
    for (let presses = 0; presses < 20 && (await focused()) !== "Raw events"; presses += 1) {
      await page.keyboard.press("Shift+Tab");
    }
    await page.keyboard.press("Enter");
    await page.getByRole("complementary", { name: "Raw events" }).waitFor();
    await until("it has the focus", async () => (await page.evaluate(() => document.activeElement?.textContent)) === "Raw events");
    await page.keyboard.press("Escape");
    await until("it is closed", async () => (await page.getByRole("complementary").count()) === 0);
    await until("the focus is back", async () => (await focused()) === "Raw events");
    expect(await page.locator('.app[data-speaking="true"]').count()).toBe(1);
    // From the box it stops the answer, also while a panel is open.
    await page.keyboard.press("Enter");
    await page.getByRole("complementary", { name: "Raw events" }).waitFor();
    await page.locator("#say").focus();
    await page.keyboard.press("Escape");
    await idle(page);
    expect(await page.getByRole("complementary").count()).toBe(1);
    await page.keyboard.press("Escape");
    await until("it is closed, too", async () => (await page.getByRole("complementary").count()) === 0);
    expect((await turnsOf(page))[0]?.finishReason).toBe(FinishReason.INTERRUPTED);
    // Every control can be reached, and is seen to be where one is.
    const seen = new Set<string>();
    for (let presses = 0; presses < 40; presses += 1) {
      await page.keyboard.press("Tab");
      const { name, outlined } = await page.evaluate(() => {
        const element = document.activeElement as HTMLElement;
        const { outlineStyle, outlineWidth } = getComputedStyle(element);
        const box = element.closest(".box");
        const bordered = box !== null && element.id === "say";
        return {
          name: element === document.body ? "" : (element.getAttribute("aria-label") ?? (element.innerText.trim() || element.id)),
          outlined: bordered || (outlineStyle !== "none" && parseFloat(outlineWidth) >= 2),
        };
      });
      if (name !== "") {
        seen.add(name);
        expect([name, outlined]).toEqual([name, true]);
      }
    }
    for (const name of ["New", "Chats", "Raw events", "Settings", "Copy the answer", "say"]) {
      expect([...seen]).toContain(name);
    }
  });

  it("hears an answer in a live region that holds whole sentences, not each word", async () => {
    const page = await tab({ model: "scripted/echo", engineOptions: "rate=30" });
    await page.evaluate(() => {
      const told: string[] = [];
      const region = document.querySelector("[data-testid=announcer]") as HTMLElement;
      new MutationObserver(() => {
        if (region.textContent) {
          told.push(region.textContent);
        }
      }).observe(region, {
        childList: true,
        characterData: true,
        subtree: true,
      });
      Object.assign(window, { told });
    });
    await say(page, "First of all, hello. The second one is longer. And the end has no stop");
    await idle(page);
    await page.locator("[data-testid=announcer]", { hasText: "And the end" }).waitFor();
    const told = await page.evaluate(() => (window as unknown as { told: string[] }).told);
    expect(told).toEqual(["First of all, hello.", "The second one is longer.", "And the end has no stop"]);
    expect(await page.locator("[data-testid=announcer]").getAttribute("aria-live")).toBe("polite");
    expect(await answers(page).locator("[aria-live], [role=status], [role=log]").count()).toBe(0);
  });

  it.each(["light", "dark"] as const)("can read all of it in the %s theme", async (theme) => {
    const page = await tab({ model: "mirror/tools", theme, tools: ["calculator", "timer"], engineOptions: "rate=30" });
    expect(await tooFaint(page)).toEqual([]);
    await say(page, "30");
    await page.locator('[data-testid=call][data-state="open"]').first().waitFor();
    expect(await tooFaint(page)).toEqual([]);
    await page.getByLabel("Tool call: timer").getByRole("button", { name: "Cancel" }).click();
    await idle(page);
    await say(page, "What did you say?");
    await page.fill("#say", "more");
    for (const panel of ["Settings", "Chats", "Raw events"]) {
      await page.getByRole("button", { name: panel, exact: true }).click();
      await page.getByRole("complementary", { name: panel }).waitFor();
      expect(await tooFaint(page)).toEqual([]);
    }
    await page.keyboard.press("Escape");
    const other = await tab({ model: "scripted/echo", theme, engineOptions: "rate=40" });
    await say(other, "# Head\n\n`code` [link](https://a.test)\n\n```py\nx = 1\n```\n\n> quote\n\n|a|b|\n|-|-|\n|1|2|\n\n" + "word ".repeat(60));
    await someText(other, 30);
    await say(other, "waits");
    await other.locator(".queue li").waitFor();
    expect(await tooFaint(other)).toEqual([]);
    await other.press("#say", "Escape");
    await other.locator(".ending").first().waitFor();
    await context.setOffline(true);
    await other.getByTestId("lost").waitFor();
    expect(await tooFaint(other)).toEqual([]);
    await context.setOffline(false);
  });

  it("has room on a narrow screen, whatever the words", async () => {
    const small = async (settings: Settings): Promise<Page> => {
      const page = await tab(settings);
      await page.setViewportSize({ width: 320, height: 560 });
      return page;
    };
    const fits = (page: Page) =>
      page.evaluate(() => {
        const wide = [...document.querySelectorAll<HTMLElement>("body *")].filter((element) => {
          const { right, left, width } = element.getBoundingClientRect();
          if (width <= 1 || (right <= innerWidth + 0.5 && left >= -0.5) || element.closest(".skip")) {
            return false;
          }
          // What scrolls by itself, or ends in three dots, may be wider inside.
          for (let around = element.parentElement; around; around = around.parentElement) {
            const { overflowX, textOverflow } = getComputedStyle(around);
            if (overflowX === "auto" || overflowX === "scroll" || textOverflow === "ellipsis") {
              return false;
            }
          }
          return true;
        });
        const tiny = [...document.querySelectorAll<HTMLElement>("button, select, textarea")].filter((element) => {
          const { width, height } = element.getBoundingClientRect();
          return width > 0 && (width < 24 || height < 24);
        });
        return [document.documentElement.scrollWidth > innerWidth, ...wide, ...tiny].map((each) =>
          each instanceof HTMLElement ? `${each.tagName}.${each.className}` : each,
        );
      });
    const calls = await small({ model: "mirror/tool" });
    expect(await fits(calls)).toEqual([false]);
    // It is read from its beginning.
    expect((await calls.getByRole("heading", { name: "Say something." }).boundingBox())?.y).toBeGreaterThan(53);
    await say(calls, `${"9".repeat(150)} + 1`);
    await calls.locator('[data-testid=call][data-state="completed"]').waitFor();
    await idle(calls);
    expect(await fits(calls)).toEqual([false]);
    await calls.close();
    const page = await small({ model: "scripted/echo" });
    await page.fill("#say", `${"long".repeat(80)}\n\n\`\`\`\n${"code ".repeat(60)}\n\`\`\`\n\n|a|b|\n|-|-|\n|${"x".repeat(90)}|y|`);
    await page.press("#say", "Enter");
    await idle(page);
    expect(await fits(page)).toEqual([false]);
    await context.setOffline(true);
    await page.getByTestId("lost").waitFor();
    await page.fill("#say", "more");
    expect(await fits(page)).toEqual([false]);
    await context.setOffline(false);
    for (const panel of ["Settings", "Chats", "Raw events"]) {
      await page.getByRole("button", { name: panel, exact: true }).click();
      await page.getByRole("complementary", { name: panel }).waitFor();
      expect(await fits(page)).toEqual([false]);
      await page.getByRole("button", { name: `Close ${panel}` }).click();
    }
  });

  it("can look at every event as it came, and what is being read stands still", async () => {
    const page = await tab({ model: "scripted/count", engineOptions: "rate=20", maxTokens: "200" });
    await say(page, "count");
    await someText(page, 10);
    await page.getByRole("button", { name: "Raw events" }).click();
    const line = page.locator(".line", { hasText: "outputDelta" }).first();
    await line.click();
    const json = JSON.parse((await page.locator(".entries pre").textContent()) ?? "") as {
      seq: string;
      outputDelta: { text: string; turnId: string };
    };
    const { turns } = await snapshotOf(page);
    expect(json.outputDelta.turnId).toBe(turns[0]?.turnId);
    expect(turns[0]?.text).toContain(json.outputDelta.text);
    const first = await page.locator(".entries li").first().innerText();
    await page.getByRole("button", { name: /^\d+ newer$/ }).waitFor();
    expect(await page.locator(".entries li").first().innerText()).toBe(first);
    await page.getByRole("button", { name: /^\d+ newer$/ }).click();
    await until("it goes on", async () => (await page.locator(".entries li").first().innerText()) !== first);
    expect(await page.locator(".entries", { hasText: "message → accepted" }).count()).toBe(1);
    await page.press("#say", "Escape");
    await page.press("#say", "Escape");
    await idle(page);
  });

  it("is sent nothing from elsewhere, by a policy that says so", async () => {
    const response = await fetch(site.url);
    const policy = response.headers.get("content-security-policy") ?? "";
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toMatch(/unsafe|https?:|\*/);
    const html = await response.text();
    const named = [...html.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, address = ""]) => address);
    expect(named.length).toBeGreaterThan(2);
    expect(named.filter((address) => !address.startsWith("/assets/"))).toEqual([]);
  });
});
