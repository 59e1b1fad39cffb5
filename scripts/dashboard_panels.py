"""The dashboard's panels: one table, from which Grafana's JSON, the page and checks are made.

A row asks a question, its panels answer it. Queries leave the instance out; `selected` puts it in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SECONDS: Final = "s"
SHARE: Final = "percentunit"
COUNT: Final = "short"
BYTES: Final = "bytes"
# Units of our own, as Grafana spells them
# (https://grafana.com/docs/grafana/latest/panels-visualizations/configure-standard-options/).
TOKENS_A_SECOND: Final = "suffix:tok/s"
A_SECOND: Final = "suffix:/s"
TIMES: Final = "suffix:×"
EVENTS: Final = "suffix:events"


@dataclass(frozen=True, slots=True)
class Query:
    """One query and how its series are called.

    Attributes:
        legend: With a label's name in `{{ }}` where its value is to stand.
        expr: PromQL, `[]` standing for the range of a rate.
    """

    legend: str
    expr: str

    @property
    def selected(self) -> str:
        """The query for the chosen instances, over the range that suits the zoom."""
        return _METRIC.sub(_with_instance, self.expr).replace("[]", "[$__rate_interval]")


_METRIC: Final = re.compile(
    r"\b((?:gen_ai_server|backchannel|rpc_server)_\w+|up)(?:\{([^}]*)\})?(?!\w)"
)


def _with_instance(found: re.Match[str]) -> str:
    labels = [*filter(None, [found[2]]), 'instance=~"$instance"']
    return f"{found[1]}{{{', '.join(labels)}}}"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    Attributes:
        title: What is to be seen.
        meaning: One or two sentences: what it tells, and what is good.
        unit: Grafana's id of it.
        queries: What is drawn.
        threshold: From where on it is bad: the line that an alert draws, too.
        stacked: Whether the series are parts of one whole.
        alerts: The rules that watch the same.
        big: Whether it is one number, of now.
    """

    title: str
    meaning: str
    unit: str
    queries: tuple[Query, ...]
    threshold: float | None = None
    stacked: bool = False
    alerts: tuple[str, ...] = ()
    big: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A question and the panels that answer it.

    Attributes:
        question: As a person would ask.
        answer: How to read the row.
        panels: In the order of reading.
    """

    question: str
    answer: str
    panels: tuple[Panel, ...]


def quantiles(metric: str, *qs: float, by: str = "", legend: str = "") -> tuple[Query, ...]:
    """Percentiles of a histogram, of all series or one for each value of a label."""
    return tuple(
        Query(
            legend or (f"{{{{{by}}}}}" if by else f"p{q * 100:g}"),
            f"histogram_quantile({q:g}, sum by (le{', ' + by if by else ''})"
            f" (rate({metric}_bucket[])))",
        )
        for q in qs
    )


def rate(counter: str, legend: str, *, by: str = "") -> tuple[Query, ...]:
    """How fast a counter goes up."""
    return (Query(legend, f"sum{f' by ({by})' if by else ''} (rate({counter}[]))"),)


def total(gauge: str, legend: str, *, by: str = "") -> tuple[Query, ...]:
    """A gauge over all instances."""
    return (Query(legend, f"sum{f' by ({by})' if by else ''} ({gauge})"),)


_TTFT: Final = "gen_ai_server_time_to_first_token_seconds"
_GAP: Final = "backchannel_output_gap_seconds"
_ENGINE: Final = "gen_ai_provider_name"
# Two engines may have a model of the same name.
_MODEL: Final = f"{_ENGINE}, gen_ai_request_model"
_MODEL_LEGEND: Final = "{{gen_ai_provider_name}}/{{gen_ai_request_model}}"
_WASTED: Final = Query(
    "wasted",
    'sum(rate(backchannel_tokens_total{fate="wasted"}[]))'
    ' / sum(rate(backchannel_tokens_total{fate=~"wasted|delivered"}[]))',
)
_ERRORS: Final = Query(
    "turns that failed",
    'sum(rate(backchannel_turns_total{ending=~"error|owner_lost"}[]) or'
    " 0 * rate(backchannel_turns_total[])) / sum(rate(backchannel_turns_total[]))",
)


_UNARY: Final = (
    'rate(rpc_server_call_duration_seconds_bucket{rpc_method!~".*/(Converse|Attach|Watch)"}[])'
)


def _by_method(vector: str) -> str:
    """With the method's name alone, which is enough for a legend."""
    return f'label_replace({vector}, "method", "$1", "rpc_method", ".*/(.*)")'


