"""Arithmetic and time: how people ask, what is called, what tools answer, what is said then."""

from __future__ import annotations

import datetime
import json
import re
from fractions import Fraction
from random import Random

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
MONTHS = ("January February March April May June July August September October November December").split()

# {e}: the expression as typed; unseen wordings are for evaluation only.
ASK = (
    "{e}", "{e}", "{e} =", "{e}?", "{e} = ?", "what is {e}?", "what's {e}?", "how much is {e}?",
    "calculate {e}", "compute {e}", "please calculate {e}", "can you compute {e}?", "evaluate {e}",
    "what does {e} make?", "how much does {e} make?", "tell me {e}", "work out {e}", "solve {e}",
    "what is the result of {e}?", "I need to know {e}", "do the math: {e}",
    "can you tell me what {e} is?",
    "what do you get for {e}?", "use the calculator for {e}", "could you work out {e} for me?",
    "give me {e}", "what would {e} be?", "how about {e}?", "and {e}?", "what about {e}?",
    "{e} is?", "{e} equals?", "{e} makes?",
)  # fmt: skip
ASK_UNSEEN = (
    "I would like to have the value of {e}", "find {e}", "quick question: how much would {e} be?",
    "please help me with {e}", "run {e} through the calculator", "do you know what {e} makes?",
)  # fmt: skip
# Whole phrases and the expression each stands for.
PHRASES = (
    ("add {a} and {b}", "{a}+{b}"), ("the sum of {a} and {b}", "{a}+{b}"),
    ("add {a} to {b}", "{b}+{a}"), ("subtract {a} from {b}", "{b}-{a}"),
    ("take {a} away from {b}", "{b}-{a}"),
    ("the difference of {a} and {b}", "{a}-{b}"), ("multiply {a} by {b}", "{a}*{b}"),
    ("multiply {a} and {b}", "{a}*{b}"), ("the product of {a} and {b}", "{a}*{b}"),
    ("divide {a} by {b}", "{a}/{b}"), ("half of {a}", "{a}/2"), ("a third of {a}", "{a}/3"),
    ("double {a}", "{a}*2"), ("twice {a}", "{a}*2"), ("{a} squared", "{a}*{a}"),
    ("the square of {a}", "{a}*{a}"),
    ("{a} percent of {b}", "{a}*{b}/100"), ("{a}% of {b}", "{a}*{b}/100"),
    ("the average of {a} and {b}", "({a}+{b})/2"), ("the sum of {a} and {b}, times {c}",
    "({a}+{b})*{c}"),
    ("add {a} and {b}, then multiply by {c}", "({a}+{b})*{c}"), ("{a} more than {b}", "{b}+{a}"),
    ("{a} less than {b}", "{b}-{a}"), ("the sum of {a}, {b} and {c}", "{a}+{b}+{c}"),
    ("add {a}, {b} and {c}", "{a}+{b}+{c}"), ("a quarter of {a}", "{a}/4"), ("three times {a}",
    "3*{a}"),
)  # fmt: skip
PROBLEMS = (
    ("I have {a} apples and buy {b} more. How many have I got?", "{a}+{b}"),
    ("I had {a} euros and spent {b}. How much is left?", "{a}-{b}"),
    ("{a} boxes hold {b} eggs each. How many eggs is that?", "{a}*{b}"),
    ("{a} people share {b} coins. How many does each one get?", "{b}/{a}"),
    ("a ticket costs {a} euros, how much are {b} tickets?", "{a}*{b}"),
    ("how many hours are {a} days?", "{a}*24"), ("how many minutes are {a} hours?", "{a}*60"),
    ("how many seconds are {a} minutes?", "{a}*60"),
)  # fmt: skip
WRAP = (
    "{p}",
    "{p}",
    "what is {p}?",
    "calculate {p}",
    "compute {p}",
    "please tell me {p}",
    "how much is {p}?",
)

WORDS = {
    "+": (" plus ", "+", " + ", " and "),
    "-": (" minus ", "-", " - ", " less "),
    "*": (" times ", "*", " * ", " x ", "x", " × ", " multiplied by "),
    "/": (" divided by ", "/", " / ", " over ", " ÷ "),
}

