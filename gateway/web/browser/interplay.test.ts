/** What is said upstream while an answer comes down, in a real browser, through a real Envoy. */
import { Client, FinishReason, type Tool } from "@backchannel/client";
import type { Page } from "playwright-core";
import { describe, expect, it } from "vitest";
import { until } from "./site.js";
import { answers, idle, say, sessionOf, shown, site, someText, tab, turnsOf, useBrowser } from "./support.js";

useBrowser();

const said = (page: Page) => page.locator(".said .bubble");

/** A page on a session whose one tool is run elsewhere, and is not waited for; and how to go on with it. */
async function withTool(tool: Partial<Tool> = {}): Promise<{ page: Page; go: () => void; close: () => void }> {
  let go = (): void => undefined;
  const going = new Promise<void>((resolve) => (go = resolve));
  const find: Tool = {
    spec: { name: "find", blocking: false },
    run: async function* () {
      yield "it is ";
      await going;
      yield "in the attic";
    },
    ...tool,
  };
  const conversation = await new Client({ baseUrl: site.url }).create({ model: "scripted/tool" }, [find]);
  conversation.open();
  const page = await tab({ model: "scripted/echo" }, `#s=${conversation.sessionId}`);
  return { page, go, close: () => conversation.close() };
}

describe("an answer that is steered", () => {
  it("ends its sentence, says so, and is followed by what it was steered to", async () => {
    const page = await tab({ model: "scripted/echo", engineOptions: "rate=20" });
    await say(page, "One two three. ".repeat(80));
    await someText(page, 20);
    await page.fill("#say", "Shorter, please.");
    await page.getByRole("button", { name: "Steer" }).click();
    await until("there are two answers", async () => (await answers(page).count()) === 2);
    await idle(page);
    const [first, second] = await turnsOf(page);
    expect(first?.finishReason).toBe(FinishReason.STEERED);
    expect(first?.text).toMatch(/three\.$/);
    expect(await shown(page, 0)).toBe(first?.text);
    expect(second?.text).toBe("Shorter, please.");
    await answers(page).first().getByText("steered", { exact: true }).waitFor();
    expect(await said(page).last().innerText()).toBe("Shorter, please.");
  });
});

describe("what has happened", () => {
  it("reads the same after a reload when several messages steered an answer", async () => {
    const page = await tab({ model: "scripted/echo", engineOptions: "rate=20" });
    // A sentence that lasts until both are said.
    await say(page, `One ${"and two ".repeat(40)}and three. ${"Four five six. ".repeat(40)}`);
    await someText(page, 20);
    for (const text of ["Shorter, please.", "And kinder."]) {
      await page.fill("#say", text);
      await page.getByRole("button", { name: "Steer" }).click();
    }
    await until("there are two answers", async () => (await answers(page).count()) === 2);
    await idle(page);
    const [, second] = await turnsOf(page);
    expect(second?.furtherInputs.length).toBe(1);
    const look = async () => [await said(page).allInnerTexts(), await page.locator(".said small").allInnerTexts()];
    const before = await look();
    expect(before).toEqual([
      [expect.stringContaining("and three."), "Shorter, please.", "And kinder."],
      ["steered", "steered"],
    ]);
    await page.reload();
    await until("it is there again", async () => (await answers(page).count()) === 2);
    expect(await look()).toEqual(before);
    expect(await page.getByText("sending…").count()).toBe(0);
  });

  it("reads the same after a reload when an answer failed", async () => {
    const page = await tab({ model: "scripted/fail" });
    await say(page, "go");
    const ending = page.locator(".ending.bad");
    await ending.waitFor();
    await idle(page);
    const why = await ending.innerText();
    const [turn] = await turnsOf(page);
    expect(turn?.error?.message).not.toBe("");
    expect(why).toContain(turn?.error?.message);
    await page.reload();
    await ending.waitFor();
    expect(await ending.innerText()).toBe(why);
  });
});

describe("a tool that is not waited for", () => {
  it("outlives its answer, shows what has come, and begins the next by itself", async () => {
    const { page, go, close } = await withTool();
    await say(page, "Where is it?");
    await until("the answer has ended", async () => (await shown(page)).includes("running"));
    const card = page.getByTestId("call");
    await card.getByText("the answer did not wait for it").waitFor();
    await card.getByText("it is", { exact: true }).waitFor();
    expect(await answers(page).count()).toBe(1);
    go();
    await page.getByText("Began by itself: find has answered").waitFor();
    await until("it is told", async () => (await shown(page, 1)).includes("it is in the attic"));
    expect(await said(page).count()).toBe(1);
    await card.getByText("The model was told this later.").waitFor();
    // The same for somebody who comes later.
    await page.reload();
    await page.getByText("Began by itself: find has answered").waitFor();
    expect(await said(page).count()).toBe(1);
    close();
  });

  it("may be let finish by a stop", async () => {
    const { page, go, close } = await withTool({ spec: { name: "find" } });
    await say(page, "Where is it?");
    await page.getByRole("button", { name: "Stop, but let the tool finish" }).click();
    await until("it is stopped", async () => (await turnsOf(page))[0]?.finishReason === FinishReason.INTERRUPTED);
    const card = page.getByTestId("call");
    await card.getByText("the answer did not wait for it").waitFor();
    go();
    await card.getByText("The model is told this with the next message.").waitFor();
    close();
  });
});

describe("a message", () => {
  it("is edited and said anew in a chat of its own, which knows the same past", async () => {
    const page = await tab({ model: "mirror/echo" });
    await say(page, "First.");
    await idle(page);
    await say(page, "Second.");
    await idle(page);
    const before = sessionOf(page);
    await page.getByRole("button", { name: "Edit and retry" }).last().click();
    await until("it is in the composer", async () => (await page.inputValue("#say")) === "Second.");
    await say(page, "Second thought.");
    await until("it is another chat", () => Promise.resolve(sessionOf(page) !== before));
    await until("it is answered", async () => (await answers(page).count()) === 2);
    await idle(page);
    expect(await said(page).allInnerTexts()).toEqual(["First.", "Second thought."]);
    expect((await turnsOf(page)).map(({ text }) => text)).toEqual(["Second thought."]);
    // The model has the same past; and after a reload it is still to be seen.
    await page.reload();
    await until("it is there again", async () => (await answers(page).count()) === 2);
    expect(await shown(page, 0)).toBe("First.");
    await page.getByRole("link", { name: "the chat before" }).click();
    await until("it is the chat before", () => Promise.resolve(sessionOf(page) === before));
    await until("it is as it was", async () => (await said(page).count()) === 2);
    expect(await said(page).allInnerTexts()).toEqual(["First.", "Second."]);
  });
});

describe("a credit window", () => {
  it("is kept open by what is painted, and by what a client iterates", async () => {
    const client = new Client({ baseUrl: site.url });
    const limits = { maxUnackedChars: 30 };
    const conversation = await client.create({ model: "scripted/count", limits });
    conversation.open();
    let text = "";
    for await (const piece of conversation.ask("count")) {
      text += piece;
    }
    expect(text).toMatch(/^1 2 3 .* 100$/);
    conversation.close();
    const page = await tab({ model: "scripted/echo" }, `#s=${conversation.sessionId}`);
    await until("it is there", async () => (await answers(page).count()) === 1);
    await say(page, "again");
    await until("it is answered", async () => (await answers(page).count()) === 2);
    await until("it has counted on", async () => (await shown(page, 1)).endsWith(" 100"));
  });
});
