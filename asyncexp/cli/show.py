"""`asyncexp show`: all that is known of single experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncexp.cli import cells, log_lines, options, output, tracebacks, words
from asyncexp.cli.codes import NOT_ALL_WELL, OK
from asyncexp.cli.command import command
from asyncexp.cli.place import Place

if TYPE_CHECKING:
    from rich.text import Text

    from asyncexp import Experimenter
    from asyncexp.store.detail import Detail, Origin
    from asyncexp.store.read import PastAttempt

PANEL = "Watch"
MOST_LINES = 20
MOST_LETTERS = 2_000
"""Of one value, on a terminal."""


@dataclass(frozen=True)
class Known:
    """What is shown of an experiment."""

    detail: Detail
    attempts: Sequence[PastAttempt]
    logs: Mapping[str, Sequence[Mapping[str, Any]]]


@command(PANEL)
async def show(
    place: Place,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Numbers and ranges: 7 20-30.")],
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, metavar="N", help="So many of the last lines of each log.")
    ] = 5,
    full: options.Full = False,
) -> int:
    """Single experiments: keyfields, results, times, attempts, the ends of their logs, where their code came from.

    Dates are UTC.

    \b
    Examples:
      asyncexp show 12
      asyncexp show 12 20-22 --lines 20
      asyncexp show 12 --json | jq '.[0].results'
    """
    wanted = words.ids(ids) or []
    async with place.open() as experimenter:
        details = await experimenter.details(wanted)
        known = [await _known(place, experimenter, detail, lines) for detail in details]
    if place.json:
        output.write_json([_document(each) for each in known])
    else:
        for number, each in enumerate(known):
            if number:
                output.say()
            Page(place, each, full or not output.out().is_terminal).show()
    missing = set(wanted) - {detail.id for detail in details}
    if missing:
        which = cells.some(cells.ranges(missing), 10)
        output.note(f"error: there is no experiment {which} in table {place.schema.name!r}")
    return NOT_ALL_WELL if missing else OK


async def _known(place: Place, experimenter: Experimenter, detail: Detail, lines: int) -> Known:
    logs = {name: await experimenter.log_lines(name, detail.id, last=lines) for name in place.schema.logtables}
    return Known(detail, await experimenter.attempts(detail.id), logs)


def _document(known: Known) -> dict[str, Any]:
    plain: dict[str, Any] = output.plain(known.detail)
    return {**plain, "attempts": known.attempts, "logs": known.logs}


class Page:
    """An experiment for people."""

    def __init__(self, place: Place, known: Known, full: bool) -> None:
        self._place = place
        self._known = known
        self._detail = known.detail
        self._full = full

    def show(self) -> None:
        from rich.text import Text

        detail = self._detail
        style = output.STATUS_STYLES.get(detail.status, "")
        output.say(Text.assemble((f"Experiment {detail.id}", "bold"), "  ", (detail.status, f"bold {style}")))
        self._pairs(detail.keyfields.items())
        if detail.status != "created" or any(value is not None for value in detail.results.values()):
            self._part("Results", detail.results.items())
        self._part("Course", self._course())
        self._attempts()
        for name, lines in self._known.logs.items():
            self._log(name, lines)
        if detail.worker is not None:
            self._part("Code", _code(detail.worker))
        self._error()

    def _part(self, title: str, pairs: Iterable[tuple[str, Any]]) -> None:
        pairs = list(pairs)
        if pairs:
            _title(title)
            self._pairs(pairs)

    def _pairs(self, pairs: Iterable[tuple[str, Any]]) -> None:
        output.pairs((name, self._value(value)) for name, value in pairs)

    def _value(self, value: Any) -> str | Text:
        """Texts keep their lines."""
        return self._short(cells.in_lines(value)) if isinstance(value, str) else cells.cell(value)

    def _short(self, text: str) -> str:
        lines = text.strip("\n").split("\n")
        cut = "\n".join(lines if self._full else lines[:MOST_LINES])
        cut = cut if self._full else cut[:MOST_LETTERS]
        return cut if len(cut) == len(text.strip("\n")) else f"{cut} … ({len(text):,} characters: --full)"

    def _course(self) -> Iterable[tuple[str, Any]]:
        detail = self._detail
        yield "created", f"{cells.moment(detail.created)} UTC"
        if detail.started is not None:
            yield "started", f"{cells.moment(detail.started)} UTC"
        if detail.ended is not None:
            took = f", after {cells.age(detail.started, detail.ended)}" if detail.started is not None else ""
            yield "ended", f"{cells.moment(detail.ended)} UTC{took}"
        if detail.attempt:
            yield "attempt", detail.attempt
            yield "worker", _who(detail)
        if detail.heartbeat is not None:
            told = [cells.moment(detail.heartbeat) + " UTC"]
            told += [] if detail.progress is None else [cells.share(detail.progress)]
            told += [] if detail.message is None else [cells.one_line(detail.message)]
            yield "heartbeat", "  ".join(told)
        if detail.request is not None:
            yield "asked to", f"{detail.request}, by {detail.requested_by}"
        if detail.not_before is not None and detail.status == "created":
            yield "not before", f"{cells.moment(detail.not_before)} UTC"

    def _attempts(self) -> None:
        if not self._known.attempts:
            return
        _title("Attempts that did not end as done")
        rows = [
            (
                f"  {each.attempt}",
                each.outcome,
                cells.moment(each.ended),
                cells.one_line(tracebacks.summed(each.traceback)) if each.traceback else "",
            )
            for each in self._known.attempts
        ]
        output.grid(("   ", "outcome", "ended (UTC)", "why"), rows, cut=not self._full)

    def _log(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        if lines:
            _title(f"Log {name}, the last of it")
            log_lines.Columns([column.name for column in self._place.schema.logtables[name]], indent="  ").print(lines)

    def _error(self) -> None:
        if self._detail.error:
            _title("Error")
            output.say(tracebacks.tail(self._detail.error, whole=self._full))


def _title(words: str) -> None:
    from rich.text import Text

    output.say(Text(words, "bold"))


def _who(detail: Detail) -> str:
    worker = detail.worker
    if worker is None:
        return f"{detail.name} on {detail.machine}"
    return f"{worker.id}, {worker.name} on {worker.machine}, pid {worker.pid}"


def _code(worker: Origin) -> Iterable[tuple[str, Any]]:
    dirty = {True: ", with changes on top", False: "", None: ""}[worker.git_dirty]
    if worker.git_commit is not None:
        yield "commit", f"{worker.git_commit}{dirty}"
    yield "versions", f"Python {worker.python_version}, asyncexp {worker.asyncexp_version}"
    yield "command", worker.command_line
    slurm = cells.slurm(worker.slurm_job_id, worker.slurm_array_job_id, worker.slurm_array_task_id)
    if slurm is not None:
        yield "SLURM job", slurm