NO_CALCULATOR = "I cannot compute that without a calculator tool, and this session declares none."
NO_CLOCK = "I cannot know the time without a clock tool, and this session declares none."
TOO_HARD = "I cannot do that: I use the calculator for + - * / and parentheses only."
HARD = (
    "what is the square root of {a}?", "sqrt({a})", "what is the sine of {a}?",
    "what is {a} to the power of {b}?",
    "what is the logarithm of {a}?", "is {a} a prime number?", "{a}^{b}", "integrate x squared",
    "solve x + {a} = {b}", "what is {a} factorial?", "what is {a} modulo {b}?", "factor {a}",
    "what is the derivative of x^{a}?", "the cube root of {a}", "log({a})", "what is pi?", "{a}!",
)  # fmt: skip

TIME_ASK = {
    "time": (
        "what time is it?", "what is the time?", "tell me the time", "time please",
        "what's the time?",
        "do you know the time?", "how late is it?", "can you tell me the time?", "current time",
        "what time do we have?", "the time?", "what is the current time?", "give me the time",
        "what time is it now?", "could you check the clock?", "is it late?", "check the time",
    ),
    "date": (
        "what is the date?", "what day is it today?", "what is today's date?", "which day is it?",
        "tell me the date", "today's date please", "what date is it?", "current date",
        "what is the date today?", "which date do we have?", "give me today's date",
        "what's the date?",
    ),
    "both": (
        "what is the date and time?", "tell me the date and the time", "what time and date is it?",
        "date and time please", "time and date", "give me the time and the date", "when is now?",
    ),
    "year": (
        "what year is it?", "which year is it?", "what year do we have?", "tell me the year",
        "in which year are we?", "what is the current year?",
    ),
}  # fmt: skip
TIME_ASK["weekday"] = (
    "what weekday is it?", "which day of the week is it?", "is it Monday?",
    "what day of the week is today?",
    "is today Sunday?", "which weekday do we have?", "is it Friday today?",
)  # fmt: skip
TIME_ASK["elsewhere"] = (
    "what time is it in {place}?", "tell me the time in {place}", "time in {place}",
    "how late is it in {place}?",
    "what is the time in {place}?", "current time in {place} please",
)  # fmt: skip
TIME_UNSEEN = {
    "time": ("have you got the time?", "what does the clock say?", "please look at the clock",
    "what is the hour?"),
    "date": ("which date is today?", "may I have the date of today?"),
    "both": ("please give me date and time",),
    "year": ("what is the year now?",),
    "weekday": ("what is today's weekday?",),
}  # fmt: skip

ERRORS = (
    "division by zero", "invalid expression", "syntax error", "not available", "out of memory",
    "permission denied", "no such tool", "unknown", "internal error", "the tool crashed",
    "overflow", "connection refused", "rate limit exceeded", "bad request", "disk full",
    "not implemented", "the user said no", "number too large", "service unavailable",
    "lost with the server; it may or may not have run", "unknown; it may or may not have run",
    "the tool is broken", "access denied", "no clock here", "unexpected token", "try again later",
)  # fmt: skip
TIMED_OUT = (
    "timed out", "timed out", "timed out; it may still be running", "timed out after 60 seconds",
    "timed out; it may or may not have run", "timed out: no answer in time",
)  # fmt: skip
CANCELLED = (
    "cancelled", "cancelled", "cancelled; it may or may not have run", "cancelled by the user",
    "cancelled: the user interrupted", "cancelled; it may have run",
)  # fmt: skip


def number(rng: Random, *, top: int = 5) -> str:
    """A number as somebody may type it: mostly an integer of 1 to `top` digits."""
    roll = rng.random()
    if roll < 0.07:
        return f"{rng.randint(0, 999)}.{rng.randint(1, 9)}"
    if roll < 0.11:
        return f"{rng.randint(0, 99)}.{rng.randint(0, 9)}{rng.randint(1, 9)}"
    digits = rng.choice((1, 1, 2, 2, 2, 3, 3, 4, 5)[: max(1, 2 * top - 1)])
    return str(rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1))