def _burn(legend: str, metric: str, bound: str, budget: float) -> Query:
    return Query(
        legend,
        f'(1 - sum(rate({metric}_bucket{{le="{bound}"}}[])) / sum(rate({metric}_count[])))'
        f" / {budget:g}",
    )


GLANCE: Final = Row(
    "How is it now?",
    "One number each, red where an alert's line is crossed. If all are green, nobody waits.",
    (
        Panel(
            "Servers up",
            "Processes that Prometheus reaches.",
            COUNT,
            (Query("up", 'sum(up{job="backchannel"})'),),
            alerts=("BackchannelDown",),
            big=True,
        ),
        Panel(
            "Sessions",
            "In memory, with or without somebody reading.",
            COUNT,
            total("backchannel_sessions", "sessions"),
            big=True,
        ),
        Panel(
            "Turns at work",
            "Begun and not ended.",
            COUNT,
            total("backchannel_turns_running", "running"),
            big=True,
        ),
        Panel(
            "Tokens delivered",
            "Into the log, all models together.",
            TOKENS_A_SECOND,
            rate('backchannel_tokens_total{fate="delivered"}', "delivered"),
            big=True,
        ),
        Panel(
            "First token, p99",
            "Of a hundred turns all but one begin to answer sooner.",
            SECONDS,
            quantiles(_TTFT, 0.99),
            threshold=2.5,
            alerts=("FirstTokenBudgetBurnsFast", "FirstTokenBudgetBurns"),
            big=True,
        ),
        Panel(
            "Gap, p99",
            "Of a hundred outputs all but one follow sooner.",
            SECONDS,
            quantiles(_GAP, 0.99),
            threshold=0.5,
            alerts=("GapBudgetBurnsFast", "GapBudgetBurns"),
            big=True,
        ),
        Panel(
            "Turns failed",
            "Share of turns that ended because an engine or its server failed.",
            SHARE,
            (_ERRORS,),
            threshold=0.05,
            alerts=("TurnsFail",),
            big=True,
        ),
        Panel(
            "Tokens wasted",
            "Share of what engines computed that nobody was given.",
            SHARE,
            (_WASTED,),
            threshold=0.2,
            alerts=("TokensWasted",),
            big=True,
        ),
    ),
)

USERS: Final = Row(
    "What do users feel?",
    "How long until something happens, whether it then flows, and whether a stop stops. Read the"
    " first line; where a curve nears its dashed line, the second tells which model it is.",
    (
        Panel(
            "Time to first token",
            "From a message's acceptance to the first output in the log, waiting for a place"
            " included. The promise is 2.5 s for 99 % of turns.",
            SECONDS,
            quantiles(_TTFT, 0.5, 0.9, 0.99),
            threshold=2.5,
            alerts=("FirstTokenBudgetBurnsFast", "FirstTokenBudgetBurns"),
        ),
        Panel(
            "Gap between outputs",
            "From one output to the next of the same answer: a long one is a stutter. The promise"
            " is 0.5 s for 99.9 % of outputs.",
            SECONDS,
            quantiles(_GAP, 0.5, 0.99, 0.999),
            threshold=0.5,
            alerts=("GapBudgetBurnsFast", "GapBudgetBurns"),
        ),
        Panel(
            "Error budgets, how fast they burn",
            "1 × uses a month's budget up in a month; an hour at 14.4 × pages somebody, six hours"
            " at 6 × open a ticket. Short peaks are no matter.",
            TIMES,
            (
                _burn("first token", _TTFT, "2.5", 0.01),
                _burn("gap", _GAP, "0.5", 0.001),
            ),
            threshold=14.4,
            alerts=(
                *("FirstTokenBudgetBurnsFast", "FirstTokenBudgetBurns"),
                *("GapBudgetBurnsFast", "GapBudgetBurns"),
            ),
        ),
        Panel(
            "Time to first token at p99, by model",
            "One model alone: look at its engine. All together: look at what they share, the"
            " process and the log.",
            SECONDS,
            quantiles(_TTFT, 0.99, by=_MODEL, legend=_MODEL_LEGEND),
        ),
        Panel(
            "Time per token at p50, by model",
            "The mean time of each token after the first, of the median turn.",
            SECONDS,
            quantiles(
                "gen_ai_server_time_per_output_token_seconds", 0.5, by=_MODEL, legend=_MODEL_LEGEND
            ),
        ),
        Panel(
            "Duration of a turn",
            "From a message's acceptance to the end of its turn, tools included.",
            SECONDS,
            quantiles("gen_ai_server_request_duration_seconds", 0.5, 0.9, 0.99),
        ),
        Panel(
            "Turns, by their ending",
            "`stop` and `length` ended by themselves, `interrupted` and `steered` because a client"
            " wanted so, `error` because an engine failed.",
            A_SECOND,
            rate("backchannel_turns_total", "{{ending}}", by="ending"),
            stacked=True,
            alerts=("TurnsFail",),
        ),
        Panel(
            "Interrupts",
            "Turns that a client has stopped: many together may mean answers that nobody wants.",
            A_SECOND,
            rate("backchannel_interrupts_total", "interrupts"),
        ),
        Panel(
            "Time an engine takes to stop, at p99",
            "From the word to its obedience; what it computes meanwhile is wasted.",
            SECONDS,
            quantiles("backchannel_engine_stop_seconds", 0.99, by=_ENGINE),
            alerts=("TokensWasted",),
        ),
    ),
)

