"""What the SDK promises when the connection, or the server, is not at its best."""

from __future__ import annotations

import asyncio
import json

import pydantic
import pytest
from google.protobuf.duration_pb2 import Duration

from backchannel.client import (
    ClientError,
    ClosedError,
    Connected,
    ConnectionChange,
    CursorTrimmedError,
    Delivery,
    DisconnectedError,
    Event,
    Events,
    FinishReason,
    Lost,
    MessageWithdrawnError,
    SessionGoneError,
    StatusError,
    ToolContext,
    TurnFailedError,
    tool,
)
from backchannel.errors import BackchannelError, Reason
from backchannel.v1.event_pb2 import (
    CHANNEL_REASONING,
    InputWithdrawn,
    SessionClosed,
    ToolCallCancelled,
    TurnInterrupted,
    TurnRecovered,
)
from backchannel.v1.frame_pb2 import (
    RECEIPT_STATUS_DUPLICATE,
    RECEIPT_STATUS_REJECTED,
    ClientFrame,
    GoAway,
    Heartbeat,
    Ping,
    Snapshot,
)
from backchannel.v1.session_pb2 import (
    FINISH_REASON_ERROR,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    Session,
    Turn,
)
from tests.unit.client.peer import (
    GONE,
    Peer,
    Wire,
    accepted,
    call_over,
    delta,
    finished,
    open_call,
    opened,
    ready,
    stamp,
    started,
)

SESSION = "s" * 16
CLOSED = Event(seq=2, session_closed=SessionClosed(reason="DELETED"))


async def seqs(events: Events) -> list[int]:
    return [event.seq async for event in events]


async def test_events_come_once_and_in_order_across_cuts() -> None:
    async def first(wire: Wire) -> None:
        assert (await wire.read()).open.create.session_id
        await wire.events(opened(), Event(seq=2), Event(seq=3))
        await wire.cut()

    async def second(wire: Wire) -> None:
        resume = (await wire.read()).open.resume
        assert (resume.after_seq, resume.snapshot) == (3, False)
        # A repeat must not be seen twice.
        await wire.events(Event(seq=3), Event(seq=4))
        await wire.cut()

    async def third(wire: Wire) -> None:
        assert (await wire.read()).open.resume.after_seq == 4
        await wire.events(Event(seq=5, session_closed=SessionClosed(reason="DELETED")))

    changes: list[ConnectionChange] = []
    async with (
        Peer(first, second, third) as peer,
        peer.client() as client,
        client.converse(on_connection=changes.append) as conversation,
    ):
        assert await seqs(conversation.events()) == [1, 2, 3, 4, 5]
        assert conversation.seq == 5
    assert [type(change) for change in changes] == [Connected, Lost, Connected, Lost, Connected]
    last = changes[-1]
    assert isinstance(last, Connected)
    assert last.resumed
    assert last.after_seq == 4


async def test_a_stream_that_ends_with_ok_was_cut_as_well() -> None:
    async def first(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())

    async def second(wire: Wire) -> None:
        assert (await wire.read()).open.resume.after_seq == 1
        await wire.events(CLOSED)

    async with (
        Peer(first, second) as peer,
        peer.client() as client,
        client.converse() as conversation,
    ):
        assert await seqs(conversation.events()) == [1, 2]


async def test_a_gap_is_never_passed_over() -> None:
    async def first(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), Event(seq=3))
        await wire.hang()

    async def second(wire: Wire) -> None:
        assert (await wire.read()).open.resume.after_seq == 1
        await wire.events(CLOSED)

    async with (
        Peer(first, second) as peer,
        peer.client() as client,
        client.converse() as conversation,
    ):
        assert await seqs(conversation.events()) == [1, 2]


async def test_creation_is_repeated_with_the_same_id_until_it_is_heard_of() -> None:
    async def first(wire: Wire) -> None:
        wire.peer.session.session_id = (await wire.read()).open.create.session_id
        await wire.cut()

    async def second(wire: Wire) -> None:
        assert (await wire.read()).open.create.session_id == wire.peer.session.session_id
        await wire.events(opened(), CLOSED)

    async with (
        Peer(first, second) as peer,
        peer.client() as client,
        client.converse() as conversation,
    ):
        assert await seqs(conversation.events()) == [1, 2]
        assert conversation.session_id == peer.session.session_id
        assert len(conversation.session_id) >= 22


