/**
 * Markdown, the part of it that answers use, straight to elements.
 *
 * Nothing here ever becomes HTML text: whatever the model writes ends as a text node or as one of
 * the elements below, and a link as one to http, https or mailto.
 */
import type { ComponentChildren, VNode } from "preact";
import { Copy } from "./copy.js";
import { memo } from "./memo.js";

type Block =
  | { readonly kind: "paragraph" | "quote"; readonly text: string }
  | { readonly kind: "heading"; readonly level: number; readonly text: string }
  | { readonly kind: "code"; readonly language: string; readonly text: string }
  | { readonly kind: "list"; readonly ordered: boolean; readonly start: number; readonly items: readonly Item[] }
  | { readonly kind: "table"; readonly head: readonly string[]; readonly rows: readonly (readonly string[])[] }
  | { readonly kind: "rule" };

interface Item {
  readonly text: string;
  readonly depth: number;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const BULLET = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}>\s?/;
const TABLE_LINE = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

/** Cuts a text into blocks. A text that grows changes its last block only, mostly. */
export function blocksOf(text: string): Block[] {
  const lines = text.split("\n");
  const blocks: Block[] = [];
  let at = 0;
  const while_ = (test: (line: string) => boolean): string[] => {
    const from = at;
    while (at < lines.length && test(lines[at] ?? "")) {
      at += 1;
    }
    return lines.slice(from, at);
  };
  while (at < lines.length) {
    const line = lines[at] ?? "";
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (line.trim() === "") {
      at += 1;
    } else if (fence) {
      at += 1;
      const mark = fence[1] ?? "```";
      const body = while_((each) => !each.trimStart().startsWith(mark));
      at += 1;
      blocks.push({ kind: "code", language: fence[2] ?? "", text: body.join("\n") });
    } else if (heading) {
      at += 1;
      blocks.push({ kind: "heading", level: heading[1]?.length ?? 1, text: heading[2] ?? "" });
    } else if (RULE.test(line)) {
      at += 1;
      blocks.push({ kind: "rule" });
    } else if (QUOTE.test(line)) {
      const quoted = while_((each) => QUOTE.test(each));
      blocks.push({ kind: "quote", text: quoted.map((each) => each.replace(QUOTE, "")).join("\n") });
    } else if (BULLET.test(line)) {
      const body = while_((each) => BULLET.test(each) || /^\s+\S/.test(each));
      blocks.push(listOf(body));
    } else if (line.includes("|") && TABLE_LINE.test(lines[at + 1] ?? "x")) {
      const [head = "", , ...rows] = while_((each) => each.includes("|"));
      blocks.push({ kind: "table", head: cellsOf(head), rows: rows.map(cellsOf) });
    } else {
      const body = while_((each) => each.trim() !== "" && !startsBlock(each));
      // A line that looks like a start and was not taken above is text after all.
      const first = body.length > 0 ? body : [lines[at++] ?? ""];
      blocks.push({ kind: "paragraph", text: first.join("\n") });
    }
  }
  return blocks;
}

function startsBlock(line: string): boolean {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || BULLET.test(line);
}

function listOf(lines: readonly string[]): Block {
  const items: { text: string; depth: number }[] = [];
  const first = BULLET.exec(lines[0] ?? "");
  for (const line of lines) {
    const bullet = BULLET.exec(line);
    const last = items.at(-1);
    if (bullet) {
      items.push({ text: bullet[3] ?? "", depth: Math.min(4, Math.floor((bullet[1]?.length ?? 0) / 2)) });
    } else if (last) {
      last.text += `\n${line.trim()}`;
    }
  }
  return { kind: "list", ordered: first?.[2] !== undefined, start: Number(first?.[2] ?? 1), items };
}

function cellsOf(line: string): string[] {
  return line
    .trim()
    .replace(/^\||\|$/g, "")
    .split("|")
    .map((cell) => cell.trim());
}

