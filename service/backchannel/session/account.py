"""What a turn has cost and where its time went: the two accounts of its ending."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from backchannel.session.owner import Owner
from backchannel.session.turn import Turn
from backchannel.v1 import session_pb2


def usage_of(turn: Turn, owner: Owner) -> session_pb2.Usage:
    """What the running turn has cost, now that it ends."""
    bill = owner.bill
    return session_pb2.Usage(
        prompt_tokens=bill.prompt_tokens,
        cached_prompt_tokens=bill.cached_prompt_tokens,
        generated_tokens=turn.delivered_tokens + bill.wasted,
        delivered_tokens=turn.delivered_tokens,
        displayed_tokens=owner.displayed.tokens(turn),
        kept_tokens=turn.kept_tokens(),
        wasted_tokens=bill.wasted,
        estimated=bill.estimated,
    )


def timing_of(turn: Turn, owner: Owner, now_ns: int) -> session_pb2.Timing:
    """Where the time of the running turn went, now that it ends."""
    pace, bill = turn.pace, owner.bill
    timing = session_pb2.Timing(total=_span(now_ns - turn.started_ns))
    if bill.admitted_ns > 0:
        timing.queued.CopyFrom(_span(bill.admitted_ns - turn.accepted_ns))
    if pace.first_ns:
        timing.time_to_first_token.CopyFrom(_span(pace.first_ns - turn.accepted_ns))
        timing.max_gap.CopyFrom(_span(pace.max_gap_ns))
    if pace.tokens_after_first:
        timing.time_per_output_token.CopyFrom(_span(pace.spent_ns // pace.tokens_after_first))
    if bill.paused_ns:
        timing.paused.CopyFrom(_span(bill.paused_ns))
    return timing


def _span(ns: int) -> Duration:
    span = Duration()
    span.FromNanoseconds(max(ns, 0))
    return span