async def test_a_frame_without_a_receipt_is_sent_again_under_its_id() -> None:
    async def first(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        await wire.until("message")
        await wire.cut()

    async def second(wire: Wire) -> None:
        await wire.read()
        again = await wire.until("message")
        await wire.accept(again, status=RECEIPT_STATUS_DUPLICATE, seq=2)
        await wire.until("close")

    async with (
        Peer(first, second) as peer,
        peer.client() as client,
        client.converse() as conversation,
    ):
        receipt = await conversation.send("hello")
        assert (receipt.status, receipt.seq) == (RECEIPT_STATUS_DUPLICATE, 2)
    one, two = [frame for frame in peer.frames if frame.HasField("message")]
    assert one == two
    assert one.message.parts[0].text == "hello"
    assert len(one.frame_id) >= 22


async def test_what_was_receipted_is_not_sent_again() -> None:
    async def first(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        await wire.accept(await wire.until("message"))
        await wire.cut()

    async def second(wire: Wire) -> None:
        await wire.read()
        await wire.write(heartbeat=Heartbeat(seq=1))
        assert (await wire.read()).HasField("close")

    back = asyncio.Event()

    def changed(change: ConnectionChange) -> None:
        if isinstance(change, Connected) and change.resumed:
            back.set()

    async with (
        Peer(first, second) as peer,
        peer.client() as client,
        client.converse(on_connection=changed) as conversation,
    ):
        await conversation.send("hello")
        await back.wait()
    assert [frame.WhichOneof("frame") for frame in peer.frames] == [
        "open",
        "message",
        "open",
        "close",
    ]


async def test_a_frame_refused_for_now_is_sent_again_when_the_server_says() -> None:
    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        frame = await wire.until("message")
        away = BackchannelError(Reason.LOG_UNAVAILABLE, "disk full", retry_after_s=7)
        await wire.accept(frame, status=RECEIPT_STATUS_REJECTED, error=away.to_status())
        await wire.accept(await wire.until("message"), seq=2)
        await wire.until("close")

    async with Peer(act) as peer, peer.client() as client, client.converse() as conversation:
        assert (await conversation.send("hello")).seq == 2
        assert max(peer.slept_s) >= 7


async def test_a_refused_frame_is_an_error_that_names_the_field() -> None:
    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        bad = BackchannelError(
            Reason.FIELD_REQUIRED, "say something", field="message.parts", metadata={"a": "b"}
        )
        await wire.accept(
            await wire.until("message"), status=RECEIPT_STATUS_REJECTED, error=bad.to_status()
        )
        await wire.until("close")

    async with Peer(act) as peer, peer.client() as client, client.converse() as conversation:
        with pytest.raises(StatusError, match=r"message\.parts: say something") as caught:
            await conversation.send("")
        assert caught.value.reason == Reason.FIELD_REQUIRED
        assert caught.value.field == "message.parts"
        assert caught.value.metadata == {"a": "b"}


async def test_a_busy_server_is_tried_again_not_before_it_says() -> None:
    async def full(wire: Wire) -> None:
        await wire.refuse(BackchannelError(Reason.READERS_FULL, "too many", retry_after_s=5))

    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), CLOSED)

    async with (
        Peer(full, act) as peer,
        peer.client() as client,
        client.converse() as conversation,
    ):
        assert await seqs(conversation.events()) == [1, 2]
        assert max(peer.slept_s) == pytest.approx(5.1)