def value(expression: str) -> Fraction | None:
    """What `expression` makes, or None when it divides by zero. The input is always our own."""
    try:
        return _evaluate(expression)
    except ZeroDivisionError:
        return None


def _evaluate(expression: str) -> Fraction:
    """Recursive descent over + - * / ( ) with exact fractions."""
    at = 0

    def peek() -> str:
        return expression[at] if at < len(expression) else ""

    def total() -> Fraction:
        nonlocal at
        left = product()
        while peek() in ("+", "-"):
            sign, at = peek(), at + 1
            right = product()
            left = left + right if sign == "+" else left - right
        return left

    def product() -> Fraction:
        nonlocal at
        left = atom()
        while peek() in ("*", "/"):
            sign, at = peek(), at + 1
            right = atom()
            left = left * right if sign == "*" else left / right
        return left

    def atom() -> Fraction:
        nonlocal at
        if peek() == "-":
            at += 1
            return -atom()
        if peek() == "(":
            at += 1
            inner = total()
            at += 1
            return inner
        start = at
        while peek().isdigit() or peek() == ".":
            at += 1
        return Fraction(expression[start:at])

    return total()


def typed(rng: Random, expression: str) -> str:
    """`expression` with spaces, other signs or words, as people write it."""
    style = rng.random()
    out = ""
    for at, char in enumerate(expression):
        sign = char in WORDS and at > 0 and expression[at - 1] not in "(+-*/"
        if sign and style < 0.45:
            # "and" for plus is left to whole phrases: "3 and 4" alone says nothing.
            words = [w for w in WORDS[char] if w != " and "]
            out += words[0] if style < 0.25 else rng.choice(words)
        elif sign and style < 0.7:
            out += f" {char} "
        else:
            out += char
    return out


def question(rng: Random, *, unseen: bool = False) -> tuple[str, str]:
    """A prompt and the expression that it asks for."""
    a, b, c, d = (number(rng) for _ in range(4))
    roll = rng.random()
    if roll < 0.50 or unseen:
        expression = f"{a}{rng.choice('+-*/')}{b}"
    elif roll < 0.58:
        expression = f"{a}{rng.choice('+-*/')}{b}{rng.choice('+-*/')}{c}"
    elif roll < 0.61:
        expression = f"{a}{rng.choice('+-')}{b}{rng.choice('+-*')}{c}{rng.choice('+-')}{d}"
    elif roll < 0.65:
        expression = f"({a}{rng.choice('+-')}{b}){rng.choice('*/')}{c}"
    elif roll < 0.68:
        expression = f"{a}{rng.choice('*/+-')}({b}{rng.choice('+-')}{c})"
    elif roll < 0.69:
        expression = f"({a}{rng.choice('+-')}{b})*({c}{rng.choice('+-')}{d})"
    elif roll < 0.70:
        expression = f"-{a}{rng.choice('+*-')}{b}"
    elif roll < 0.75:
        x, y = rng.randrange(21), rng.randrange(21)
        sign = rng.choice("+-*/")
        word = WORDS[sign][0]
        text = f"{SMALL[x]}{word}{SMALL[y]}"
        return rng.choice(ASK).format(e=text), f"{x}{sign}{y}"
    elif roll < 0.95:
        phrase, expression = rng.choice(PHRASES)
        prompt = rng.choice(WRAP).format(p=phrase.format(a=a, b=b, c=c))
        return prompt, expression.format(a=a, b=b, c=c)
    else:
        x, y = str(rng.randint(2, 999)), str(rng.randint(2, 999))
        prompt, expression = rng.choice(PROBLEMS)
        return prompt.format(a=x, b=y), expression.format(a=x, b=y)
    shown = typed(rng, expression)
    if rng.random() < 0.03:
        # Thousands with a comma, as some write them.
        shown = re.sub(r"\b\d{4,5}\b(?![.])", lambda found: f"{int(found.group()):,}", shown)
    return rng.choice(ASK_UNSEEN if unseen else ASK).format(e=shown), expression


