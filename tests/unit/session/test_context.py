"""A past that came from elsewhere, and one that outgrows its model."""

from __future__ import annotations

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.session.validation import check_config
from backchannel.v1 import session_pb2
from tests.unit.session.driver import ERROR, Driver, spoken, tool

DROP = session_pb2.CONTEXT_POLICY_DROP_OLDEST
USER, ASSISTANT, TOOL = (
    session_pb2.ROLE_USER,
    session_pb2.ROLE_ASSISTANT,
    session_pb2.ROLE_TOOL,
)


def message(role: int, text: str = "", **fields: object) -> session_pb2.Message:
    parts = [session_pb2.Part(text=text)] if text else []
    return session_pb2.Message(
        role=session_pb2.Role.ValueType(role),
        parts=parts,
        **fields,  # type: ignore[arg-type]
    )


def call(call_id: str = "c1", name: str = "look", arguments: str = "{}") -> session_pb2.ToolCall:
    return session_pb2.ToolCall(call_id=call_id, name=name, arguments_json=arguments)


PAST = [
    message(USER, "hello"),
    message(ASSISTANT, "hi"),
    message(USER, "look"),
    message(ASSISTANT, tool_calls=[call()]),
    message(TOOL, "7", call_id="c1"),
    message(ASSISTANT, "seven"),
]


def test_history_comes_first() -> None:
    driver = Driver(history=PAST)
    driver.say("and?")
    assert spoken(driver.asked.messages) == [
        ("user", "hello"),
        ("assistant", "hi"),
        ("user", "look"),
        ("assistant", "look({})"),
        ("tool", "7"),
        ("assistant", "seven"),
        ("user", "and?"),
    ]
    driver.lose()
    driver.attach()
    driver.say("still?")
    assert spoken(driver.asked.messages)[0] == ("user", "hello")


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ([message(0, "x")], "message 0 must have a role"),
        ([message(USER)], "must have text or tool calls"),
        ([message(TOOL, "7", call_id="c1")], "the result of no call"),
        ([message(ASSISTANT, tool_calls=[call()])], "ends before the result"),
        ([message(ASSISTANT, tool_calls=[call()]), message(USER, "x")], "before the result"),
        ([*PAST, message(TOOL, "7", call_id="c1")], "message 6 is the result of no call"),
        ([message(USER, "x", tool_calls=[call()])], "makes no tool calls"),
        ([message(ASSISTANT, tool_calls=[call(""), call()])], "call_id of its own"),
        ([message(ASSISTANT, tool_calls=[call(), call()])], "call_id of its own"),
        ([message(ASSISTANT, tool_calls=[call(arguments="[1]")])], "not one JSON object"),
        ([message(ASSISTANT, tool_calls=[call()]), message(TOOL, call_id="c1")], "a part with"),
        ([message(USER, "x" * 3_000_000)], "at most 2 MiB"),
        ([message(USER, "x")] * 10_001, "at most 10000"),
    ],
)
def test_a_past_that_no_engine_takes_is_refused(
    history: list[session_pb2.Message], says: str
) -> None:
    with pytest.raises(BackchannelError, match=says) as refused:
        check_config(session_pb2.SessionConfig(history=history))
    assert refused.value.field == "config.history"


def test_a_whole_past_is_taken() -> None:
    check_config(session_pb2.SessionConfig(history=PAST))


def too_long(driver: Driver, prompt_tokens: int, most: int = 1000, *, numbers: bool = True) -> None:
    """The engine finds the prompt too long."""
    run = driver.live
    assert run is not None
    run.over, driver.live = True, None
    metadata = {"prompt_tokens": str(prompt_tokens), "max_context_tokens": str(most)}
    error = BackchannelError(
        Reason.PROMPT_TOO_LONG, "too long", metadata=metadata if numbers else {}
    )
    driver.take(driver.session.engine_failed(run.run_id, error, driver.now_ns))


def long(turns: int = 4, **config: object) -> Driver:
    driver = Driver(context_policy=DROP, tools=[tool(blocking=False)], **config)  # type: ignore[arg-type]
    for number in range(turns):
        driver.answer("a" * 100, question=f"{number}" * 100)
    driver.say("and now?")
    return driver


def users(driver: Driver) -> list[str]:
    return [text[:1] for role, text in spoken(driver.asked.messages) if role == "user"]


def test_the_policy_by_default_is_to_refuse() -> None:
    driver = Driver()
    driver.answer("x")
    driver.say()
    too_long(driver, 2000)
    assert driver.ending.finish_reason == ERROR
    assert not driver.of("context_trimmed")
    assert driver.state.config.context_policy == session_pb2.CONTEXT_POLICY_REFUSE


def test_the_oldest_turns_are_left_out_until_it_fits() -> None:
    driver = long()
    assert users(driver) == ["0", "1", "2", "3", "a"]
    too_long(driver, 1200)
    assert users(driver) == ["2", "3", "a"]
    trimmed = driver.of("context_trimmed")
    assert [one.dropped_turns for one in trimmed] == [2]
    assert 400 < trimmed[0].dropped_tokens < 800
    driver.text("fine")
    driver.finish()
    driver.say("more")
    assert users(driver) == ["2", "3", "a", "m"]
    driver.lose(engine_continues=True)
    assert users(driver) == ["2", "3", "a", "m"]


def test_what_is_dropped_survives_a_checkpoint() -> None:
    driver = long(history=PAST)
    too_long(driver, 1000)
    driver.finish()
    data = driver.session.checkpoint()
    driver.lose(checkpoint=data, at_seq=len(driver.events))
    driver.attach()
    driver.say("more")
    folded = spoken(driver.asked.messages)
    driver.session = driver.folded()
    driver.attach()
    driver.lose(engine_continues=True)
    assert spoken(driver.asked.messages) == folded
    assert ("user", "hello") not in folded


def test_history_goes_before_turns_and_by_whole_exchanges() -> None:
    driver = long(2, history=PAST)
    too_long(driver, 1000, 990)
    assert driver.of("context_trimmed")[0].dropped_turns == 3
    assert users(driver) == ["1", "a"]


def test_it_asks_again_until_it_fits_and_then_gives_up() -> None:
    driver = long(6)
    asked = [len(users(driver))]
    while driver.live is not None:
        too_long(driver, 0, numbers=False)
        asked.append(len(users(driver)))
    assert asked == [*sorted(set(asked[:-1]), reverse=True), 1]
    assert len(asked) > 3
    assert driver.ending.finish_reason == ERROR
    assert sum(one.dropped_turns for one in driver.of("context_trimmed")) == 6


def test_a_turn_with_an_open_call_stays() -> None:
    driver = Driver(context_policy=DROP, tools=[tool(blocking=False)])
    driver.say("0" * 100)
    call_id = driver.call()
    driver.finish("tool_calls")
    driver.finish()
    driver.answer("a" * 100, question="1" * 100)
    driver.say("and now?")
    too_long(driver, 0, numbers=False)
    assert users(driver) == ["0", "a"]
    driver.text("x")
    driver.finish()
    driver.result(call_id, json="7")
    too_long(driver, 0, numbers=False)
    assert users(driver) == ["a"]
    assert spoken(driver.asked.messages)[-1] == ("tool", "7"), (
        "what came of it is told all the same"
    )


def test_what_the_answer_needs_is_left_free() -> None:
    small = long(sampling=session_pb2.Sampling(max_tokens=1))
    too_long(small, 1200)
    assert users(small) == ["1", "2", "3", "a"]
