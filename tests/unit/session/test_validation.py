"""What a refusal says: the field, and values that a person can write."""

from __future__ import annotations

import pytest

from backchannel.errors import BackchannelError
from backchannel.session.validation import check_config, check_frame
from backchannel.v1 import frame_pb2, session_pb2


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (
            frame_pb2.ClientFrame(
                message=session_pb2.UserMessage(
                    parts=[session_pb2.Part(text="x")],
                    delivery=77,  # type: ignore[arg-type]  # open enums let any number through
                )
            ),
            "must be one of DELIVERY_QUEUE, DELIVERY_INTERRUPT, DELIVERY_STEER",
        ),
        (
            frame_pb2.ClientFrame(
                interrupt=frame_pb2.Interrupt(turn_id="t", keep=77)  # type: ignore[arg-type]  # same
            ),
            "must be one of KEEP_DISPLAYED, KEEP_GENERATED, KEEP_NOTHING",
        ),
    ],
)
def test_an_unknown_value_of_a_frame_is_answered_with_the_names(
    frame: frame_pb2.ClientFrame, says: str
) -> None:
    with pytest.raises(BackchannelError) as refused:
        check_frame(frame)
    assert str(refused.value) == says


def test_an_unknown_value_of_a_configuration_is_answered_with_the_names() -> None:
    policy = session_pb2.DisconnectPolicy(action=44)  # type: ignore[arg-type]  # same
    with pytest.raises(BackchannelError) as refused:
        check_config(session_pb2.SessionConfig(on_disconnect=policy))
    assert str(refused.value) == (
        "must be one of ACTION_CANCEL_AFTER_GRACE, ACTION_CONTINUE, ACTION_CANCEL_NOW"
    )


def test_a_limit_is_written_out() -> None:
    sampling = session_pb2.Sampling(max_tokens=0)
    with pytest.raises(BackchannelError, match=r"must be between 1 and 2147483647$"):
        check_config(session_pb2.SessionConfig(sampling=sampling))
