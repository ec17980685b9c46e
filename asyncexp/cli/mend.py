"""Commands that change rows from outside: `retry`, `reset`, `delete`, `cancel`, `release`, `stop`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncexp.cli import complete, output
from asyncexp.cli.codes import NOT_ALL_WELL, Refused
from asyncexp.cli.command import command
from asyncexp.cli.output import count
from asyncexp.cli.place import Place
from asyncexp.cli.words import ids
from asyncexp.errors import InvalidColumnError, unknown

if TYPE_CHECKING:
    from asyncexp import Experimenter
    from asyncexp.store.workers import WorkerInfo

PANEL = "Mend"
LOOK_SECONDS = 0.5

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="IDs, and ranges of them: 7 20-30.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE",
        help="Only rows with this keyfield value; again for others, null for NULL.",
        autocompletion=complete.where,
    ),
]
Statuses = Annotated[
    list[str] | None,
    typer.Option(
        "--status",
        metavar="STATUS",
        help="Only rows of this status; again for others.",
        autocompletion=complete.statuses,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
NO_ROWS = "No such rows: nothing was changed."


@command(PANEL)
async def retry(place: Place, ids: Ids = None, where: Where = None) -> None:
    """Puts rows in error back to be run again, under the same IDs; without IDs or --where, all of them.

    \b
    Examples:
      asyncexp retry
      asyncexp retry --where kernel=rbf
      asyncexp retry 17 20-25
    """
    async with place.open() as experimenter:
        changed = await experimenter.retry_errors(place.where(where, keyfields_only=True), _ids(ids))
    _tell(place, "retried", changed, "{} put back: `asyncexp run` runs them again.")


@command(PANEL)
async def reset(
    place: Place, ids: Ids = None, status: Statuses = None, where: Where = None, yes: Yes = False
) -> int | None:
    """Deletes rows with their results and logs, and creates them anew under new IDs.

    \b
    Examples:
      asyncexp reset --status error
      asyncexp reset --status done --where kernel=rbf
      asyncexp reset --status all --yes
    """
    return await _remove(
        place, "reset", "Delete the results and logs of {}, and create them anew?", ids, status, where, yes
    )


@command(PANEL)
async def delete(
    place: Place, ids: Ids = None, status: Statuses = None, where: Where = None, yes: Yes = False
) -> int | None:
    """Deletes rows with all that belongs to them.

    \b
    Examples:
      asyncexp delete 17 20-25
      asyncexp delete --where dataset=broken --yes
    """
    return await _remove(place, "delete", "Delete {} with their results and logs?", ids, status, where, yes)


async def _remove(
    place: Place,
    what: str,
    question: str,
    ids: list[str] | None,
    status: list[str] | None,
    where: list[str] | None,
    yes: bool,
) -> int | None:
    if not (ids or status or where):
        raise Refused("Which rows? Name IDs, --status or --where; --status all means every row.")
    key, words = ("reset", "{} created anew.") if what == "reset" else ("deleted", "{} deleted.")
    chosen: dict[str, Any] = {"where": place.where(where, keyfields_only=True), "ids": _ids(ids)}
    statuses = _statuses(status)
    async with place.open() as experimenter:
        counts = await experimenter.count_selected(*statuses, **chosen)
        if not sum(counts.values()):
            _tell(place, key, 0, "")
            return None
        if not output.asked(question.format(_counted(counts)), yes=yes):
            return _left()
        change = experimenter.reset_experiments if what == "reset" else experimenter.delete_experiments
        changed = await change(*statuses, **chosen)
    _tell(place, key, changed, words)
    return None


def _statuses(words: Iterable[str] | None) -> list[str]:
    from asyncexp.store.study import statuses

    given = [part.strip() for word in words or () for part in word.split(",") if part.strip()]
    try:
        return statuses(given)
    except InvalidColumnError as wrong:
        raise Refused(f"--status: {wrong}") from None


def _ids(texts: list[str] | None) -> list[int] | None:
    return ids(texts)


def _counted(counts: Mapping[str, int]) -> str:
    """`30 rows (20 done, 10 error)`; rows that run are lost to their workers, which is said."""
    found = {status: number for status, number in counts.items() if number}
    parts = ", ".join(f"{number:,} {status}" for status, number in found.items())
    words = f"{count(sum(found.values()), 'row')} ({parts})"
    return f"{words}, and take those that run from their workers" if "running" in found else words


def _left() -> int:
    output.note("Nothing was changed.")
    return NOT_ALL_WELL


def _tell(place: Place, key: str, changed: int | list[int], words: str) -> None:
    """What was done, as JSON or in a sentence with the number of rows."""
    number = changed if isinstance(changed, int) else len(changed)
    if place.json:
        output.write_json({key: changed})
    else:
        output.say(words.format(output.count(number, "row")) if number else NO_ROWS)


# --------------------------------------------------------------------------------- what runs elsewhere


@command(PANEL)
async def cancel(place: Place, ids: Ids = None, where: Where = None, yes: Yes = False) -> int | None:
    """Asks the workers that run these rows to end them, as error; they are not tried again.

    \b
    Examples:
      asyncexp cancel 17
      asyncexp cancel --where dataset=huge
    """
    question = "Have {} ended as error, wherever they run?"
    return await _ask(
        place, "cancel", question, "cancelled", "The workers of {} were asked to end them.", ids, where, yes
    )


@command(PANEL)
async def release(place: Place, ids: Ids = None, where: Where = None, yes: Yes = False) -> int | None:
    """Asks the workers that run these rows to stop them and put them back, to be run later, by any worker.

    \b
    Examples:
      asyncexp release 17
      asyncexp release --where device=gpu
    """
    question = "Have {} stopped and put back, wherever they run?"
    words = "The workers of {} were asked to put them back."
    return await _ask(place, "release", question, "released", words, ids, where, yes)


async def _ask(
    place: Place,
    what: str,
    question: str,
    key: str,
    words: str,
    ids: list[str] | None,
    where: list[str] | None,
    yes: bool,
) -> int | None:
    """Rows named by their IDs are asked for at once; whoever names them by a condition sees first how many it hits."""
    if not (ids or where):
        raise Refused("Which rows? Name IDs or --where; `asyncexp workers` and `asyncexp status` show what runs.")
    async with place.open() as experimenter:
        chosen = _ids(ids) or []
        if where:
            found = await experimenter.ids("running", where=place.where(where, keyfields_only=True))
            chosen = [each for each in found if not ids or each in set(chosen)]
            if chosen and not output.asked(question.format(output.count(len(chosen), "row")), yes=yes):
                return _left()
        change: Callable[[list[int]], Awaitable[list[int]]] = getattr(experimenter, what)
        asked = await change(chosen)
    _tell(place, key, asked, words)
    if missing := [each for each in chosen if each not in set(asked)]:
        output.note(f"Not running, and left alone: {_listed(missing)}")
    return None if asked or where else NOT_ALL_WELL


def _listed(ids: list[int], most: int = 20) -> str:
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(map(str, ids[:most])) + more


Workers = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[WORKER]...",
        help="The beginning of a worker's id, its machine, machine:pid, its name, or its SLURM job; "
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
      asyncexp stop 812345          (a SLURM job)
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


def _named(live: list[WorkerInfo], words: list[str]) -> list[WorkerInfo]:
    chosen: dict[int, WorkerInfo] = {}
    for word in words:
        found = [each for each in live if _is_called(each, word)]
        if not found:
            known = list(dict.fromkeys(name for each in live for name in (each.machine, f"{each.machine}:{each.pid}")))
            raise Refused(unknown("No live worker", word, known), NOT_ALL_WELL)
        chosen |= {each.id: each for each in found}
    return list(chosen.values())


def _is_called(worker: WorkerInfo, word: str) -> bool:
    names = (worker.machine, f"{worker.machine}:{worker.pid}", worker.name)
    return word in (*names, worker.slurm_job_id, worker.slurm_array_job_id) or str(worker.id).startswith(word)


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
        output.note(f"{output.count(len(left), 'worker')} still at work: {_listed(left)}")
    return NOT_ALL_WELL if left else None
