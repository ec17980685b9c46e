"""Commands that change rows from outside: `retry`, `reset`, `delete`, `cancel`, `release`, `stop`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from asyncexp.cli import cells, output, words
from asyncexp.cli.codes import NOT_ALL_WELL, Refused
from asyncexp.cli.command import command
from asyncexp.cli.options import Ids, Statuses, Where, Yes
from asyncexp.cli.output import count
from asyncexp.cli.place import Place
from asyncexp.errors import unknown

if TYPE_CHECKING:
    from asyncexp import Experimenter
    from asyncexp.store.workers import WorkerInfo

PANEL = "Mend"
LOOK_SECONDS = 0.5
MOST_IDS = 20

NO_ROWS = "No such rows: nothing was changed."


@dataclass(frozen=True)
class Change:
    """What is done to rows, and how it is told."""

    key: str
    """Of the JSON document."""
    question: str
    done: str


RETRY = Change("retried", "", "{} put back: `asyncexp run` runs them again.")
RESET = Change("reset", "Delete the results and logs of {}, and create them anew?", "{} created anew.")
DELETE = Change("deleted", "Delete {} with their results and logs?", "{} deleted.")
CANCEL = Change("cancelled", "Have {} ended as error, wherever they run?", "The workers of {} were asked to end them.")
RELEASE = Change(
    "released", "Have {} stopped and put back, wherever they run?", "The workers of {} were asked to put them back."
)


@dataclass(frozen=True)
class Rows:
    """Those that a command line names: all that is named has to hold of them."""

    ids: list[int] | None
    where: dict[str, Any] | None
    statuses: Sequence[str] = ()

    @classmethod
    def of(
        cls, place: Place, ids: list[str] | None, where: list[str] | None, statuses: list[str] | None = None
    ) -> Self:
        return cls(words.ids(ids), place.where(where, keyfields_only=True), words.statuses(statuses))

    def __bool__(self) -> bool:
        return bool(self.ids or self.where or self.statuses)


@command(PANEL)
async def retry(place: Place, ids: Ids = None, where: Where = None) -> None:
    """Puts rows in error back to be run again, under the same IDs; without IDs or --where, all of them.

    \b
    Examples:
      asyncexp retry
      asyncexp retry --where kernel=rbf
      asyncexp retry 17 20-25
    """
    rows = Rows.of(place, ids, where)
    async with place.open() as experimenter:
        changed = await experimenter.retry_errors(rows.where, rows.ids)
    _tell(place, RETRY, changed, none="No such rows are in error: nothing was changed.")


@command(PANEL)
async def reset(
    place: Place,
    ids: Ids = None,
    status: Statuses = None,
    where: Where = None,
    yes: Yes = False,
) -> int | None:
    """Deletes rows with their results and logs, and creates them anew under new IDs.

    \b
    Examples:
      asyncexp reset --status error
      asyncexp reset --status done --where kernel=rbf
      asyncexp reset --status all --yes
    """
    return await _remove(place, RESET, Rows.of(place, ids, where, status), yes)


@command(PANEL)
async def delete(
    place: Place,
    ids: Ids = None,
    status: Statuses = None,
    where: Where = None,
    yes: Yes = False,
) -> int | None:
    """Deletes rows with all that belongs to them.

    \b
    Examples:
      asyncexp delete 17 20-25
      asyncexp delete --where dataset=broken --yes
    """
    return await _remove(place, DELETE, Rows.of(place, ids, where, status), yes)


async def _remove(place: Place, change: Change, rows: Rows, yes: bool) -> int | None:
    if not rows:
        raise Refused("Which rows? Name IDs, --status or --where; --status all means every row.")
    async with place.open() as experimenter:
        counts = await experimenter.count_selected(*rows.statuses, where=rows.where, ids=rows.ids)
        if any(counts.values()) and not output.asked(change.question.format(_counted(counts)), yes=yes):
            return _left()
        remove = experimenter.reset_experiments if change is RESET else experimenter.delete_experiments
        changed = await remove(*rows.statuses, where=rows.where, ids=rows.ids) if any(counts.values()) else 0
    _tell(place, change, changed)
    return None


def _counted(counts: Mapping[str, int]) -> str:
    """`30 rows (20 done, 10 error)`; rows that run are lost to their workers, which is said."""
    found = {status: number for status, number in counts.items() if number}
    parts = ", ".join(f"{number:,} {status}" for status, number in found.items())
    told = f"{count(sum(found.values()), 'row')} ({parts})"
    return f"{told}, and take those that run from their workers" if "running" in found else told


def _left() -> int:
    output.note("Nothing was changed.")
    return NOT_ALL_WELL


def _tell(place: Place, change: Change, changed: int | list[int], *, none: str = NO_ROWS) -> None:
    """What was done, as JSON or in a sentence with the number of rows."""
    number = changed if isinstance(changed, int) else len(changed)
    if place.json:
        output.write_json({change.key: changed})
    else:
        output.say(change.done.format(output.count(number, "row")) if number else none)


# --------------------------------------------------------------------------------- what runs elsewhere


@command(PANEL)
async def cancel(place: Place, ids: Ids = None, where: Where = None, yes: Yes = False) -> int | None:
    """Asks the workers that run these rows to end them, as error; they are not tried again.

    \b
    Examples:
      asyncexp cancel 17
      asyncexp cancel --where dataset=huge
    """
    return await _ask(place, CANCEL, Rows.of(place, ids, where), yes)


@command(PANEL)
async def release(place: Place, ids: Ids = None, where: Where = None, yes: Yes = False) -> int | None:
    """Asks the workers that run these rows to stop them and put them back, to be run later, by any worker.

    \b
    Examples:
      asyncexp release 17
      asyncexp release --where device=gpu
    """
    return await _ask(place, RELEASE, Rows.of(place, ids, where), yes)


async def _ask(place: Place, change: Change, rows: Rows, yes: bool) -> int | None:
    """Rows named by their IDs are asked for at once; whoever names them by a condition sees first how many it hits."""
    if not rows:
        raise Refused("Which rows? Name IDs or --where; `asyncexp workers` and `asyncexp status` show what runs.")
    async with place.open() as experimenter:
        chosen = rows.ids or []
        if rows.where:
            found = await experimenter.ids("running", where=rows.where)
            named = set(chosen)
            chosen = [each for each in found if not rows.ids or each in named]
            if chosen and not output.asked(change.question.format(output.count(len(chosen), "row")), yes=yes):
                return _left()
        asked = await (experimenter.cancel if change is CANCEL else experimenter.release)(chosen)
    _tell(place, change, asked)
    done = set(asked)
    if missing := [each for each in chosen if each not in done]:
        output.note(f"Not running, and left alone: {cells.some(cells.ranges(missing), MOST_IDS)}")
    return None if asked or rows.where else NOT_ALL_WELL


Workers = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[WORKER]...",
        help="A worker's machine, machine:pid, name or SLURM job: all that have it; or the beginning of one's id; "
        "see `asyncexp workers`.",
    ),
]


@command(PANEL)
async def stop(
    place: Place,
    workers: Workers = None,
    every: Annotated[bool, typer.Option("--all", help="Every live worker.")] = False,
    wait: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Wait so long until they run nothing any more.")
    ] = None,
) -> int | None:
    """Asks workers to stop in good order: they take no more rows, and what runs gets its grace.

    \b
    Examples:
      asyncexp stop node07
      asyncexp stop 812345   # a SLURM job
      asyncexp stop --all --wait 60
    """
    if bool(workers) == every:
        raise Refused("Which workers? Name some, or say --all; `asyncexp workers` lists them.")
    async with place.open() as experimenter:
        live = [each for each in await experimenter.workers() if each.stopped is None]
        chosen = live if every else _named(live, workers or [])
        asked = await experimenter.stop([each.id for each in chosen])
        left = await _stopped(experimenter, asked, wait) if wait is not None else []
    return _tell_stopped(place, asked, left)


def _named(live: list[WorkerInfo], names: list[str]) -> list[WorkerInfo]:
    chosen: dict[int, WorkerInfo] = {}
    for word in names:
        chosen |= {each.id: each for each in called(live, word)}
    return list(chosen.values())


def called(live: list[WorkerInfo], word: str) -> list[WorkerInfo]:
    """All that have this name; if none has, the one whose id begins so."""
    if found := [each for each in live if word and word in _names(each)]:
        return found
    found = [each for each in live if word and str(each.id).startswith(word)]
    if len(found) > 1:
        ids = cells.some([str(each.id) for each in found], MOST_IDS)
        raise Refused(f"{word!r} is the beginning of more than one worker's id: {ids}", NOT_ALL_WELL)
    if not found:
        alive = (each for each in live if each.state == "live")
        known = dict.fromkeys(name for each in alive for name in _names(each)[1:] if name)
        raise Refused(unknown("No live worker", word, known), NOT_ALL_WELL)
    return found


def _names(worker: WorkerInfo) -> tuple[str | None, ...]:
    at = f"{worker.machine}:{worker.pid}"
    return (str(worker.id), worker.machine, at, worker.name, worker.slurm_job_id, worker.slurm_array_job_id)


async def _stopped(experimenter: Experimenter, asked: list[int], seconds: float) -> list[int]:
    """Those of the workers asked that still run experiments after so long."""
    import asyncio

    until = time.monotonic() + seconds
    while True:
        busy = {each.id for each in await experimenter.workers() if each.state == "live" and each.running}
        left = [each for each in asked if each in busy]
        if not left or time.monotonic() >= until:
            return left
        await asyncio.sleep(min(LOOK_SECONDS, max(0.0, until - time.monotonic())))


def _tell_stopped(place: Place, asked: list[int], left: list[int]) -> int | None:
    if place.json:
        output.write_json({"asked": asked, "still_running": left})
    elif not asked:
        output.say("No worker runs.")
    else:
        output.say(f"{output.count(len(asked), 'worker')} asked to stop.")
    if left:
        named = cells.some([str(each) for each in left], MOST_IDS)
        output.note(f"{output.count(len(left), 'worker')} still at work: {named}")
    return NOT_ALL_WELL if left else None
