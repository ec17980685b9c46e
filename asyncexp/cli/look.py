"""What a look at a study shows: its counts, workers and what runs longest, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from asyncexp.cli import cells, output
from asyncexp.cli.cells import moment, named
from asyncexp.cli.place import Place

if TYPE_CHECKING:
    from rich.console import RenderableType

    from asyncexp.experiment import Running
    from asyncexp.store.look import Overview
    from asyncexp.store.workers import WorkerInfo

LONGEST = 10
"""So many running experiments are told one by one, where the screen has room for them."""
MOST_MACHINES = 8
MOST_BAR_COLUMNS = 40
BESIDE_BAR = 34


def document(place: Place, overview: Overview, rate: float, eta_seconds: float | None) -> dict[str, Any]:
    """A look as JSON."""
    return {
        "table": place.schema.name,
        "at": overview.at,
        "counts": overview.counts,
        "total": overview.total,
        "rate": rate,
        "eta_seconds": eta_seconds,
        "workers": overview.workers,
        "oldest": overview.oldest,
        "scan_seconds": overview.scan_seconds,
    }


# ---------------------------------------------------------------------------------------- the screen


def screen(
    place: Place,
    overview: Overview,
    rate: float,
    eta_seconds: float | None,
    condition: dict[str, Any] | None,
    *,
    rows: int | None = None,
) -> list[RenderableType]:
    """A look for people, its parts from above.

    Args:
        rows: of the screen that it has to fit, if it has to.
    """
    from rich.text import Text

    head = [_title(place, overview, condition), Text(), *_counts(overview), Text(), *_sums(overview, rate, eta_seconds)]
    advice = [Text(line, "yellow") for line in _advice(overview, condition)]
    machines = list(_machines(overview))
    room = None if rows is None else rows - len(head) - _height([*advice, *machines]) - 3
    parts: list[RenderableType] = [*head, *advice, *machines, *_oldest(overview, room)]
    return parts


def _height(parts: Sequence[Any]) -> int:
    width = output.out().width
    return sum(getattr(part, "row_count", 0) + 1 + max(0, getattr(part, "cell_len", 0) - 1) // width for part in parts)


def _that_fit(found: Sequence[Running], rows: int | None) -> Sequence[Running]:
    """The first of them, at least one; each takes a line more if it has told something."""
    heights = accumulate(1 + bool(each.message) for each in found)
    return found if rows is None else found[: max(1, sum(height <= rows for height in heights))]


def _title(place: Place, overview: Overview, condition: dict[str, Any] | None) -> RenderableType:
    from rich.text import Text

    database = place.configuration.database
    words = f"  {moment(overview.at)} UTC  {database.provider} {database.database}"
    narrowed = f"  where {named(condition)}" if condition else ""
    return Text.assemble((place.schema.name, "bold"), words, narrowed, no_wrap=True, overflow="ellipsis")


def _counts(overview: Overview) -> Iterator[RenderableType]:
    from rich.text import Text

    total = max(1, overview.total)
    width = max(len(f"{total:,}"), 6)
    for name, number in overview.counts.items():
        style = output.STATUS_STYLES.get(name, "") if number else "dim"
        figures = f"{name:<8} {number:>{width},}  {_percent(number, total)}"
        yield Text(figures + (f"  {bar}" if number and (bar := _bar(number / total)) else ""), style)
    yield Text(f"{'total':<8} {overview.total:>{width},}")


def _percent(number: int, total: int) -> str:
    """Some are never none, nor all."""
    share = 100 * number / total
    if 0 < number < total:
        share = min(99.9, max(0.1, share))
    return f"{share:5.1f} %"


def _bar(share: float) -> str:
    """A share as a bar; none where nobody looks."""
    console = output.out()
    if not console.is_terminal:
        return ""
    mark = "#" if console.is_dumb_terminal or not output.in_unicode(console) else "█"
    return mark * max(1, round(share * min(MOST_BAR_COLUMNS, console.width - BESIDE_BAR)))


def _sums(overview: Overview, rate: float, eta_seconds: float | None) -> Iterator[RenderableType]:
    from rich.text import Text

    from asyncexp.progress import rate_text, span_text

    words = (
        [f"rate {rate_text(rate) if rate else '-'}"]
        if any(worker.state == "live" for worker in overview.workers)
        else []
    )
    if eta_seconds is not None:
        words.append(f"ETA {span_text(eta_seconds)}")
    states = [worker.state for worker in overview.workers]
    told = [(f"{states.count(name)} {name}", style) for name, style in output.WORKER_STYLES.items() if name in states]
    line = Text("workers: ")
    line.append_text(Text(", ").join(Text(*each) for each in told) if told else Text("none yet", "dim"))
    if words:
        line.append("   " + "   ".join(words))
    yield line


def _advice(overview: Overview, condition: dict[str, Any] | None) -> Iterator[str]:
    """What to do next."""
    live = any(worker.state == "live" for worker in overview.workers)
    left_behind = sum(worker.running for worker in overview.workers if worker.state == "lost")
    if not overview.total:
        yield "No row is like that." if condition else "The table is empty: fill it with `asyncexp fill`."
    elif left_behind:
        what = "others take them over soon" if live else "they wait for a worker: `asyncexp run module:function`"
        yield f"{left_behind:,} of those that run belong to lost workers; {what}"
    elif overview.counts["created"] and not live:
        yield "Nobody works: `asyncexp run module:function`"
    if overview.counts["error"]:
        yield "What went wrong: `asyncexp errors`"


def _machines(overview: Overview) -> Iterator[RenderableType]:
    from rich.text import Text

    at: dict[str, list[WorkerInfo]] = {}
    for worker in overview.workers:
        if worker.state == "live" or worker.running:
            at.setdefault(worker.machine, []).append(worker)
    if not at:
        return
    headings = ("machine", "live", "lost", "runs", "done", "error", "last sign")
    rows = []
    for machine, workers in sorted(at.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_MACHINES]:
        lost = sum(worker.state == "lost" for worker in workers)
        numbers = (
            sum(worker.running for worker in workers),
            sum(worker.ended_done for worker in workers),
            sum(worker.ended_error for worker in workers),
        )
        row: list[str | Text] = [cells.one_line(machine), f"{len(workers) - lost:,}"]
        row += [Text(f"{lost:,}", "red" if lost else ""), *(f"{number:,}" for number in numbers)]
        rows.append([*row, cells.age(max(worker.heartbeat for worker in workers), overview.at)])
    yield Text()
    yield output.lines_or_table(headings, rows, right=headings[1:])
    if len(at) > MOST_MACHINES:
        yield Text(f"… and {len(at) - MOST_MACHINES:,} more machines: `asyncexp workers`", "dim")


def _oldest(overview: Overview, room: int | None) -> Iterator[RenderableType]:
    from rich.text import Text

    shown = _that_fit(overview.oldest, room)
    if not shown:
        return
    yield Text()
    headings = ("ID", "for", "last sign", "at", "longest running")
    rows = [_row(each, overview) for each in shown]
    yield output.lines_or_table(headings, rows, right=headings[:-1], cut=True)
    if (more := overview.counts["running"] - len(shown)) > 0:
        yield Text(f"… and {more:,} more", "dim")


def _row(running: Running, overview: Overview) -> Sequence[Any]:
    from rich.text import Text

    what = Text(cells.named(running.keyfields))
    if running.message:
        what.append("\n" if output.out().is_terminal else "  ")
        what.append(cells.one_line(running.message), "cyan")
    ages = (cells.age(date, overview.at) for date in (running.started, running.heartbeat))
    return (str(running.id), *ages, cells.share(running.progress), what)