def outcome(rng: Random, expression: str) -> tuple[str, str]:
    """What a calculator returns as JSON, and the value as it must be said."""
    result = value(expression)
    if result is None or rng.random() < 0.25:
        # A value that does not fit teaches to copy and not to guess.
        said = number(rng) if rng.random() < 0.8 else str(rng.randint(-999999, 99999999))
    elif result.denominator == 1:
        said = str(result.numerator) if rng.random() < 0.9 else f"{result.numerator}.0"
    else:
        near = float(result)
        said = repr(near) if rng.random() < 0.3 else f"{near:.{rng.choice((1, 2, 3, 4))}f}"
        if "e" in said:
            said = f"{near:.4f}"
    bare = rng.random() < 0.8
    shown = said if bare else json.dumps(said)
    key = rng.choice(("result", "result", "result", "value", "answer"))
    roll = rng.random()
    if roll < 0.72:
        text = f'{{"{key}":{shown}}}'
    elif roll < 0.85:
        text = shown
    elif roll < 0.92:
        text = f'{{"{key}": {shown}}}'
    elif roll < 0.96:
        text = f'{{"expression":"{expression}","{key}":{shown}}}'
    else:
        text = f'{{"ok":true,"{key}":{shown}}}'
    return text, said


def failure(rng: Random, tool: str) -> tuple[str, str]:
    """A failed call as JSON, and what must be said about it."""
    lack = "I have no result." if tool == "calculator" else "I do not know the time."
    so = lack[0].lower() + lack[1:] if lack[0] != "I" else lack
    roll = rng.random()
    if roll < 0.35:
        message, said = rng.choice(TIMED_OUT), f"The {tool} timed out, so {so}"
    elif roll < 0.65:
        message, said = rng.choice(CANCELLED), f"The {tool} call was cancelled, so {so}"
    else:
        message = rng.choice(ERRORS)
        said = f"The {tool} failed: {message}. {lack}"
    text = json.dumps({"error": message}, separators=(",", ":"))
    if rng.random() < 0.08:
        text = json.dumps({"error": message, "code": rng.choice(("E1", "TOOL", "FAILED"))}, separators=(",", ":"))
    return text, said


def now(rng: Random, kind: str) -> tuple[str, str]:
    """What a clock returns as JSON, and the sentence that answers a question of `kind`."""
    when = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(
        seconds=rng.randrange(8 * 365 * 86400)
    )
    stamp = when.strftime("%Y-%m-%dT%H:%M:%S")
    if rng.random() < 0.2:
        stamp += f".{rng.randrange(10**6):06d}"
    roll = rng.random()
    if roll < 0.6:
        stamp, zone = stamp + "Z", " UTC"
    elif roll < 0.8:
        stamp, zone = stamp + "+00:00", " UTC"
    elif roll < 0.9:
        offset = f"{rng.choice('+-')}{rng.randint(1, 11):02d}:{rng.choice(('00', '00', '30'))}"
        stamp, zone = stamp + offset, f" ({offset})"
    else:
        zone = ""
    shape = rng.random()
    key = rng.choice(("time", "time", "time", "time", "now", "result", "utc"))
    if shape < 0.65:
        text = f'{{"{key}":"{stamp}"}}'
    elif shape < 0.8:
        name = rng.choice(("UTC", "UTC", "UTC", "Europe/Berlin", "local", "CET", "America/Lima", "Asia/Tokyo"))
        text, zone = (
            f'{{"{key}":"{stamp}","zone":"{name}"}}',
            " UTC" if name == "UTC" else f" ({name})",
        )
    elif shape < 0.95:
        text = f'"{stamp}"'
    else:
        text = f'{{"{key}": "{stamp}"}}'
    clock = f"{when:%H:%M}{zone}"
    date = f"{when.day} {MONTHS[when.month - 1]} {when.year}"
    said = {
        "time": f"It is {clock}.",
        "date": f"Today is {date}.",
        "both": f"It is {clock} on {date}.",
        "year": f"It is {when.year}.",
        "weekday": f"Today is {date}. I cannot work out the weekday.",
        "elsewhere": f"It is {clock}. I know no other time zone.",
    }[kind]
    return text, said
