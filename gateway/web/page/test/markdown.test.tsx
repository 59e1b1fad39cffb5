import type { ComponentChildren, VNode } from "preact";
import { describe, expect, it } from "vitest";
import { blocksOf, inline, isSafe } from "../src/markdown.js";

/** Elements as text, to compare. */
function shown(part: ComponentChildren): string {
  if (Array.isArray(part)) {
    return part.map(shown).join("");
  }
  if (typeof part === "object" && part !== null) {
    const { type, props } = part as VNode<{ children?: ComponentChildren; href?: string }>;
    const href = props.href ? ` ${props.href}` : "";
    return `<${String(type)}${href}|${shown(props.children)}>`;
  }
  return String(part ?? "");
}

describe("inline Markdown", () => {
  it.each([
    ["a **b** c", "a <strong|b> c"],
    ["*a* and _b_", "<em|a> and <em|b>"],
    ["**a *b* c**", "<strong|a <em|b> c>"],
    ["`**a**` b", "<code|**a**> b"],
    ["2 * 3 * 4", "2 * 3 * 4"],
    ["snake_case_name", "snake_case_name"],
    ["**open", "**open"],
    ["~~no~~", "<s|no>"],
    ["[x](https://a.test/b)", "<a https://a.test/b|x>"],
    ["see https://a.test/b.", "see <a https://a.test/b|https://a.test/b>."],
    ["[x](javascript:alert(1))", "[x](javascript:alert(1))"],
    ["[x](javascript:alert)", "[x](javascript:alert)"],
    ["[x](data:text/html,hi)", "[x](data:text/html,hi)"],
    ["<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"],
  ])("reads %s", (text, elements) => {
    expect(shown(inline(text))).toBe(elements);
  });

  it("follows no link but to the web and to mail", () => {
    expect(["https://a", "HTTP://a", "mailto:a@b"].every(isSafe)).toBe(true);
    expect(["//a", " javascript:x", "java\tscript:x", "blob:x", "/v1/sessions"].some(isSafe)).toBe(false);
  });

  it("ends on every text, however nested", () => {
    const text = "**_`[".repeat(2000);
    expect(shown(inline(text)).length).toBeGreaterThan(0);
  });
});

describe("blocks of Markdown", () => {
  it("are told apart", () => {
    const text = [
      "# Title",
      "one",
      "two",
      "",
      "- a",
      "  - b",
      "1. c",
      "",
      "> said",
      "---",
      "| x | y |",
      "|---|---|",
      "| 1 | 2 |",
    ].join("\n");
    expect(blocksOf(text)).toMatchObject([
      { kind: "heading", level: 1, text: "Title" },
      { kind: "paragraph", text: "one\ntwo" },
      { kind: "list", items: [{ text: "a", depth: 0 }, { text: "b", depth: 1 }, { text: "c" }] },
      { kind: "quote", text: "said" },
      { kind: "rule" },
      { kind: "table", head: ["x", "y"], rows: [["1", "2"]] },
    ]);
  });

  it("keep code as it is, also before its end has come", () => {
    expect(blocksOf("```js\n# no **title**\n")).toEqual([
      { kind: "code", language: "js", text: "# no **title**\n" },
    ]);
    expect(blocksOf("```\na\n```\nb")).toMatchObject([{ text: "a" }, { kind: "paragraph", text: "b" }]);
  });

  it("lose nothing of any text", () => {
    for (const text of ["|", "#", "- ", ">", "|a\n", "***", "1.", "#no", "```"]) {
      expect(() => blocksOf(text)).not.toThrow();
    }
    expect(blocksOf("#no title\n|x")).toEqual([{ kind: "paragraph", text: "#no title\n|x" }]);
  });
});