const INLINE =
  /(`+)([\s\S]*?[^`])\1(?!`)|\*\*([\s\S]+?)\*\*|__([\s\S]+?)__|(?<![\w*])\*(?![\s*])([\s\S]*?[^\s*])\*(?!\*)|(?<![\w_])_(?![\s_])([\s\S]*?[^\s_])_(?!\w)|~~([\s\S]+?)~~|\[([^\]\n]+)\]\(([^()\s]+)\)|(https?:\/\/[^\s<>()]*[^\s<>().,:;!?'"])/;
const MAX_DEPTH = 8;

/** Cuts a line into text and marked parts. */
export function inline(text: string, depth = 0): ComponentChildren[] {
  const parts: ComponentChildren[] = [];
  let rest = text;
  while (rest !== "") {
    const found = depth < MAX_DEPTH ? INLINE.exec(rest) : null;
    if (!found) {
      parts.push(rest);
      break;
    }
    if (found.index > 0) {
      parts.push(rest.slice(0, found.index));
    }
    parts.push(marked(found, depth + 1));
    rest = rest.slice(found.index + found[0].length);
  }
  return parts;
}

function marked(found: RegExpExecArray, depth: number): ComponentChildren {
  const [whole, , code, strong, strong2, em, em2, struck, label, target, bare] = found;
  if (code !== undefined) {
    return <code>{code.trim() === "" ? code : code.replace(/^ (.*) $/s, "$1")}</code>;
  }
  if (strong ?? strong2) {
    return <strong>{inline(strong ?? strong2 ?? "", depth)}</strong>;
  }
  if (em ?? em2) {
    return <em>{inline(em ?? em2 ?? "", depth)}</em>;
  }
  if (struck !== undefined) {
    return <s>{inline(struck, depth)}</s>;
  }
  const address = target ?? bare ?? "";
  if (!isSafe(address)) {
    return whole;
  }
  return (
    <a href={address} target="_blank" rel="noopener noreferrer nofollow">
      {label === undefined ? address : inline(label, depth)}
    </a>
  );
}

/** Whether a link may be followed. */
export function isSafe(address: string): boolean {
  return /^(?:https?:\/\/|mailto:)/i.test(address);
}

function CodeBlock({ language, text }: { language: string; text: string }): VNode {
  return (
    <figure class="code">
      <figcaption>
        <span>{language || "text"}</span>
        <Copy what="code" text={text} />
      </figcaption>
      <pre tabIndex={0}>
        <code>{text}</code>
      </pre>
    </figure>
  );
}

const BlockView = memo(
  ({ block }: { block: Block }): VNode => {
    switch (block.kind) {
      case "heading": {
        // The page has headings of its own above these.
        const Tag = `h${Math.min(6, block.level + 2)}` as "h3";
        return <Tag>{inline(block.text)}</Tag>;
      }
      case "code":
        return <CodeBlock language={block.language} text={block.text} />;
      case "quote":
        return <blockquote>{inline(block.text)}</blockquote>;
      case "rule":
        return <hr />;
      case "list": {
        const items = block.items.map((item, index) => (
          <li key={index} class={`depth-${item.depth}`}>
            {inline(item.text)}
          </li>
        ));
        return block.ordered ? <ol start={block.start}>{items}</ol> : <ul>{items}</ul>;
      }
      case "table":
        return (
          <div class="table" tabIndex={0} role="region" aria-label="Table">
            <table>
              <thead>
                <tr>
                  {block.head.map((cell, index) => (
                    <th key={index}>{inline(cell)}</th>
                  ))}
                </tr>
              </thead>
              <tbody>
                {block.rows.map((row, index) => (
                  <tr key={index}>
                    {row.map((cell, column) => (
                      <td key={column}>{inline(cell)}</td>
                    ))}
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        );
      case "paragraph":
        return <p>{inline(block.text)}</p>;
    }
  },
  (before, after) => same(before.block, after.block),
);

function same(one: Block, other: Block): boolean {
  if (one.kind === "paragraph" && other.kind === "paragraph") {
    return one.text === other.text;
  }
  return JSON.stringify(one) === JSON.stringify(other);
}

/** A text as Markdown. */
export function Markdown({ text }: { text: string }): VNode {
  return (
    <div class="markdown">
      {blocksOf(text).map((block, index) => (
        <BlockView key={index} block={block} />
      ))}
    </div>
  );
}
