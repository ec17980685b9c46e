"""What is said at the end of a run: what came of it, what is left, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asyncexp.cli.cells import one_line
from asyncexp.cli.output import STATUS_STYLES, count
from asyncexp.progress import rate_text, span_text

if TYPE_CHECKING:
    from rich.text import Text

    from asyncexp import Experimenter
    from asyncexp.experiment import Failure, Summary

SHOWN_GROUPS = 5
SHOWN_IDS = 5
OUTCOMES = ("done", "error", "paused", "released", "lost", "retried")
_STOPPED = {
    "SIGINT": "stopped by Ctrl-C",
    "SIGTERM": "stopped by SIGTERM",
    "stop": "stopped, as somebody asked",
    "max_errors": "stopped: too many errors",
    "outage": "stopped: the database is away",
    "cancelled": "cancelled",
}


async def told(
    experimenter: Experimenter,
    summary: Summary,
    failures: Sequence[Failure],
    keywords: Mapping[str, Any],
    function: str,
) -> Text:
    """The account of a run, over several lines."""
    from rich.text import Text

    if not _anything(summary) and not summary.stopped_by:
        return Text(await _why_nothing(experimenter, keywords, function))
    lines = [_first(summary), *_errors(summary, failures), *(Text(line) for line in _next(summary, function))]
    return Text("\n").join(lines)


def _anything(summary: Summary) -> bool:
    return any(getattr(summary, outcome) for outcome in OUTCOMES)


def _first(summary: Summary) -> Text:
    from rich.text import Text

    counted = [(outcome, number) for outcome in OUTCOMES if (number := getattr(summary, outcome))]
    words = [Text(f"{number:,} {outcome}", STATUS_STYLES.get(outcome, "")) for outcome, number in counted]
    ended = sum(number for outcome, number in counted if outcome in ("done", "error", "paused"))
    words[-1:] = [(words[-1] if words else Text("nothing ended")) + Text(f" in {_span(summary.seconds)}")]
    if ended:
        words.append(Text(rate_text(ended / max(summary.seconds, 1e-9))))
    if summary.left:
        words.append(Text(f"{count(summary.left, 'row')} left"))
    if summary.stopped_by:
        words.append(Text(_STOPPED.get(summary.stopped_by, f"stopped by {summary.stopped_by}"), "bold"))
    return Text(", ").join(words)


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else span_text(seconds)


def _errors(summary: Summary, failures: Sequence[Failure]) -> Iterable[Text]:
    """Those that failed alike together, with the last line of the first of them; the most frequent first."""
    from rich.text import Text

    groups: dict[str, tuple[str, list[int]]] = {}
    for failure in failures:
        groups.setdefault(failure.place or failure.line, (failure.line, []))[1].append(failure.id)
    shown = sorted(groups.values(), key=lambda group: -len(group[1]))[:SHOWN_GROUPS]
    for line, ids in shown:
        named = ", ".join(map(str, ids[:SHOWN_IDS])) + (", …" if len(ids) > SHOWN_IDS else "")
        yield Text.assemble("  ", (f"{len(ids)} × ", "red"), one_line(line), (f"  (ID {named})", "bright_black"))
    if (more := summary.error - sum(len(ids) for _, ids in shown)) > 0:
        yield Text(f"  … and {count(more, 'more error')}")


def _next(summary: Summary, function: str) -> Iterable[str]:
    if summary.error:
        yield "See `asyncexp errors`; `asyncexp retry` puts them back."
    if summary.paused:
        yield f"`asyncexp unpause {function}` continues what is paused."
    if summary.left and summary.stopped_by:
        yield f"`asyncexp run {function}` goes on with what is left."


async def _why_nothing(experimenter: Experimenter, keywords: Mapping[str, Any], function: str) -> str:
    """Why no experiment was run."""
    if keywords.get("max_experiments") == 0:
        return "Nothing to run: --max is 0."
    condition = dict(keywords.get("where") or {})
    if ids := keywords.get("experiment_ids"):
        condition["ID"] = ids
    found = await experimenter.counts(condition)
    total = sum(found.values())
    if keywords.get("from_status") == "paused":
        others = ", ".join(f"{number:,} {status}" for status, number in found.items() if number)
        return f"Nothing to continue: no such row is paused ({others or 'there is none at all'})."
    if not total:
        return "Nothing to run: " + (
            "no row is such as asked for." if condition else "the table is empty; `asyncexp fill` adds its rows."
        )
    if found["done"] == total:
        return f"Nothing to run: {'the row is' if total == 1 else f'all {total:,} rows are'} done."
    reasons = [reason for status, number in found.items() if number and (reason := _reason(status, number, function))]
    return "Nothing to run: " + "; ".join(reasons) + "."


def _reason(status: str, number: int, function: str) -> str:
    hints = {
        "created": " and wait for their time, or another worker has just taken them (`asyncexp run` again)",
        "running": " elsewhere (`asyncexp workers`; `--until finished` waits for them)",
        "error": " (`asyncexp retry` puts them back)",
        "paused": f" (`asyncexp unpause {function}` continues them)",
    }
    return f"{count(number, 'row')} {'is' if number == 1 else 'are'} {status}{hints.get(status, '')}"