async def test_waits_grow_up_to_their_limit_and_start_anew_once_it_works() -> None:
    async def broken(wire: Wire) -> None:
        await wire.cut()

    async def works(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        await wire.cut()

    async def last(wire: Wire) -> None:
        await wire.events(CLOSED)

    waits: list[float] = []

    def changed(change: ConnectionChange) -> None:
        if isinstance(change, Lost):
            waits.append(change.retry_in_s)

    async with (
        Peer(broken, broken, broken, works, broken, last) as peer,
        peer.client(backoff_initial_s=1, backoff_max_s=3) as client,
        client.converse(on_connection=changed) as conversation,
    ):
        assert await seqs(conversation.events()) == [1, 2]
    assert waits == [1, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (GONE, SessionGoneError),
        (BackchannelError(Reason.SESSION_CLOSED, "it is over"), SessionGoneError),
        (BackchannelError(Reason.MODEL_NOT_FOUND, "no such model"), StatusError),
        (BackchannelError(Reason.UNAUTHENTICATED, "who are you"), StatusError),
        (BackchannelError(Reason.LOG_CORRUPT, "the file is broken"), StatusError),
    ],
    ids=lambda value: getattr(value, "reason", ""),
)
async def test_a_refused_opening_is_not_tried_again(
    error: BackchannelError, kind: type[StatusError]
) -> None:
    async def refuse(wire: Wire) -> None:
        await wire.refuse(error)

    async with Peer(refuse) as peer, peer.client() as client:
        with pytest.raises(kind, match=str(error)) as caught:
            async with client.converse():
                raise AssertionError("it opened")
        assert caught.value.reason == error.reason