COSTS: Final = Row(
    "What is paid for?",
    "Every computed token is paid for, also those that nobody got. `delivered` went into the log;"
    " of these `displayed` were seen and `kept` are in the context of the next turn.",
    (
        Panel(
            "Tokens, by fate",
            "`displayed` as far as clients acknowledge what they show, `kept` as turns end.",
            TOKENS_A_SECOND,
            rate("backchannel_tokens_total", "{{fate}}", by="fate"),
        ),
        Panel(
            "Tokens delivered, by model",
            "Where the money goes.",
            TOKENS_A_SECOND,
            rate('backchannel_tokens_total{fate="delivered"}', "{{model}}", by="model"),
            stacked=True,
        ),
        Panel(
            "Share of tokens wasted",
            "Computed and never delivered: stopped too late, or refused by the log.",
            SHARE,
            (_WASTED,),
            threshold=0.2,
            alerts=("TokensWasted",),
        ),
    ),
)

STUCK: Final = Row(
    "What is stuck?",
    "Everything that waits for somebody else: messages for a place with an engine, turns for a"
    " tool's result, events for a reader.",
    (
        Panel(
            "Wait for an engine at p99, by model",
            "From a message's acceptance until an engine takes it up: the part of the time to first"
            " token that more places would take away.",
            SECONDS,
            quantiles("backchannel_queue_wait_seconds", 0.99, by="model"),
        ),
        Panel(
            "Generations that wait, by engine",
            "Above nothing for long: the engine has too few places (`max_parallel`).",
            COUNT,
            total("backchannel_engine_waiting", "{{gen_ai_provider_name}}", by=_ENGINE),
        ),
        Panel(
            "Places taken, by engine",
            "Generations at work, as a share of those that may be. Engines without a limit are not"
            " here.",
            SHARE,
            (
                Query(
                    "{{gen_ai_provider_name}}",
                    f"sum by ({_ENGINE}) (backchannel_engine_running)"
                    f" / sum by ({_ENGINE}) (backchannel_engine_limit)",
                ),
            ),
            threshold=1.0,
        ),
        Panel(
            "Tool calls, by outcome",
            "`timed_out`: nobody answered in time; `late`: a result that came after that.",
            A_SECOND,
            rate("backchannel_tool_calls_total", "{{outcome}}", by="outcome"),
            stacked=True,
            alerts=("ToolsTimeOut",),
        ),
        Panel(
            "Wait for a tool at p99, by outcome",
            "From a call's announcement to its end.",
            SECONDS,
            quantiles("backchannel_tool_wait_seconds", 0.99, by="outcome"),
        ),
        Panel(
            "Oldest open tool call",
            "A saw is good: calls end. A straight line up is a tool that nobody runs; the alert"
            " comes at 10 min.",
            SECONDS,
            (Query("oldest", "max(backchannel_tool_oldest_seconds)"),),
            threshold=600.0,
            alerts=("ToolStuck",),
        ),
        Panel(
            "Open tool calls",
            "Calls that wait for their result.",
            COUNT,
            total("backchannel_tool_open", "open"),
            alerts=("ToolStuck",),
        ),
        Panel(
            "Slowest reader",
            "How many events it is behind. It costs nothing but itself: others do not wait for it.",
            EVENTS,
            (Query("behind", "max(backchannel_reader_lag)"),),
        ),
        Panel(
            "Readers, by door",
            "Who is attached, and how.",
            COUNT,
            total(_by_method("backchannel_readers"), "{{method}}", by="method"),
            stacked=True,
        ),
        Panel(
            "Resumes",
            "Readers that came back, by cursor or with a snapshot. Many at once: a network broke.",
            A_SECOND,
            rate("backchannel_resumes_total", "from a {{from}}", by="from"),
        ),
        Panel(
            "Events replayed",
            "What those who came back had missed.",
            EVENTS + "/s",
            rate("backchannel_replayed_total", "replayed"),
        ),
        Panel(
            "Frames refused",
            "`ENGINE_BUSY`, `QUEUE_FULL`: people who were turned away.",
            A_SECOND,
            rate("backchannel_frames_refused_total", "{{reason}}", by="reason"),
        ),
        Panel(
            "Turns at work, by engine",
            "Generations that have a place.",
            COUNT,
            total("backchannel_engine_running", "{{gen_ai_provider_name}}", by=_ENGINE),
            stacked=True,
        ),
    ),
)

