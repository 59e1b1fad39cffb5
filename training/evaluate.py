"""Exact-match rates of a GGUF on held-out prompts, measured through llama.cpp as users run it.

    python evaluate.py --count 100

*Known wording* asks as training does, after 0 to 4 other exchanges: with held-out combinations of
wording, name and number where there are such (one twelfth of them all, see talk.py), else with a
question that training has too. *New wording* asks in words that training never uses. An answer
counts only if it equals an accepted one to the letter, a tool call only if name and arguments are
equal.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from dialogue import step
from export import SHIPPED
from peer import Peer
from talk import Talk

# What is measured, in the order of the table, and what each row means.
CATEGORIES = {
    "fact": "question about Backchannel",
    "follow-up": "more, shorter, why: depends on the turn before",
    "itself": "greeting, thanks, who are you, what can you do",
    "calculator call": "calls calculator with the right expression",
    "calculator result": "says the value that came back",
    "clock call": "calls clock",
    "clock result": "says the time or date that came back",
    "two calls": "both calls in one round",
    "two results": "says both values",
    "tool error": "error, time-out or cancellation said plainly, no invented value",
    "no tool": "says that the tool is not declared",
    "tools declared": "lists the tools of the session",
    "cannot do": "declines what it cannot do or does not know",
    "stop": "stop, with nothing cut",
    "interrupted: stop": "stop after a cut answer",
    "interrupted: new question": "another question after a cut answer",
    "interrupted: shorter": "shorter, after a cut answer",
    "interrupted: continue": "the rest of a cut answer",
    "interrupted: repeat": "what it said, to the character of the cut",
    "continued prefix": "a trailing partial answer is carried on to its end",
    "repeat": "what it or the user said before",
    "memory": "a name or word given earlier",
    "count": "counts from a to b",
    "echo": "says given words",
    "story": "one of its stories, about 100 words",
}


# Where no wording is kept back, or the wording does not matter.
ONE_COLUMN = frozenset(
    "calculator result,clock result,two calls,two results,tool error,memory,count,echo,story,repeat,"
    "continued prefix".split(",")
)


@dataclass(frozen=True)
class Case:
    """One assistant message to be made, and what it may be."""

    category: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    accept: list[str]
    calls: list[tuple[str, dict[str, str]]]


def wire(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a chat completion takes them."""
    out: list[dict[str, Any]] = []
    pending: list[str] = []
    for at, message in enumerate(messages):
        entry = {"role": message["role"], "content": message["content"]}
        if message.get("tool_calls"):
            entry["tool_calls"] = [
                {
                    "id": f"call-{at}-{n}",
                    "type": "function",
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": json.dumps(call["function"]["arguments"]),
                    },
                }
                for n, call in enumerate(message["tool_calls"])
            ]
            pending = [call["id"] for call in entry["tool_calls"]]
        if message["role"] == "tool":
            entry["tool_call_id"] = pending.pop(0)
        out.append(entry)
    return out


def cases(seed: str, *, novel: bool = False) -> list[Case]:
    """The cases that one held-out conversation gives: those of its last exchange."""
    rng = Random(seed)
    talk = Talk(rng, held=True)
    for _ in range(rng.randrange(5)):
        step(talk)
    cut = talk.cut is not None
    mark = len(talk.messages)
    talk.novel = novel
    step(talk)
    found = []
    for at, message in enumerate(talk.messages):
        if at < mark or message["role"] != "assistant" or not message.get("loss", True):
            continue
        category = message["category"]
        if cut and category in ("fact", "calculator call", "clock call", "cannot do"):
            category = "interrupted: new question"
        before = wire(talk.messages[:at])
        wanted = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
        accept = message.get("accept", [])
        found.append(Case(category, before, talk.tools, accept, wanted))
        text = message["content"]
        if len(text) > 40 and not message.get("cut") and rng.random() < 0.2:
            # Stories and greetings vary; what was begun says which one is wanted.
            at = rng.randrange(8, len(text) - 8)
            begun = [*before, {"role": "assistant", "content": text[:at]}]
            found.append(Case("continued prefix", begun, talk.tools, [text[at:]], []))
    return found


def right(case: Case, answer: dict[str, Any]) -> bool:
    """Whether `answer` is exactly one of the accepted ones."""
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in answer.get("tool_calls", ())
    ]
    if case.calls:
        return calls == case.calls
    said = answer["content"]
    if case.category != "continued prefix":
        said = said.strip()
    return not calls and said in case.accept


@dataclass
class Score:
    """Right answers of a category."""

    right: int = 0
    of: int = 0

    def __str__(self) -> str:
        """As in the table."""
        return f"{self.right} of {self.of} ({self.right / self.of:.0%})" if self.of else ""


def measure(peer: Peer, args: argparse.Namespace, *, novel: bool) -> dict[str, Score]:
    """One column of the table."""
    wanted = [
        category
        for category in CATEGORIES
        if category.startswith(args.only) and not (novel and category in ONE_COLUMN)
    ]
    scores = {category: Score() for category in wanted}
    for n in range(100 * args.count):
        if all(score.of >= args.count for score in scores.values()):
            break
        for case in cases(f"{args.seed}/{novel}/{n}", novel=novel):
            score = scores.get(case.category)
            if score is None or score.of >= args.count:
                continue
            try:
                answer = peer.chat(
                    case.messages,
                    tools=case.tools,
                    temperature=args.temperature,
                    parallel_tool_calls=True,
                    seed=n,
                )
                good = right(case, answer)
            except (RuntimeError, ValueError) as error:
                answer, good = {"error": str(error)[:150]}, False
            score.of += 1
            score.right += good
            if not good and score.of - score.right <= args.show:
                last = [(m["role"], m.get("tool_calls") or m["content"]) for m in case.messages[-3:]]
                print(f"[{case.category}] {last}\n  want {case.calls or case.accept}\n  got  {answer}")
    return scores


def main() -> None:
    """Print the table, and with --show the first wrong answers of each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--count", type=int, default=60, help="cases a category and column")
    parser.add_argument("--seed", default="held", help="which cases")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print, a category")
    parser.add_argument("--only", default="", help="only categories that begin so")
    args = parser.parse_args()
    peer = Peer(args.model)
    known, novel = measure(peer, args, novel=False), measure(peer, args, novel=True)
    print(f"{args.model.name}, temperature {args.temperature}\n")
    print("| category | what | known wording | new wording |\n|---|---|---:|---:|")
    for category, score in known.items():
        print(f"| {category} | {CATEGORIES[category]} | {score} | {novel.get(category, Score())} |")
    sums = [Score(sum(s.right for s in c.values()), sum(s.of for s in c.values())) for c in (known, novel)]
    print(f"| all | | {sums[0]} | {sums[1]} |")


if __name__ == "__main__":
    main()