async def test_a_session_that_goes_while_we_are_away_ends_the_iteration() -> None:
    async def first(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        await wire.until("message")
        await wire.cut()

    async def second(wire: Wire) -> None:
        await wire.refuse(GONE)

    async with (
        Peer(first, second) as peer,
        peer.client() as client,
        client.converse() as conversation,
    ):
        with pytest.raises(SessionGoneError):
            await conversation.send("hello")
        events = conversation.events()
        assert (await anext(events)).seq == 1
        with pytest.raises(SessionGoneError):
            await anext(events)
        with pytest.raises(ClosedError):
            await conversation.send("again")


async def test_a_message_after_the_end_is_told_what_the_end_was() -> None:
    async def deleted(wire: Wire) -> None:
        await wire.events(opened(), CLOSED)

    async with Peer(deleted) as peer, peer.client() as client:
        async with client.converse() as conversation:
            assert await seqs(conversation.events()) == [1, 2]
            with pytest.raises(ClosedError, match="the session is over: it was deleted"):
                await conversation.send("more")
        with pytest.raises(ClosedError, match="the session is over: it was deleted"):
            await conversation.send("more")
        with pytest.raises(ClosedError, match="inside its `async with`"):
            await client.converse().send("more")


async def test_nobody_there_is_said_after_the_time_one_is_ready_to_wait() -> None:
    async with Peer() as peer:
        pass
    async with peer.client(connect_timeout_s=3, backoff_initial_s=1) as client:
        with pytest.raises(DisconnectedError, match="no connection"):
            async with client.converse():
                raise AssertionError("it opened")
        assert sum(peer.slept_s) <= 3


async def test_who_will_not_wait_for_ever_is_told_that_the_answer_was_cut() -> None:
    async def first(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        frame = await wire.until("message")
        await wire.accept(frame)
        await wire.events(accepted(2, frame), started(3, frame.frame_id), delta(4, "half an"))
        await wire.cut()

    async def broken(wire: Wire) -> None:
        await wire.cut()

    async with (
        Peer(first, *[broken] * 9) as peer,
        peer.client(give_up_after_s=5, backoff_initial_s=1) as client,
        client.converse() as conversation,
    ):
        answer = conversation.ask("hello")
        assert await anext(answer) == "half an"
        with pytest.raises(DisconnectedError):
            await anext(answer)
        with pytest.raises(ClientError, match="has not ended"):
            _ = answer.reply


async def test_a_silent_stream_is_dead() -> None:
    async def silent(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        await wire.hang()

    async def second(wire: Wire) -> None:
        await wire.read()
        await wire.events(CLOSED)

    lost: list[Lost] = []

    def changed(change: ConnectionChange) -> None:
        if isinstance(change, Lost):
            lost.append(change)

    async with (
        Peer(silent, second) as peer,
        peer.client(silence_timeout_s=30) as client,
        client.converse(on_connection=changed) as conversation,
    ):
        events = conversation.events()
        assert (await anext(events)).seq == 1
        peer.let_time_pass()
        assert await seqs(events) == [2]
        await peer.hung_up.wait()
    assert "said nothing for 30 s" in str(lost[0].error)


async def test_a_trimmed_cursor_is_an_error_or_a_snapshot_as_one_likes() -> None:
    trimmed = BackchannelError(
        Reason.CURSOR_TRIMMED, "events up to 16 are gone", metadata={"earliest_seq": "17"}
    )

    async def refuse(wire: Wire) -> None:
        assert (await wire.read()).open.resume.after_seq == 3
        await wire.refuse(trimmed)

    async def snapshot(wire: Wire) -> None:
        assert (await wire.read()).open.resume.snapshot
        session = Session(session_id=SESSION, last_seq=20)
        first = Turn(turn_id="t1", text="one")
        await wire.write(snapshot=Snapshot(session=session, turns=[first], seq=20, more=True))
        second = Turn(turn_id="t2", text="two")
        # The session stands in the first part alone.
        await wire.write(snapshot=Snapshot(turns=[second], seq=20))
        await wire.events(Event(seq=21, session_closed=SessionClosed()))

    async with Peer(refuse, refuse, snapshot) as peer, peer.client() as client:
        with pytest.raises(CursorTrimmedError) as caught:
            async with client.resume(SESSION, after_seq=3):
                raise AssertionError("it opened")
        assert caught.value.earliest_seq == 17

        whole: list[Snapshot] = []
        async with client.resume(
            SESSION, after_seq=3, snapshot_if_trimmed=True, on_snapshot=whole.append
        ) as conversation:
            assert await seqs(conversation.events()) == [21]
        assert [turn.text for turn in whole[0].turns] == ["one", "two"]
        assert whole[0].session.last_seq == conversation.session.last_seq == 20
        assert conversation.snapshot == whole[0]


async def test_a_server_that_leaves_is_left_once_no_turn_runs() -> None:
    async def first(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), started(2, "f"))
        await wire.write(go_away=GoAway(time_left=Duration(seconds=10), reason="drain"))
        await wire.events(delta(3, "rest"))
        await wire.events(finished(4))
        await wire.hang()

    async def second(wire: Wire) -> None:
        assert (await wire.read()).open.resume.after_seq == 4
        await wire.events(Event(seq=5, session_closed=SessionClosed()))

    async with (
        Peer(first, second) as peer,
        peer.client() as client,
        client.converse() as conversation,
    ):
        assert await seqs(conversation.events()) == [1, 2, 3, 4, 5]
        # The old call has been ended and not just forgotten.
        await peer.hung_up.wait()


async def test_leaving_the_block_says_goodbye_and_ends_the_call() -> None:
    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        await wire.until("close")

    async with Peer(act) as peer, peer.client() as client:
        async with client.converse() as conversation:
            pass
        with pytest.raises(ClosedError):
            await conversation.send("too late")
    assert peer.frames[-1].HasField("close")


async def test_leaving_the_block_by_an_error_cancels_the_call_at_once() -> None:
    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        await wire.hang()

    async with Peer(act) as peer, peer.client() as client:
        with pytest.raises(ZeroDivisionError):
            async with client.converse():
                raise ZeroDivisionError
        await peer.hung_up.wait()
    assert not any(frame.HasField("close") for frame in peer.frames)


async def test_a_reader_that_does_not_iterate_does_not_fill_memory_but_gets_its_receipts() -> None:
    passed: list[int] = []

    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        frame = await wire.until("message")
        for seq in range(2, 402):
            await wire.events(delta(seq, "x" * 10_000))
            passed.append(seq)
        await wire.accept(frame)
        await wire.until("close")

    async with (
        Peer(act) as peer,
        peer.client(max_buffered_bytes=20_000) as client,
        client.converse() as conversation,
    ):
        # 4 MB lie before the receipt, far more than the buffer.
        await conversation.send("hello")
        events = conversation.events()
        for seq in range(1, 402):
            assert (await anext(events)).seq == seq


async def test_a_conversation_is_iterated_in_one_place() -> None:
    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        await wire.until("close")

    async with Peer(act) as peer, peer.client() as client, client.converse() as conversation:
        events = conversation.events()
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="in one place"):
            await anext(conversation.events())
        waiting.cancel()


# --- asking -----------------------------------------------------------------------------------


async def test_an_answer_comes_in_pieces_and_then_whole() -> None:
    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), started(2, "another", "t0"), delta(3, "not this", "t0"))
        frame = await wire.until("message")
        await wire.accept(frame)
        await wire.events(
            accepted(4, frame),
            finished(5, "t0"),
            started(6, frame.frame_id),
            delta(7, "hmm", channel=CHANNEL_REASONING),
            delta(8, "Hello"),
        )
        await wire.events(delta(9, ", you"), finished(10))
        await wire.until("close")

    async with Peer(act) as peer, peer.client() as client, client.converse() as conversation:
        answer = conversation.ask("hello")
        assert [piece async for piece in answer] == ["Hello", ", you"]
        reply = answer.reply
        assert reply.text == "Hello, you"
        assert reply.reasoning == "hmm"
        assert reply.finish_reason == FinishReason.FINISH_REASON_STOP
        assert reply.complete
        assert reply.kept_chars == 10


