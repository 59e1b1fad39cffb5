"""Sessions that begin with another one's past."""

from __future__ import annotations

import pytest

from backchannel.errors import BackchannelError, Reason
from backchannel.host.live import LiveSession
from backchannel.v1 import conversation_service_pb2 as pb
from backchannel.v1 import event_pb2, session_pb2
from tests.support.hosting import Running, Stream, attach, config, hosting, kind, say

NAME = "a-session-id-of-some-length"


async def talked(
    run: Running, *texts: str, model: str = "scripted/echo"
) -> tuple[LiveSession, Stream]:
    live = (await run.create(model, tools=["look"])).live
    stream = attach(live)
    for number, text in enumerate(texts, 1):
        await live.send(say(text))
        await stream.until(lambda seen, n=number: seen.kinds.count("turn_finished") == n)  # type: ignore[misc]
    return live, stream


async def forked(
    run: Running, parent: LiveSession, at_seq: int, sent: session_pb2.SessionConfig | None = None
) -> session_pb2.SessionConfig:
    fork = pb.Fork(session_id=parent.session_id, at_seq=at_seq)
    created = await run.host.sessions.create(sent or session_pb2.SessionConfig(), fork=fork)
    return (await created.live.view()).config


def said(made: session_pb2.SessionConfig) -> list[str]:
    return ["".join(part.text for part in message.parts) for message in made.history]


def seq_of(stream: Stream, wanted: str, nth: int = 1) -> int:
    return [event.seq for event in stream.events if kind(event) == wanted][nth - 1]


async def test_a_fork_knows_what_had_happened_and_nothing_later() -> None:
    async with hosting() as run:
        parent, stream = await talked(run, "one", "two", "three")
        made = await forked(run, parent, seq_of(stream, "turn_finished", 2))
        assert said(made) == ["one", "one", "two", "two"]
        assert made.model == "scripted/echo"
        assert [tool.name for tool in made.tools] == ["look"]
        assert made.session_id != parent.session_id
        stream.close()


async def test_edit_and_retry() -> None:
    async with hosting() as run:
        parent, stream = await talked(run, "one", "two")
        before_two = seq_of(stream, "input_accepted", 2) - 1
        fork = pb.Fork(session_id=parent.session_id, at_seq=before_two)
        live = (await run.host.sessions.create(session_pb2.SessionConfig(), fork=fork)).live
        edited = attach(live)
        await live.send(say("deux"))
        await edited.until("turn_finished")
        assert edited.text == "deux"
        whole = await parent.view()
        assert whole.last_seq == stream.seqs[-1], "the parent is as it was"
        stream.close()
        await run.host.sessions.delete(parent.session_id)
        await live.send(say("trois"))
        await edited.until(lambda seen: seen.kinds.count("turn_finished") == 2)
        edited.close()


async def test_what_is_sent_replaces_what_the_parent_had() -> None:
    async with hosting() as run:
        parent, stream = await talked(run, "one")
        sent = config("scripted/count", tools=["other"], session_id=NAME)
        sent.system = "Count."
        made = await forked(run, parent, 3, sent)
        assert made.model == "scripted/count"
        assert made.system == "Count."
        assert [tool.name for tool in made.tools] == ["other"]
        assert said(made) == ["one"]
        again = await run.host.sessions.create(
            sent, fork=pb.Fork(session_id=parent.session_id, at_seq=3)
        )
        assert again.duplicate
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.create(
                sent, fork=pb.Fork(session_id=parent.session_id, at_seq=4)
            )
        assert refused.value.reason is Reason.SESSION_EXISTS
        stream.close()


async def test_in_the_middle_of_an_answer_and_of_a_tool() -> None:
    async with hosting() as run:
        parent, stream = await talked(run)
        await parent.send(say("one two three"))
        await stream.until("turn_finished")
        middle = seq_of(stream, "output_delta", 2)
        deltas = [
            event.output_delta.text for event in stream.events if kind(event) == "output_delta"
        ]
        assert said(await forked(run, parent, middle)) == ["one two three", "".join(deltas[:2])]
        stream.close()
        waiting = (await run.create("scripted/tool", tools=["look"])).live
        stream = attach(waiting)
        await waiting.send(say("go"))
        await stream.until("tool_call_ready")
        made = await forked(run, waiting, stream.seqs[-1])
        assert said(made)[-1] == '{"error":"lost; it may or may not have run"}'
        assert (await waiting.view()).open_tool_calls, "the parent still waits"
        stream.close()


@pytest.mark.parametrize(
    ("session_id", "at_seq", "reason"),
    [
        ("nobody-has-ever-made-this", 1, Reason.SESSION_NOT_FOUND),
        ("", 1, Reason.FIELD_INVALID),
        (None, 0, Reason.CURSOR_BEYOND_END),
        (None, 99, Reason.CURSOR_BEYOND_END),
    ],
)
async def test_a_place_that_there_is_not(
    session_id: str | None, at_seq: int, reason: Reason
) -> None:
    async with hosting() as run:
        parent, stream = await talked(run, "one")
        named = parent.session_id if session_id is None else session_id
        with pytest.raises(BackchannelError) as refused:
            await run.host.sessions.create(
                session_pb2.SessionConfig(), fork=pb.Fork(session_id=named, at_seq=at_seq)
            )
        assert refused.value.reason is reason
        assert refused.value.field.startswith("fork."), "not the session to be made"
        stream.close()


async def test_a_history_beside_a_fork_is_refused() -> None:
    async with hosting() as run:
        parent, stream = await talked(run, "one")
        sent = session_pb2.SessionConfig()
        sent.history.add(role=session_pb2.ROLE_USER).parts.add(text="x")
        with pytest.raises(BackchannelError) as refused:
            await forked(run, parent, 3, sent)
        assert (refused.value.reason, refused.value.field) == (
            Reason.FIELD_INVALID,
            "config.history",
        )
        stream.close()


async def test_a_fork_of_a_fork() -> None:
    async with hosting() as run:
        parent, stream = await talked(run, "one")
        fork = pb.Fork(session_id=parent.session_id, at_seq=stream.seqs[-1])
        child = (await run.host.sessions.create(session_pb2.SessionConfig(), fork=fork)).live
        events = attach(child)
        await child.send(say("two"))
        await events.until("turn_finished")
        opened = events.events[0]
        assert isinstance(opened, event_pb2.Event)
        made = await forked(run, child, events.seqs[-1])
        assert said(made) == ["one", "one", "two", "two"]
        events.close()
        stream.close()
