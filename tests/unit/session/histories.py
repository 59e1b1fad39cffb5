"""Rich sessions, played by hand: together they hold everything that a log can hold.

They are what the golden histories were recorded from, and where fuzzing begins. What they do may
change; what was recorded does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from backchannel.errors import BackchannelError, Reason
from backchannel.v1 import event_pb2, session_pb2
from tests.unit.session.driver import (
    AFTER_GRACE,
    CANCEL_NOW,
    CONTINUE,
    INTERRUPT,
    Driver,
    limits,
    policy,
    seconds,
    tool,
)

STEER: Final = session_pb2.DELIVERY_STEER
CANCEL: Final = session_pb2.TOOL_DISPOSITION_CANCEL
LET_FINISH: Final = session_pb2.TOOL_DISPOSITION_LET_FINISH
WHEN_IDLE: Final = session_pb2.SCHEDULING_WHEN_IDLE
AT_ONCE: Final = session_pb2.SCHEDULING_INTERRUPT
SILENT: Final = session_pb2.SCHEDULING_SILENT
SCHEMA: Final = '{"type":"object","properties":{"a":{"type":"integer"}}}'


def content(*texts: str) -> session_pb2.Content:
    return session_pb2.Content(parts=[session_pb2.Part(text=text) for text in texts])


def message(role: int, text: str = "", **fields: object) -> session_pb2.Message:
    parts = [session_pb2.Part(text=text)] if text else []
    return session_pb2.Message(
        role=session_pb2.Role.ValueType(role),
        parts=parts,
        **fields,  # type: ignore[arg-type]  # names of its fields
    )


PAST: Final = [
    message(session_pb2.ROLE_USER, "hello"),
    message(session_pb2.ROLE_ASSISTANT, "hi"),
    message(session_pb2.ROLE_USER, "look"),
    message(
        session_pb2.ROLE_ASSISTANT,
        tool_calls=[session_pb2.ToolCall(call_id="c1", name="look", arguments_json="{}")],
    ),
    message(session_pb2.ROLE_TOOL, "7", call_id="c1"),
    message(session_pb2.ROLE_ASSISTANT, "seven"),
]


def chat() -> Driver:
    """Questions, answers and thoughts; every field of a configuration."""
    driver = Driver(
        frame_id="open-1",
        system="Be brief. 你好 \U0001f600",
        labels={"team": "blue", "tier.x": ""},
        engine_options={"rate": "20"},
        sampling=session_pb2.Sampling(
            max_tokens=9,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            seed=2**63,
            stop=["END"],
            logprobs=1,
            min_p=0.1,
            presence_penalty=-1,
            frequency_penalty=1,
        ),
        tools=[tool(description="Looks.", parameters_json_schema=SCHEMA)],
        limits=limits(max_queued_messages=3, max_unacked_chars=1000),
        context_policy=session_pb2.CONTEXT_POLICY_REFUSE,
        response_format=session_pb2.ResponseFormat(json_schema=SCHEMA),
    )
    driver.say("one", "m1")
    driver.say("two", "m2", sampling=session_pb2.Sampling(max_tokens=3, seed=1))
    driver.say("withdrawn", "m3")
    driver.interrupt(target_frame_id="m3", frame_id="w1")
    driver.now_ns += 40_000_000
    driver.admit()
    driver.think("Let me", " see.")
    for word in ("Héllo", " wörld", " \U0001f600\u0301", "\n"):
        driver.now_ns += 25_000_000
        driver.text(word)
    top = event_pb2.TokenLogprob(token=" x", logprob=-3.25)
    spoken = event_pb2.TokenLogprob(token=" .", logprob=-0.5, top=[top])
    run = driver.live
    assert run is not None
    run.computed += 1
    decision = driver.session.engine_text(
        run.run_id, event_pb2.CHANNEL_TEXT, " .", 1, (spoken,), driver.now_ns
    )
    driver.take(decision)
    driver.ack(len(driver.events) - 2)
    driver.finish("stop", silent=1)
    driver.text("a", "b", "c")
    driver.finish("length")
    driver.say(
        "three",
        "m4",
        response_format=session_pb2.ResponseFormat(grammar='root ::= "x"'),
        delivery=session_pb2.DELIVERY_QUEUE,
    )
    driver.finish("content_filter")
    driver.say("four", "", expected_turn_id=driver.turns[-1].turn_id)
    driver.text("unfinished")
    driver.fail()
    return driver


def tools() -> Driver:
    """Calls that the turn waits for, ending in every way, and results that come too late."""
    driver = Driver(
        tools=[
            tool("look", side_effect=session_pb2.SIDE_EFFECT_NONE),
            tool(
                "pay",
                side_effect=session_pb2.SIDE_EFFECT_IRREVERSIBLE,
                idle_timeout=seconds(3),
                timeout=seconds(8),
                on_interrupt=CANCEL,
            ),
            tool("set", side_effect=session_pb2.SIDE_EFFECT_IDEMPOTENT, on_interrupt=LET_FINISH),
        ],
        limits=limits(max_tool_rounds=2, max_turn_duration=seconds(60)),
    )
    driver.say("do it", "m1")
    driver.text("I", " will")
    done, failed, late = driver.call("look"), driver.call("pay", ""), driver.call("pay")
    driver.call("nothing-of-that-name")
    driver.finish("tool_calls")
    driver.progress(failed, "p1", fraction=0.25, note="a quarter")
    driver.result(done, "r1", content=content("seen ", "\U0001f600"))
    driver.result(failed, "r2", error=session_pb2.ToolError(message="no money", code="E1"))
    driver.advance(3)
    driver.result(late, "r3", json='{"paid": true}')
    driver.result(late, "r4", json='{"paid": "again"}')
    driver.text("Once", " more")
    driver.result(driver.call("look"), "r5", json="null")
    driver.finish("tool_calls")
    driver.text("and")
    driver.begin_call()
    driver.finish("tool_calls")  # One round too many.
    # Stopped in the middle of a round: each call has got somewhere else.
    driver.say("again", "m2")
    driver.text("Well")
    driver.result(driver.call("look"), json="1")
    driver.result(driver.call("look"), error=session_pb2.ToolError())
    driver.call("pay")
    driver.advance(4)
    driver.call("pay")
    driver.call("set")
    driver.fragment(driver.begin_call(), '{"not')
    driver.interrupt(frame_id="i1", displayed_offset=2)
    driver.finish("stopped", silent=1)
    driver.result(driver.state.turns[-1].calls[-2].call_id, "r6", json="3")
    return driver


def stops() -> Driver:
    """Everything that a stop may keep, and answers cut back after they had ended."""
    driver = Driver(tools=[tool()])
    for number, keep in enumerate(
        (event_pb2.KEEP_DISPLAYED, event_pb2.KEEP_GENERATED, event_pb2.KEEP_NOTHING)
    ):
        driver.say(f"question {number}")
        driver.think("hm", " hm")
        driver.text("one", " two", " three")
        driver.ack(len(driver.events) - 1)
        driver.interrupt(keep=keep, frame_id=f"i{number}")
        driver.text(" too late")
        driver.finish("stopped")
    driver.say("quick", "m1")
    driver.text("all", " of", " it")
    driver.finish()
    driver.interrupt(frame_id="t1", displayed_offset=4)
    driver.say("wait", "m2")
    driver.call()
    driver.say("no, this", "m3", delivery=INTERRUPT, displayed_seq=1)
    driver.finish("stopped")
    driver.text("this")
    driver.advance(1)
    driver.say("and this", "m4", delivery=INTERRUPT, displayed_offset=2)
    driver.advance(2)  # The engine confirms nothing.
    driver.text("yes")
    driver.finish()
    return driver


def steering() -> Driver:
    """Turns that were redirected, and one whose redirection came too late."""
    driver = Driver(
        tools=[tool(), tool("later", blocking=False)],
        limits=limits(max_steer_tokens=5, max_steer_delay=seconds(2)),
        on_disconnect=policy(CANCEL_NOW),
    )
    driver.say("tell me", "m1")
    driver.text("One", " and")
    driver.say("shorter", "s1", delivery=STEER)
    driver.say("in verse", "s2", delivery=STEER)
    driver.text(" two.", " Three")
    driver.finish("stopped")
    driver.text("A", " verse")
    driver.call()
    driver.say("no verse", "s3", delivery=STEER)
    driver.finish("tool_calls")
    driver.result(driver.state.turns[-1].calls[-1].call_id, json="[]")
    driver.text("word ", "word ")
    driver.say("stop rambling", "s4", delivery=STEER)
    driver.advance(2)
    driver.finish("stopped")
    driver.say("never mind", "s5", delivery=STEER)
    driver.finish()
    driver.text("Fine")
    driver.finish()
    driver.say("late", "s6", delivery=STEER)
    driver.text("An answer of its own")
    driver.finish()
    return driver


def outliving() -> Driver:
    """Calls that nobody waits for: told later, at once, in silence, in parts, or never."""
    driver = Driver(
        tools=[
            tool("later", blocking=False, on_interrupt=LET_FINISH),
            tool("soon", blocking=False, timeout=seconds(90)),
            tool("wait"),
        ],
    )
    driver.say("look it up", "m1")
    driver.text("Let me see. ")
    first, second = driver.call("later"), driver.call("soon")
    driver.finish("tool_calls")
    driver.text("On", " it.")
    driver.result(first, "r1", json='{"part": 1}', partial=True)
    driver.result(first, "r2", content=content("part 2"), partial=True)
    driver.result(first, "r3", json="3")
    driver.text(" Wait.")
    driver.finish()
    driver.text("Here:")
    driver.result(second, "r4", content=content("now"), scheduling=AT_ONCE)
    driver.finish("stopped")
    driver.text("Now.")
    third, fourth = driver.call("later"), driver.call("later")
    driver.finish("tool_calls")
    driver.text("Meanwhile")
    driver.interrupt(frame_id="i1")
    driver.finish("stopped")
    driver.result(third, "r5", json="[1,2]", scheduling=SILENT)
    driver.say("and?", "m2")
    driver.text("So.")
    driver.finish()
    driver.progress(fourth, "p1", note="nearly")
    driver.result(fourth, "r6", json='"done"', scheduling=WHEN_IDLE)
    driver.text("Done.")
    waited = driver.call("wait")
    driver.finish("tool_calls")
    driver.interrupt(frame_id="i2", tools=LET_FINISH)
    driver.result(waited, "r7", json="true")
    return driver


def lost() -> Driver:
    """Processes that died, readers that left, clocks that ran out."""
    driver = Driver(
        tools=[tool(idle_timeout=seconds(400))],
        limits=limits(max_turn_duration=seconds(100), max_unacked_chars=4),
        on_disconnect=policy(AFTER_GRACE, 5),
    )
    driver.say("one", "m1")
    driver.text("ab")
    driver.lose()
    driver.attach()
    driver.say("two", "m2")
    driver.lose(away_s=1)
    driver.attach()
    driver.text("a")
    driver.lose(engine_continues=True)
    driver.attach()
    driver.text("b")
    driver.finish()
    driver.say("three", "m3")
    driver.text("abcde")
    driver.advance(2)
    driver.ack(offset=5)
    driver.text("f")
    driver.detach()
    driver.advance(5)
    driver.finish("stopped")
    driver.attach()
    driver.say("four", "m4")
    driver.call()
    driver.finish("tool_calls")
    driver.advance(100)
    driver.say("five", "m5")
    driver.text("x")
    lost_log = BackchannelError(Reason.LOG_UNAVAILABLE, "the disk is full")
    driver.lose(lost=lost_log)
    # Nothing of today writes this ending of a call, which the contract has.
    driver.attach()
    driver.say("six", "m6")
    call_id = driver.call()
    driver.finish("tool_calls")
    unknown = session_pb2.TOOL_CALL_OUTCOME_UNKNOWN
    call = driver.state.calls[call_id]
    driver.session._calls.end(call, unknown)
    driver.take(driver.session._draft.take())
    driver.interrupt(frame_id="i1")
    driver.result(call_id, "r1", error=session_pb2.ToolError(message="was there", code="LATE"))
    return driver


def outgrown() -> Driver:
    """A past from elsewhere that outgrows its model, and the end of a session."""
    driver = Driver(
        history=PAST,
        tools=[tool()],
        context_policy=session_pb2.CONTEXT_POLICY_DROP_OLDEST,
        on_disconnect=policy(CONTINUE),
        readers=0,
    )
    for number in range(3):
        driver.answer("a" * 40, question=f"{number}" * 40)
    driver.say("and now?")
    run = driver.live
    assert run is not None
    run.over, driver.live = True, None
    sizes = {"prompt_tokens": "300", "max_context_tokens": "200"}
    error = BackchannelError(Reason.PROMPT_TOO_LONG, "too long", metadata=sizes)
    driver.take(driver.session.engine_failed(run.run_id, error, driver.now_ns))
    driver.text("short")
    driver.finish()
    driver.say("more")
    driver.call()
    driver.finish("tool_calls")
    driver.close("EXPIRED")
    return driver


def cut_back() -> Driver:
    """Answers with thoughts that were cut after their end, and what came later."""
    driver = Driver(tools=[tool()])
    driver.say("think", "m1")
    driver.think("First ", "this. ")
    driver.text("One, ")
    driver.think("Then that.")
    driver.text("two, ", "three.")
    driver.finish()
    begin = len("One, ")
    driver.interrupt(driver.turns[-1].turn_id, frame_id="i1", displayed_offset=begin)
    driver.say("look", "m2")
    driver.think("Perhaps.")
    driver.result(driver.call(), "r1", json='{"found": 1}')
    driver.finish("tool_calls")
    driver.text("It ", "is ", "there.")
    driver.finish()
    driver.interrupt(driver.turns[-1].turn_id, frame_id="i2", displayed_offset=len("It i"))
    driver.answer("Fine.", question="and?")
    driver.answer("Yes.", question="really?")
    driver.say("so", "m3")
    driver.text("So")
    return driver


def cut_off() -> Driver:
    """A turn that runs, one message that waits: what a process finds when another has died."""
    driver = Driver(tools=[tool(), tool("later", blocking=False)])
    driver.answer("Hello.")
    driver.say("go on", "m1")
    driver.say("and then", "m2")
    driver.text("I am")
    driver.call("later")
    driver.call()
    driver.text(" in the")
    return driver


HISTORIES: Final[Mapping[str, Callable[[], Driver]]] = {
    history.__name__: history
    for history in (chat, tools, stops, steering, outliving, lost, outgrown, cut_back, cut_off)
}