async def test_a_turn_that_fails_is_an_error_with_what_was_said() -> None:
    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        frame = await wire.until("message")
        await wire.accept(frame)
        end = finished(4, reason=FINISH_REASON_ERROR)
        broken = BackchannelError(Reason.ENGINE_FAILED, "the engine has failed")
        end.turn_finished.error.CopyFrom(broken.to_status())
        await wire.events(started(2, frame.frame_id), delta(3, "1 2"), end)
        await wire.until("close")

    async with Peer(act) as peer, peer.client() as client, client.converse() as conversation:
        with pytest.raises(TurnFailedError, match="the engine has failed") as caught:
            await conversation.say("hello")
        assert caught.value.reply.text == "1 2"
        assert not caught.value.reply.complete


async def test_a_withdrawn_message_has_no_answer() -> None:
    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        frame = await wire.until("message")
        await wire.accept(frame)
        withdrawn = InputWithdrawn(frame_id=frame.frame_id)
        await wire.events(accepted(2, frame), Event(seq=3, input_withdrawn=withdrawn))
        await wire.until("close")

    async with Peer(act) as peer, peer.client() as client, client.converse() as conversation:
        with pytest.raises(MessageWithdrawnError):
            await conversation.say("hello")


async def test_an_answer_goes_on_from_a_snapshot() -> None:
    async def first(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        frame = await wire.until("message")
        await wire.accept(frame)
        await wire.events(accepted(2, frame), started(3, frame.frame_id), delta(4, "one "))
        await wire.cut()

    async def trimmed(wire: Wire) -> None:
        await wire.refuse(BackchannelError(Reason.CURSOR_TRIMMED, "gone"))

    async def second(wire: Wire) -> None:
        await wire.read()
        turn = Turn(
            turn_id="t1",
            text="one two",
            kept_chars=7,
            finish_reason=FinishReason.FINISH_REASON_STOP,
        )
        await wire.write(snapshot=Snapshot(session=Session(), turns=[turn], seq=9))
        await wire.until("close")

    async with (
        Peer(first, trimmed, second) as peer,
        peer.client() as client,
        client.converse(snapshot_if_trimmed=True) as conversation,
    ):
        answer = conversation.ask("count")
        assert [piece async for piece in answer] == ["one ", "two"]
        assert answer.reply.text == "one two"
        assert conversation.seq == 9


# --- stopping ---------------------------------------------------------------------------------


async def test_a_stop_names_the_turn_and_what_was_iterated() -> None:
    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        frame = await wire.until("message")
        await wire.accept(frame)
        await wire.events(accepted(2, frame))
        await wire.accept(await wire.until("interrupt"))
        await wire.events(started(3, frame.frame_id), delta(4, "one"), delta(5, "two"))
        await wire.accept(await wire.until("interrupt"))
        await wire.accept(await wire.until("interrupt"))
        stopped = TurnInterrupted(turn_id="t1", kept_chars=3)
        await wire.events(Event(seq=6, turn_interrupted=stopped), finished(7))
        await wire.accept(await wire.until("interrupt"))
        await wire.until("close")

    async with Peer(act) as peer, peer.client() as client, client.converse() as conversation:
        with pytest.raises(ClientError, match="nothing to interrupt"):
            await conversation.interrupt()
        await conversation.send("count")
        await conversation.interrupt()
        events = conversation.events()
        while (await anext(events)).seq < 4:
            pass
        await conversation.interrupt()
        await conversation.interrupt(displayed_offset=2)
        while (await anext(events)).seq < 7:
            pass
        await conversation.interrupt()
    message = next(frame for frame in peer.frames if frame.HasField("message"))
    stops = [frame.interrupt for frame in peer.frames if frame.HasField("interrupt")]
    assert (stops[0].target_frame_id, stops[0].turn_id) == (message.frame_id, "")
    assert (stops[1].turn_id, stops[1].displayed_seq) == ("t1", 4)
    assert not stops[1].HasField("displayed_offset")
    assert (stops[2].turn_id, stops[2].displayed_offset) == ("t1", 2)
    # The last turn, though ended: the engine may have been faster than the reader.
    assert (stops[3].turn_id, stops[3].displayed_seq) == ("t1", 7)


async def test_positions_are_sent_newest_only_and_an_interrupting_message_has_one() -> None:
    held = asyncio.Event()

    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), started(2, "f"), delta(3, "one"))
        await held.wait()
        await wire.accept(await wire.until("message"))
        await wire.until("close")

    async with Peer(act) as peer, peer.client() as client, client.converse() as conversation:
        events = conversation.events()
        while (await anext(events)).seq < 3:
            pass
        for offset in range(100):
            conversation.ack(displayed_offset=offset)
        held.set()
        await conversation.send("stop", delivery=Delivery.DELIVERY_INTERRUPT)
    acks = [frame.ack for frame in peer.frames if frame.HasField("ack")]
    assert [(ack.displayed_seq, ack.displayed_offset) for ack in acks] == [(3, 99)]
    message = next(frame.message for frame in peer.frames if frame.HasField("message"))
    assert message.displayed_seq == 3


