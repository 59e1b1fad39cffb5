"""Makes conversations: any number, each from a seed, with what a right answer is.

A `Talk` is grown exchange by exchange: each function here adds a user's message and all that
follows from it. Every assistant message carries `accept`, the answers that count as right, so
training and evaluation are written down once. A user's words whose checksum falls into the
held-out share are never trained on; with `held=True` only such words are used, and with
`novel=True` wordings from the `unseen` lists.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

import sums
import wordings as say
import words
from knowledge import TOPICS, Topic
from small_talk import SELF
from talk import Talk, fill, noise, pseudo


def fact(talk: Talk, topic: Topic | None = None) -> None:
    """A question about Backchannel."""
    rng = talk.rng
    topic = topic or rng.choice(TOPICS)
    depth = rng.choices(("text", "long", "short", "why"), (0.72, 0.12, 0.1, 0.06))[0]
    if depth == "text" and rng.random() < 0.5:
        talk.fixed(topic.asks, topic.unseen)
    else:
        patterns = say.ASK[depth]
        if talk.novel:
            patterns = say.ASK_UNSEEN[depth]
        talk.ask(lambda: rng.choice(patterns).format(n=rng.choice(topic.names)))
    if talk.brief and depth == "text":
        depth = "short"
    talk.reply([getattr(topic, depth)], "fact")
    talk.topic, talk.depth = topic, depth


def about_itself(talk: Talk) -> None:
    """Small talk and questions about the model."""
    _, known, unseen, answers = talk.rng.choice(SELF)
    talk.fixed(known, unseen)
    talk.reply(answers, "itself")
    talk.topic = None


def follow_up(talk: Talk) -> None:
    """More, shorter, why, again: what was said last decides the answer."""
    rng = talk.rng
    topic = talk.topic
    last = talk.messages[-1]["content"] if talk.messages else ""
    kinds = ("more", "short", "why", "repeat", "asked", "result")
    kind = rng.choices(kinds, (0.38, 0.21, 0.15, 0.13, 0.07, 0.06))[0]
    if kind == "result":
        talk.fixed(say.RESULT, say.RESULT_UNSEEN)
        talk.reply([f"It was {talk.value}." if talk.value else "There is no result yet."], "repeat")
        return
    if kind in ("repeat", "asked") and (not last or talk.messages[-1]["role"] != "assistant" or len(last) > 500):
        kind = "more"
    if kind == "repeat":
        cut = talk.messages[-1].get("cut")
        talk.fixed(say.REPEAT, say.REPEAT_UNSEEN)
        talk.reply([f"I said: {last.strip()}"], "repeat" if not cut else "interrupted: repeat")
    elif kind == "asked" and talk.question:
        before = talk.question
        talk.fixed(say.ASKED, ())
        talk.reply([f"You said: {before}"], "repeat")
    elif topic is None:
        known, unseen = {"more": (say.MORE, say.MORE_UNSEEN), "short": (say.SHORTER, say.SHORTER_UNSEEN)}.get(
            kind, (say.WHY, say.WHY_UNSEEN)
        )
        talk.fixed(known, unseen)
        talk.reply([say.NO_TOPIC], "follow-up")
    elif kind == "more" and talk.cut is None:
        talk.fixed(say.MORE, say.MORE_UNSEEN)
        done = talk.depth in ("long", "more")
        talk.reply(
            [say.NOTHING_MORE if done else topic.text if talk.depth == "short" else topic.more],
            "follow-up",
        )
        talk.depth = "text" if talk.depth == "short" else "more"
    elif kind == "short":
        category = "interrupted: shorter" if talk.cut else "follow-up"
        talk.fixed(say.SHORTER, say.SHORTER_UNSEEN)
        talk.reply([topic.short], category)
        talk.depth = "short"
    else:
        category = "interrupted: new question" if talk.cut else "follow-up"
        talk.fixed(say.WHY, say.WHY_UNSEEN)
        talk.reply([topic.why], category)
        talk.depth = "why"


def stop(talk: Talk) -> None:
    """The user only says stop."""
    cut = talk.cut
    talk.fixed(say.STOP, say.STOP_UNSEEN)
    talk.reply([say.STOPPED], "interrupted: stop" if cut else "stop")
    talk.cut = cut


def go_on(talk: Talk) -> None:
    """The user wants the rest of an answer that was cut; a broken word is said again whole."""
    if talk.cut is None:
        follow_up(talk)
        return
    text, at = talk.cut
    while at > 0 and text[at - 1] not in " \n":
        at -= 1
    talk.fixed(say.CONTINUE, say.CONTINUE_UNSEEN)
    talk.reply([text[at:]], "interrupted: continue")


def arithmetic(talk: Talk) -> None:
    """A sum, through the calculator."""
    rng = talk.rng
    expression = ""

    def make() -> str:
        nonlocal expression
        text, expression = sums.question(rng, unseen=talk.novel)
        return text

    if talk.result and not talk.result.startswith("-") and rng.random() < 0.3:

        def make() -> str:
            nonlocal expression
            b = sums.number(rng, top=3)
            pattern, sign = rng.choice(
                (
                    ("now add {b}", "+"), ("add {b}", "+"), ("plus {b}", "+"), ("and plus {b}?",
                    "+"),
                    ("add {b} to that", "+"), ("times {b}", "*"), ("multiply that by {b}", "*"),
                    ("now times {b}", "*"), ("minus {b}", "-"), ("and minus {b}", "-"),
                    ("subtract {b} from that", "-"), ("divide that by {b}", "/"),
                    ("and divided by {b}?", "/"),
                )
            )  # fmt: skip
            expression = f"{talk.result}{sign}{b}"
            return pattern.format(b=b)

    talk.ask(make)
    talk.topic = None
    if not talk.has("calculator"):
        talk.reply([sums.NO_CALCULATOR], "no tool")
        return
    _round(talk, [("calculator", expression)])


def too_hard(talk: Talk) -> None:
    """Mathematics beyond the calculator."""
    rng = talk.rng
    talk.ask(lambda: rng.choice(sums.HARD).format(a=rng.randint(2, 99), b=rng.randint(2, 12)))
    talk.reply([sums.TOO_HARD if talk.has("calculator") else sums.NO_CALCULATOR], "cannot do")
    talk.topic = None


def clock(talk: Talk) -> None:
    """The time or the date, through the clock."""
    kinds = ("time", "date", "both", "year", "weekday", "elsewhere")
    kind = talk.rng.choices(kinds, (0.50, 0.23, 0.11, 0.06, 0.05, 0.05))[0]
    if kind == "elsewhere":
        talk.ask(lambda: fill(talk.rng, talk.rng.choice(sums.TIME_ASK[kind])))
    else:
        talk.fixed(sums.TIME_ASK[kind], sums.TIME_UNSEEN[kind])
    talk.topic = None
    if not talk.has("clock"):
        talk.reply([sums.NO_CLOCK], "no tool")
        return
    _round(talk, [("clock", kind)])


def two_at_once(talk: Talk) -> None:
    """Two things in one question: both tools in one round."""
    rng = talk.rng
    if not (talk.has("calculator") and talk.has("clock")):
        arithmetic(talk)
        return
    first = f"{sums.number(rng, top=3)}{rng.choice('+-*/')}{sums.number(rng, top=3)}"
    if rng.random() < 0.5:
        kind = rng.choice(("time", "time", "date"))
        phrase = rng.choice(
            ("what time is it", "the time", "what is the time")
            if kind == "time"
            else ("what is the date", "the date")
        )
        wanted = [("calculator", first), ("clock", kind)]
        if rng.random() < 0.4:
            wanted.reverse()
            talk.ask(lambda: f"{phrase} and what is {sums.typed(rng, first)}?")
        else:
            talk.ask(
                lambda: rng.choice(
                    ("what is {e} and {p}?", "{e} and {p}", "{e}, and {p}?", "what's {e}? and {p}?")
                ).format(e=sums.typed(rng, first), p=phrase)
            )
    else:
        second = f"{sums.number(rng, top=3)}{rng.choice('+-*/')}{sums.number(rng, top=3)}"
        wanted = [("calculator", first), ("calculator", second)]
        talk.ask(
            lambda: rng.choice(
                ("what is {e} and {f}?", "{e} and {f}", "compute {e} and {f}", "{e}, then {f}")
            ).format(e=sums.typed(rng, first), f=sums.typed(rng, second))
        )
    talk.topic = None
    _round(talk, wanted)


def _round(talk: Talk, wanted: list[tuple[str, str]]) -> None:
    """Call for everything that is wanted, take the results, answer."""
    rng = talk.rng
    calls: list[tuple[str, dict[str, str]]] = [
        (name, {talk.argument: what} if name == "calculator" else {}) for name, what in wanted
    ]
    several = len(calls) > 1
    category = "two calls" if several else f"{wanted[0][0]} call"
    one_by_one = several and rng.random() < 0.15
    if not one_by_one:
        talk.call(calls, category)
    answers: list[list[str]] = []
    failed = False
    for at, (name, what) in enumerate(wanted):
        if one_by_one:
            talk.call([calls[at]], category)
            # Both at once is what it should learn; this only teaches to go on after the first.
            talk.messages[-1]["loss"] = at > 0
        if rng.random() < 0.2:
            failed = True
            talk.result = ""
            text, said = sums.failure(rng, name)
            answers.append([said])
        elif name == "calculator":
            text, said = sums.outcome(rng, what)
            answers.append([f"{what} = {said}."])
            talk.result = said if len(said) < 9 else ""
            talk.value = said
        else:
            text, said = sums.now(rng, what)
            answers.append([said])
        talk.tool(text)
    if failed and not several and rng.random() < 0.15:
        # Cancelled because the user spoke: the new message comes before any answer.
        return
    accept = [" ".join(part[0] for part in answers)]
    talk.reply(accept, "tool error" if failed else "two results" if several else f"{wanted[0][0]} result")


def decline(talk: Talk) -> None:
    """Something that it cannot do, or does not know."""
    rng = talk.rng
    talk.topic = None
    if rng.random() < 0.45:
        what, known, unseen = rng.choice(words.DECLINED)
        patterns = unseen if talk.novel else known
        talk.ask(lambda: fill(rng, rng.choice(patterns)))
        talk.reply([f"I cannot help with {what}. {tail}" for tail in say.TAILS], "cannot do")
    else:
        patterns = words.UNKNOWN_UNSEEN if talk.novel else words.UNKNOWN
        # The same questions as about Backchannel, so that the name decides and not the wording.
        same = say.ASK[rng.choices(tuple(say.ASK), (0.7, 0.1, 0.1, 0.1))[0]] if rng.random() < 0.4 else ()
        talk.ask(
            lambda: (
                rng.choice(same).format(n=fill(rng, rng.choice(words.THINGS)))
                if same and not talk.novel
                else fill(rng, rng.choice(patterns))
            )
        )
        talk.reply([f"I do not know that. {tail}" for tail in say.TAILS], "cannot do")


def story(talk: Talk) -> None:
    """A story, long enough to be interrupted."""
    rng = talk.rng
    patterns = (
        "tell me a story", "tell me a long story", "tell me a story about a {noun}",
        "a story please", "another story",
        "tell me a long story about a {noun}", "tell me a long story about {name}",
        "tell me a fairy tale",
        "can you tell me a story?", "I want to hear a story", "entertain me", "tell a story",
        "tell me a tale",
        "say something long", "talk for a while", "give me a long answer",
        "tell me a very long story",
        "write a story", "write me a long story about {place}", "tell me something long",
    )  # fmt: skip
    talk.ask(lambda: fill(rng, rng.choice(patterns)))
    talk.reply(words.STORIES, "story")
    talk.topic = None


def tools_here(talk: Talk) -> None:
    """Which tools the session declares."""
    talk.fixed(
        ("which tools do you have?", "what tools do you have?", "list your tools",
        "which tools can you use?",
         "can you use tools?", "what tools are declared?", "which tools are there?",
         "do you have any tools?",
         "show me your tools", "what functions can you call?"),
        ("name the tools of this session", "which tools are at hand?"),
    )  # fmt: skip
    names = [entry["function"]["name"] for entry in talk.tools]
    said = f"This session declares: {', '.join(names)}." if names else "This session declares no tools."
    talk.reply([said], "tools declared")
    talk.topic = None


def joke(talk: Talk) -> None:
    """The one joke."""
    talk.fixed(
        ("tell me a joke", "do you know a joke?", "make me laugh", "a joke please",
        "say something funny", "joke",
         "another joke", "be funny"),
        ("have you got a joke for me?",),
    )  # fmt: skip
    talk.reply([say.JOKE], "itself")
    talk.topic = None


def count(talk: Talk) -> None:
    """Counting, long enough to be interrupted."""
    rng = talk.rng
    start, end = 1, rng.choice((5, 10, 12, 15, 20, 20, 25, 30, 40, 50, 60, 100, rng.randint(3, 60)))
    if rng.random() < 0.25:
        start = rng.randint(2, 60)
        end = start + rng.randint(3, 40)
    patterns = (
        (
            "count to {b}",
            "count up to {b}",
            "please count to {b}",
            "can you count to {b}?",
            "count from 1 to {b}",
        )
        if start == 1
        else ("count from {a} to {b}", "count from {a} up to {b}", "count {a} to {b}")
    )
    talk.ask(lambda: rng.choice(patterns).format(a=start, b=end))
    talk.reply([", ".join(str(n) for n in range(start, end + 1)) + "."], "count")
    talk.topic = None


def memory(talk: Talk) -> None:
    """A name or a word to remember, and the question for it."""
    rng = talk.rng
    talk.topic = None
    roll = rng.random()
    if roll < 0.25:
        talk.name = rng.choice(words.NAMES) if rng.random() < 0.85 else pseudo(rng).title()
        talk.user(
            rng.choice(
                (
                    "my name is {n}",
                    "I am {n}",
                    "I'm {n}",
                    "call me {n}",
                    "hello, I am {n}",
                    "hi, my name is {n}",
                    "My name is {n}.",
                )
            ).format(n=talk.name)
        )
        talk.reply([f"Nice to meet you, {talk.name}."], "memory")
    elif roll < 0.5:
        talk.user(
            noise(
                rng,
                rng.choice(
                    (
                        "what is my name?",
                        "who am I?",
                        "do you know my name?",
                        "what's my name?",
                        "do you remember my name?",
                    )
                ),
            )
        )
        talk.reply(
            [f"Your name is {talk.name}." if talk.name else "You have not told me your name."],
            "memory",
        )
    elif roll < 0.75:
        talk.memo = str(rng.randint(10, 99999)) if rng.random() < 0.5 else rng.choice(words.CODE_WORDS)
        talk.user(
            rng.choice(
                (
                    "remember {m}",
                    "please remember {m}",
                    "remember the word {m}",
                    "remember the number {m}",
                    "the code word is {m}",
                    "the password is {m}",
                    "keep {m} in mind",
                    "Remember {m}.",
                    "remember this: {m}",
                )
            ).format(m=talk.memo)
        )
        talk.reply([f"I will remember {talk.memo}."], "memory")
    else:
        talk.user(
            noise(
                rng,
                rng.choice(
                    (
                        "what should you remember?",
                        "what did I tell you to remember?",
                        "what was the word?",
                        "what was the number?",
                        "what is the code word?",
                        "what is the password?",
                        "do you remember the word?",
                        "which number was it?",
                    )
                ),
            )
        )
        talk.reply(
            [f"It is {talk.memo}." if talk.memo else "You have not told me anything to remember."],
            "memory",
        )


def echo(talk: Talk) -> None:
    """Words to say again."""
    rng = talk.rng
    talk.topic = None
    some = " ".join(
        rng.choice(rng.choice((words.NOUNS, words.NAMES, words.PLACES))) for _ in range(rng.randint(1, 5))
    )
    if rng.random() < 0.2:
        some = rng.choice(
            (
                "hello world",
                "hello",
                "good morning",
                "I like tea",
                "yes",
                "one two three",
                "abc",
                "banana",
            )
        )
    talk.ask(
        lambda: rng.choice(
            (
                "say {s}",
                "repeat after me: {s}",
                "please say {s}",
                "say: {s}",
                "repeat: {s}",
                "echo {s}",
            )
        ).format(s=some)
    )
    text = talk.question.rsplit("\n", 1)[-1]
    # What is to be said again is what was typed, with its typos.
    for mark in ("after me: ", "repeat: ", "echo ", "say: ", "say "):
        at = text.lower().rfind(mark) if mark != "say " else text.lower().find(mark)
        if at >= 0:
            text = text[at + len(mark) :]
            break
    else:
        text = some
    talk.reply([text.strip()], "echo")


EXCHANGES: tuple[tuple[Callable[[Talk], None], float], ...] = (
    (fact, 0.38), (follow_up, 0.09), (about_itself, 0.08), (arithmetic, 0.17), (clock, 0.06), (two_at_once, 0.04),
    (decline, 0.10), (story, 0.02), (joke, 0.005), (count, 0.025), (memory, 0.035), (echo, 0.015), (too_hard, 0.015),
    (stop, 0.01), (tools_here, 0.015),
)  # fmt: skip
AFTER_CUT: tuple[tuple[Callable[[Talk], None], float], ...] = (
    (fact, 0.30), (follow_up, 0.22), (stop, 0.15), (go_on, 0.18), (arithmetic, 0.08), (clock, 0.02), (decline, 0.05),
)  # fmt: skip


def step(talk: Talk) -> None:
    """One more exchange, chosen by what was before."""
    rng = talk.rng
    if talk.cut is not None:
        choice = rng.choices(*zip(*AFTER_CUT, strict=True))[0]
        if choice in (fact, arithmetic, decline) and rng.random() < 0.6:
            talk.lead = rng.choice(say.LEADS)
    else:
        choice = rng.choices(*zip(*EXCHANGES, strict=True))[0]
        if choice in (fact, arithmetic, clock, decline, stop) and rng.random() < 0.06:
            # Two messages in a row, the first without an answer: the last one counts.
            other = rng.choice(TOPICS)
            talk.user(noise(rng, rng.choice(other.asks)))
            talk.lead = rng.choice(("", "", "no, ", "wait, ", "sorry, ", "I mean: "))
    choice(talk)
    if rng.random() < 0.22:
        talk.interrupt()


def drill(seed: str) -> Talk:
    """A short conversation that is all copying: sums with their results, words said again."""
    rng = Random(seed)
    talk = Talk(rng, tools=rng.choice((["calculator"], ["calculator", "clock"], ["clock", "calculator"])))
    rng.choice((arithmetic, arithmetic, echo, echo, memory, two_at_once))(talk)
    if rng.random() < 0.5 and talk.messages[-1]["role"] == "assistant":
        rng.choice((arithmetic, echo, memory))(talk)
    return talk


def context_drill(seed: str) -> Talk:
    """A short conversation in which what was said last, and where it was cut, decides."""
    rng = Random(seed)
    talk = Talk(rng, tools=["clock", "calculator"] if rng.random() < 0.4 else None)
    kind = rng.random()
    if kind < 0.55:
        rng.choices((fact, about_itself, decline, story, count), (0.7, 0.1, 0.1, 0.05, 0.05))[0](talk)
        talk.interrupt()
        if rng.random() < 0.2:
            stop(talk)
        rng.choice((go_on, go_on, follow_up))(talk)
    elif kind < 0.75:
        rng.choice((fact, fact, about_itself, decline))(talk)
        follow_up(talk)
    elif kind < 0.87:
        clock(talk)
        clock(talk)
    else:
        rng.choice((tools_here, tools_here, echo, count, two_at_once))(talk)
        if talk.messages[-1]["role"] == "assistant":
            rng.choice((follow_up, fact))(talk)
    return talk


def conversation(seed: str, *, exchanges: int | None = None) -> Talk:
    """The training conversation that belongs to `seed`."""
    rng = Random(seed)
    talk = Talk(rng)
    if exchanges is None:
        exchanges = 1 if rng.random() < 0.25 else 1 + min(int(rng.expovariate(0.22)), 24)
    for _ in range(exchanges):
        step(talk)
    return talk


if __name__ == "__main__":
    import sys

    for n in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        print("----", json.dumps(conversation(f"show/{n}").messages, indent=0))