MACHINE: Final = Row(
    "Is the machine well?",
    "Readers see what the log has, so its time is in every token. The event loop's lag tells"
    " whether the process has more to do than one core can.",
    (
        Panel(
            "Commit duration",
            "How long the log takes for one append that succeeds; those that it refuses are under"
            " *Commit errors*.",
            SECONDS,
            quantiles("backchannel_commit_duration_seconds", 0.5, 0.99),
        ),
        Panel(
            "Events in a commit",
            "Grows with the load by design: what piles up while one append is under way goes into"
            " the next.",
            EVENTS,
            (
                *quantiles("backchannel_commit_events", 0.5, 0.99),
                Query(
                    "mean",
                    "sum(rate(backchannel_commit_events_sum[]))"
                    " / sum(rate(backchannel_commit_events_count[]))",
                ),
            ),
        ),
        Panel(
            "Decided and not committed",
            "What a crash of this moment would lose. Nobody has seen it yet.",
            BYTES,
            total("backchannel_commit_backlog_bytes", "backlog"),
        ),
        Panel(
            "Commit errors",
            "Appends that the log refused. There should be none.",
            A_SECOND,
            rate("backchannel_commit_errors_total", "{{reason}}", by="reason"),
            alerts=("CommitsFail",),
        ),
        Panel(
            "Engine errors",
            "By engine and reason, those included that another model made good.",
            A_SECOND,
            rate(
                "backchannel_engine_errors_total",
                "{{gen_ai_provider_name}} {{error_type}}",
                by=f"{_ENGINE}, error_type",
            ),
            alerts=("TurnsFail",),
        ),
        Panel(
            "Event loop lag",
            "How much later than asked a timer is woken. Above 50 ms users see it in every gap.",
            SECONDS,
            quantiles("backchannel_event_loop_lag_seconds", 0.5, 0.99),
            threshold=0.05,
            alerts=("EventLoopLags",),
        ),
        Panel(
            "Calls, by how they ended",
            "`cancel` is also how a stream ends whose client closes the connection; `exception` is"
            " a fault of ours.",
            A_SECOND,
            rate("rpc_server_call_duration_seconds_count", "{{outcome}}", by="outcome"),
            stacked=True,
        ),
        Panel(
            "Duration of a unary call, at p99",
            "The streams left out, which last as long as a conversation.",
            SECONDS,
            (
                Query(
                    "{{method}}",
                    f"histogram_quantile(0.99, sum by (le, method) ({_by_method(_UNARY)}))",
                ),
            ),
        ),
        Panel(
            "Sessions in memory",
            "They leave when nobody has asked for them for a while; the log keeps them.",
            COUNT,
            total("backchannel_sessions", "{{instance}}", by="instance"),
            stacked=True,
        ),
    ),
)

ROWS: Final = (GLANCE, USERS, COSTS, STUCK, MACHINE)

LEFT_OUT: Final[Mapping[str, str]] = {
    "backchannel.heartbeats": "as many as there are quiet readers, whom *Readers, by door* shows",
}
"""Metrics that are not on the dashboard, and why."""