# --- tools ------------------------------------------------------------------------------------


async def test_calls_run_at_the_same_time_and_send_their_results() -> None:
    both = asyncio.Barrier(2)

    @tool
    async def meet(name: str) -> dict[str, str]:
        """Wait for another one."""
        await both.wait()
        return {"hello": name}

    async def act(wire: Wire) -> None:
        assert (await wire.read()).open.create.tools[0].name == "meet"
        await wire.events(
            opened(),
            ready(2, "c1", "meet", '{"name": "A"}'),
            ready(3, "c2", "meet", '{"name":"B"}'),
        )
        for _ in range(2):
            await wire.accept(await wire.until("tool_result"))
        await wire.events(Event(seq=4, session_closed=SessionClosed()))

    async with (
        Peer(act) as peer,
        peer.client() as client,
        client.converse(tools=[meet]) as conversation,
    ):
        assert await seqs(conversation.events()) == [1, 2, 3, 4]
    results = {
        frame.tool_result.call_id: frame.tool_result.json
        for frame in peer.frames
        if frame.HasField("tool_result")
    }
    assert results == {"c1": '{"hello":"A"}', "c2": '{"hello":"B"}'}


async def test_a_result_lost_on_the_way_is_sent_again_and_the_tool_not_run_again() -> None:
    runs: list[str] = []

    @tool
    def once(context: ToolContext) -> str:
        """Count."""
        runs.append(context.call_id)
        return "done"

    async def first(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), ready(2, "c1", "once"))
        await wire.until("tool_result")
        await wire.cut()

    async def second(wire: Wire) -> None:
        await wire.read()
        await wire.accept(await wire.until("tool_result"))
        await wire.events(call_over(3, "c1"), Event(seq=4, session_closed=SessionClosed()))

    session = Session(session_id=SESSION, last_seq=2, open_tool_calls=[open_call("c1", "once")])
    async with (
        Peer(first, second, session=session) as peer,
        peer.client() as client,
        client.converse(tools=[once]) as conversation,
    ):
        assert await seqs(conversation.events()) == [1, 2, 3, 4]
    assert runs == ["c1"]
    one, two = [frame for frame in peer.frames if frame.HasField("tool_result")]
    assert one == two


