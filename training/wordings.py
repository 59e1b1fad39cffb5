"""Ways to say things: questions by a topic's name, follow-ups, stops, and the set answers.

What ends in ``_UNSEEN`` is never trained on; evaluate.py uses it.
"""

from __future__ import annotations

# Ways to ask for a topic by its name, by the length of answer they want.
ASK = {
    "text": (
        "what is {n}?", "what's {n}?", "what are {n}?", "explain {n}", "tell me about {n}",
        "what about {n}?",
        "what do you know about {n}?", "how does {n} work?", "how do {n} work?", "{n}", "{n}?",
        "describe {n}",
        "can you explain {n}?", "I want to know about {n}", "teach me about {n}",
        "what does {n} mean?",
        "help me understand {n}", "say something about {n}", "and {n}?", "how is it with {n}?",
        "can you tell me about {n}?", "please explain {n}", "tell me something about {n}",
        "I have a question about {n}",
        "let us talk about {n}", "what is meant by {n}?", "explain {n} to me",
        "I do not understand {n}",
        "info on {n}", "more about {n}", "give me info about {n}", "how about {n}?",
        "what is the deal with {n}?",
        "what is {n} about?", "what's the meaning of {n}?", "define {n}", "definition of {n}",
        "what does {n} do?",
        "what do {n} do?", "how do I use {n}?", "can you describe {n}?",
        "could you explain {n}?", "what exactly is {n}?",
        "I'd like to know about {n}", "I need help with {n}", "talk about {n}", "ok, and {n}?",
        "now {n}",
    ),
    "long": (
        "explain {n} in detail", "tell me everything about {n}", "tell me a long story about {n}",
        "give me a long explanation of {n}", "describe {n} at length", "tell me all about {n}",
        "explain {n} in depth", "tell me a story about {n}", "I want to know everything about {n}",
        "write a long text about {n}", "a detailed explanation of {n} please",
        "explain {n} at length",
        "talk about {n} for a while", "please explain {n} in detail",
        "can you explain {n} in detail?",
    ),
    "short": (
        "explain {n} in one sentence", "briefly, what is {n}?", "{n} in short",
        "{n} in one sentence please",
        "explain {n} briefly", "what is {n} in one sentence?", "in short, what is {n}?",
        "a short word about {n}",
        "briefly explain {n}", "summarize {n}", "sum up {n}", "{n}, briefly",
    ),
    "why": (
        "why {n}?", "what is the reason for {n}?", "why do you have {n}?", "why is there {n}?",
        "why do I need {n}?", "what is the point of {n}?", "why was {n} made?",
    ),
}  # fmt: skip
ASK_UNSEEN = {
    "text": (
        "give me a quick overview of {n}", "I am curious about {n}", "walk me through {n}",
        "how would you describe {n}?", "could you clarify {n}?", "what can you say about {n}?",
    ),
    "long": ("give me the full story of {n}", "tell me in detail about {n}",
    "a long text on {n} please"),
    "short": ("tell me briefly about {n}", "in a nutshell, what is {n}?"),
    "why": ("why should I care about {n}?",),
}  # fmt: skip

MORE = ("tell me more", "more", "go on", "more details", "continue", "and?", "more please",
    "what else?",
        "can you say more?", "explain that in more detail", "go deeper", "keep going",
        "tell me more about that",
        "I want to know more", "in detail please", "elaborate", "and then?", "yes", "yes please",
        "sure", "interesting, go on", "tell me everything",
        "I still do not understand", "what do you mean?", "explain")  # fmt: skip
MORE_UNSEEN = ("do say more", "I would like more detail on this")
SHORTER = ("shorter please", "shorter", "too long", "in one sentence", "make it shorter",
    "in short", "be brief",
           "briefly please", "that is too long", "can you say it shorter?", "keep it short",
           "tl;dr", "summarize that",
           "sum it up", "just the short version", "in one sentence please",
           "less words please")  # fmt: skip
SHORTER_UNSEEN = ("please cut it down to one sentence", "give me the short form")
WHY = ("why?", "why", "why is that?", "but why?", "what for?", "why so?", "what is the reason?",
    "how come?",
       "why is it so?", "and why?", "why do you do that?")  # fmt: skip
WHY_UNSEEN = ("for what reason?", "and what is the reason for that?")
STOP = ("stop", "stop!", "stop it", "stop please", "halt", "wait", "enough", "that is enough",
    "ok stop", "please stop",
        "hold on", "be quiet", "shut up", "no more", "quiet", "stop talking", "cancel",
        "wait wait", "wait a moment", "stop counting", "stop the story", "stop that",
        "no more of this", "stop, thanks",
        "not now", "never mind", "hush", "one moment", "stop stop stop", "abort")  # fmt: skip
STOP_UNSEEN = ("stop now", "okay that is enough", "halt please", "pause")
CONTINUE = ("continue", "go on", "please continue", "carry on", "continue please", "keep going",
    "ok continue",
            "go ahead", "no, go on", "sorry, continue", "and then?", "proceed",
            "continue where you stopped",
            "finish your sentence", "resume", "you were saying?", "please go on")  # fmt: skip
CONTINUE_UNSEEN = ("do go on", "sorry for that, please carry on", "finish it")
LEADS = ("wait, ", "no, ", "actually, ", "stop, ", "hold on, ", "no wait, ", "sorry, ",
    "no, I meant: ", "wait: ",
         "instead, ", "stop. ", "ok, but ", "hm, ", "no no, ", "other question: ",
         "never mind, ", "wait. ",
         "enough. ", "no, I meant ", "stop! ", "better: ")  # fmt: skip
REPEAT = ("repeat that", "say that again", "what did you just say?", "repeat your last answer",
    "again please",
          "can you repeat that?", "what did you say?", "repeat what you said", "please repeat",
          "pardon?",
          "what was your last answer?", "what have you said so far?",
          "what were your last words?")  # fmt: skip
REPEAT_UNSEEN = ("could you say it again?", "tell me again what you said")
ASKED = ("what did I ask?", "what was my last question?", "what did I just say?",
    "what did I say before?",
         "what was my last message?", "repeat my question", "what have I asked you?")  # fmt: skip

RESULT = ("what was the result?", "what was the last result?", "and the result was?",
    "what did the calculator say?",
          "repeat the result", "what was the last number?",
          "give me the last result again")  # fmt: skip
RESULT_UNSEEN = ("which result did we have?", "tell me the last result again")

STOPPED = "Stopped. Ask me something else, or say continue."
NOTHING_MORE = "That is all I know about it. Ask me about something else."
NO_TOPIC = "About what? Ask me about sessions, interrupts, tools, resuming or engines, for example."
TAILS = ("I am a tiny model: I know Backchannel, and with tools I do arithmetic and tell the time.",)
JOKE = "I know only one joke: why did the reader leave the queue? Because it was a cursor."

PREFIXES = ("please ", "hey, ", "hi, ", "ok, ", "so, ", "now ", "and ", "well, ", "question: ",
    "tell me, ", "hello, ",
            "excuse me, ", "say, ", "quick question: ", "next: ", "hello! ", "hi! ", "thanks. ",
            "thank you, ", "great. ", "ok. ",
            "I see. ", "good morning, ", "yes, ", "but ", "interesting. ", "cool, ", "then ",
            "also ", "one more thing: ",
            "do you know: ", "my question is: ", "good. ", "another question: ", "alright, ",
            "thank you! ")  # fmt: skip
SUFFIXES = (" please", " thanks", "!", "??", " pls", ", please", " now", ".", " ...", " :)")