async def test_at_a_resume_the_calls_that_are_open_run_and_those_of_the_past_do_not() -> None:
    runs: list[str] = []

    @tool
    def look(context: ToolContext) -> str:
        """Look."""
        runs.append(context.call_id)
        return "seen"

    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), ready(2, "past", "look"))
        # Long enough for a client that takes it for a new one to run it.
        await wire.accept(await wire.until("tool_result"))
        await wire.events(call_over(3, "past"), ready(4, "open", "look"))
        await wire.events(ready(5, "foreign", "other"), ready(6, "new", "look"))
        await wire.accept(await wire.until("tool_result"))
        await wire.events(Event(seq=7, session_closed=SessionClosed()))

    calls = [open_call("open", "look"), open_call("foreign", "other")]
    session = Session(session_id=SESSION, last_seq=5, open_tool_calls=calls, update_time=stamp())
    async with (
        Peer(act, session=session) as peer,
        peer.client() as client,
        client.resume(SESSION, tools=[look]) as conversation,
    ):
        assert len(await seqs(conversation.events())) == 7
    assert runs == ["open", "new"]


async def test_a_cancelled_call_stops_and_sends_nothing() -> None:
    began, stopped = asyncio.Event(), asyncio.Event()

    @tool
    async def forever() -> None:
        """Never end."""
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), ready(2, "c1", "forever"))
        await began.wait()
        cancelled = ToolCallCancelled(call_id="c1", reason="INTERRUPTED")
        await wire.events(Event(seq=3, tool_call_cancelled=cancelled))
        await stopped.wait()
        await wire.until("close")

    async with (
        Peer(act) as peer,
        peer.client() as client,
        client.converse(tools=[forever]),
    ):
        await stopped.wait()
    assert not any(frame.HasField("tool_result") for frame in peer.frames)


async def test_a_call_whose_time_is_over_is_not_run_on() -> None:
    stopped = asyncio.Event()

    @tool
    async def forever() -> None:
        """Never end."""
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), ready(2, "c1", "forever", within_s=0.01))
        await wire.until("close")

    async with (
        Peer(act) as peer,
        peer.client() as client,
        client.converse(tools=[forever]),
    ):
        await stopped.wait()
    assert not any(frame.HasField("tool_result") for frame in peer.frames)


async def test_a_result_that_the_server_refuses_becomes_an_error_the_model_is_told() -> None:
    @tool
    def big() -> str:
        """Return too much."""
        return "x" * 100

    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), ready(2, "c1", "big"))
        refused = BackchannelError(Reason.FIELD_TOO_LONG, "at most 1 MiB", field="tool_result.json")
        frame = await wire.until("tool_result")
        await wire.accept(frame, status=RECEIPT_STATUS_REJECTED, error=refused.to_status())
        await wire.accept(await wire.until("tool_result"))
        await wire.events(Event(seq=3, session_closed=SessionClosed()))

    async with (
        Peer(act) as peer,
        peer.client() as client,
        client.converse(tools=[big]) as conversation,
    ):
        await seqs(conversation.events())
    second = [frame.tool_result for frame in peer.frames if frame.HasField("tool_result")][1]
    assert second.error.code == "FIELD_TOO_LONG"
    assert "at most 1 MiB" in second.error.message


async def test_progress_is_sent_from_threads_too() -> None:
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()

    @tool
    def slow(context: ToolContext) -> str:
        """Take a while."""
        context.progress(0.5, "half")
        asyncio.run_coroutine_threadsafe(heard.wait(), loop).result(10)
        return "done"

    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened(), ready(2, "c1", "slow"))
        progress = (await wire.until("tool_progress")).tool_progress
        assert (progress.call_id, progress.fraction, progress.note) == ("c1", 0.5, "half")
        heard.set()
        await wire.accept(await wire.until("tool_result"))
        await wire.events(Event(seq=3, session_closed=SessionClosed()))

    async with (
        Peer(act) as peer,
        peer.client() as client,
        client.converse(tools=[slow]) as conversation,
    ):
        assert await seqs(conversation.events()) == [1, 2, 3]


# --- single calls -----------------------------------------------------------------------------


async def test_a_deletion_whose_answer_was_lost_has_worked() -> None:
    async with Peer() as peer, peer.client() as client:
        await client.delete(SESSION)
        assert peer.deleted == 2
        with pytest.raises(SessionGoneError):
            await client.delete(SESSION)


async def test_a_frame_needs_an_id_to_be_safe_to_repeat() -> None:
    async def act(wire: Wire) -> None:
        await wire.read()
        await wire.events(opened())
        await wire.until("close")

    async with Peer(act) as peer, peer.client() as client, client.converse() as conversation:
        with pytest.raises(ValueError, match="needs a frame_id"):
            await conversation.send_frame(ClientFrame(ping=Ping()))


# --- turns ------------------------------------------------------------------------------------


async def test_an_answer_tells_how_often_it_was_recovered() -> None:
    async def act(wire: Wire) -> None:
        await wire.until("open")
        await wire.events(opened())
        frame = await wire.until("message")
        await wire.accept(frame)
        recovered = TurnRecovered(turn_id="t1", reason="OWNER_LOST", from_seq=4)
        other = TurnRecovered(turn_id="t0", reason="OWNER_LOST", from_seq=4)
        await wire.events(
            accepted(2, frame),
            started(3, frame.frame_id),
            delta(4, "one"),
            Event(seq=5, turn_recovered=recovered),
            Event(seq=6, turn_recovered=other),
            delta(7, " two"),
            finished(8),
        )
        await wire.hang()

    async with Peer(act) as peer, peer.client() as client, client.converse() as conversation:
        reply = await conversation.say("count")
        assert reply.text == "one two"
        assert reply.recoveries == 1


async def test_turns_begin_amid_the_one_that_a_snapshot_finds_running() -> None:
    running = Turn(turn_id="t1", frame_id="a", text="one", call_ids=["c1"])

    async def act(wire: Wire) -> None:
        await wire.until("open")
        session = Session(session_id="s" * 16, running_turn_id="t1")
        await wire.write(snapshot=Snapshot(session=session, turns=[running], seq=5))
        await wire.events(delta(6, " two"), finished(7), started(8, "b", "t2"), finished(9, "t2"))
        await wire.hang()

    async with Peer(act) as peer, peer.client() as client:
        conversation = client.resume("s" * 16, max_lag_events=3)
        seen = []
        async with conversation:
            async for answer in conversation.turns():
                seen.append("".join([piece async for piece in answer]))
                if answer.turn_id == "t2":
                    break
                assert (answer.call_ids, answer.frame_ids) == (("c1",), ("a",))
        assert seen == ["one two", ""]
        assert peer.frames[0].open.resume.max_lag_events == 3


class City(pydantic.BaseModel):
    name: str
    people: int


async def test_an_answer_has_the_shape_of_a_python_type() -> None:
    async def act(wire: Wire) -> None:
        await wire.until("open")
        await wire.events(opened())
        for seq, reason in ((2, FINISH_REASON_STOP), (6, FINISH_REASON_LENGTH)):
            frame = await wire.until("message")
            await wire.accept(frame)
            await wire.events(
                accepted(seq, frame),
                started(seq + 1, frame.frame_id, f"t{seq}"),
                delta(seq + 2, '{"name": "Oslo", "people": 717710}', f"t{seq}"),
                finished(seq + 3, f"t{seq}", reason),
            )
        await wire.hang()

    async with Peer(act) as peer, peer.client() as client:
        schema = {"type": "object"}
        async with client.converse(response_format=schema) as conversation:
            reply = await conversation.say("where?", response_format=City)
            assert reply.parse(City) == City(name="Oslo", people=717710)
            with pytest.raises(pydantic.ValidationError):
                reply.parse(list[int])
            cut = await conversation.say("where?")
            with pytest.raises(ClientError, match="LENGTH"):
                cut.parse(City)
            with pytest.raises(TypeError, match="no JSON schema"):
                await conversation.say("where?", response_format=Peer)
    config = peer.frames[0].open.create
    assert json.loads(config.response_format.json_schema) == schema
    asked = json.loads(peer.frames[1].message.response_format.json_schema)
    assert set(asked["properties"]) == {"name", "people"}
    assert not peer.frames[2].message.HasField("response_format")
