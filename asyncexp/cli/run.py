"""Commands that run experiments: `run` and `unpause`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncexp.cli import options, output, words
from asyncexp.cli.codes import DATABASE, INTERRUPTED, NOT_ALL_WELL, OK, TERMINATED, Refused
from asyncexp.cli.command import command
from asyncexp.cli.place import Place

if TYPE_CHECKING:
    from asyncexp import Experimenter
    from asyncexp.cli.ending import Terminal
    from asyncexp.experiment import Failure, Summary

PANEL = "Run"
_STOPPED = {"SIGINT": INTERRUPTED, "SIGTERM": TERMINATED, "max_errors": NOT_ALL_WELL, "outage": DATABASE}


class Pool(StrEnum):
    task = "task"
    process = "process"


class Until(StrEnum):
    empty = "empty"
    finished = "finished"


class FromStatus(StrEnum):
    created = "created"
    paused = "paused"


class OnOutage(StrEnum):
    go_on = "continue"
    stop = "stop"


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, show_default=False, **more)


Function = Annotated[str, typer.Argument(metavar="FUNCTION", help=options.FUNCTION)]
Most = Annotated[int, _option("--max", metavar="N", help="Start so many at most.", rich_help_panel=options.WHICH)]
Random = Annotated[bool, _option("--random", help="In random order.", rich_help_panel=options.WHICH)]


@dataclass(frozen=True)
class How:
    """Where and how they run."""

    n_jobs: Annotated[
        int | None,
        _option("-n", "--jobs", metavar="N", help="So many at once; -1: the usable cores.", rich_help_panel="How"),
    ] = None
    pool: Annotated[
        Pool | None,
        _option("--pool", help="In this process, or in child processes (default of `def`).", rich_help_panel="How"),
    ] = None
    name: Annotated[
        str,
        _option(
            "--name",
            metavar="TEXT",
            help="Written into each row, a SLURM job's ID for instance.",
            rich_help_panel="How",
        ),
    ] = "asyncexp"
    no_energy: Annotated[
        bool, _option("--no-energy", help="Record no energy and emissions.", rich_help_panel="How")
    ] = False


def _limit(name: str, metavar: str | None, help: str) -> Any:
    return _option(name, metavar=metavar, help=help, rich_help_panel="Limits")


@dataclass(frozen=True)
class Limits:
    """Keywords of `execute`; None where the configuration decides."""

    timeout: Annotated[float | None, _limit("--timeout", "SECONDS", "An experiment's, from its start.")] = None
    stall_timeout: Annotated[float | None, _limit("--stall-timeout", "SECONDS", "The same, from its last sign.")] = None
    retries: Annotated[int | None, _limit("--retries", "N", "Further tries of one that fails.")] = None
    max_errors: Annotated[int | None, _limit("--max-errors", "N", "Stop after so many; -1: never.")] = None
    grace: Annotated[float | None, _limit("--grace", "SECONDS", "What runs has so long when it is stopped.")] = None
    on_outage: Annotated[OnOutage | None, _limit("--on-outage", None, "While the database is away.")] = None


@dataclass(frozen=True)
class Shown:
    """What is told of a run."""

    log_file: Annotated[
        Path | None,
        _option("--log-file", metavar="FILE", help="Where the log goes, too.", rich_help_panel="What is shown"),
    ] = None
    plain: Annotated[
        bool, _option("--plain", help="Plain lines, also on a terminal.", rich_help_panel="What is shown")
    ] = False
    quiet: Annotated[
        bool,
        _option("--quiet", "-q", help="No progress, the account at the end alone.", rich_help_panel="What is shown"),
    ] = False


@dataclass(frozen=True)
class Wish:
    """What a command line asks for."""

    function: str
    how: How
    limits: Limits
    shown: Shown
    rows: Mapping[str, Any]
    """Keywords of `execute` that say which and in which order."""
    fill: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        """Of `execute`."""
        given = {"n_jobs": self.how.n_jobs, "pool": self.how.pool, **vars(self.limits), **self.rows}
        plain = {name: value.value if isinstance(value, StrEnum) else value for name, value in given.items()}
        return {name: value for name, value in plain.items() if value is not None}


@command(PANEL)
def run(
    place: Place,
    function: Function,
    how: How,
    where: options.Where = None,
    ids: Annotated[
        list[str] | None,
        _option("--ids", metavar="ID", help="Only these experiments: 7, 7,9 or 20-30.", rich_help_panel=options.WHICH),
    ] = None,
    most: Most = -1,
    from_status: Annotated[
        FromStatus,
        _option("--from-status", help="Begin new rows, or continue paused ones.", rich_help_panel=options.WHICH),
    ] = FromStatus.created,
    until: Annotated[
        Until,
        _option(
            "--until",
            help="No row is left to take, or none runs elsewhere either.",
            rich_help_panel=options.WHICH,
        ),
    ] = Until.empty,
    random: Random = False,
    fill: Annotated[
        bool, _option("--fill", help="First add the rows of the configuration.", rich_help_panel=options.WHICH)
    ] = False,
    *,
    limits: Limits,
    shown: Shown,
) -> Awaitable[int]:
    """Runs a function for each open row, until none is left.

    \b
    Examples:
      asyncexp run experiment.py:run_experiment -n 8
      asyncexp run package.module:function --where kernel=rbf --max 100
      asyncexp run experiment.py --fill --until finished

    \b
    Ctrl-C stops it gracefully, once more at once. Ends with
      0    if all went well, also when `asyncexp stop` ended it
      1    if experiments of this call failed
      3    if the function cannot be imported
      4    if the database stayed away
      130  after Ctrl-C; 143 after SIGTERM or a closed terminal
    """
    rows = {
        "where": place.where(where, keyfields_only=True),
        "experiment_ids": words.ids(ids),
        "max_experiments": most,
        "from_status": from_status,
        "until": until,
        "random_order": random,
    }
    return _begin(place, Wish(function, how, limits, shown, rows, fill))


@command(PANEL)
def unpause(
    place: Place,
    function: Function,
    ids: options.Ids = None,
    where: options.Where = None,
    most: Most = -1,
    random: Random = False,
    *,
    how: How,
    limits: Limits,
    shown: Shown,
) -> Awaitable[int]:
    """Continues paused rows, all of them if none are named; results and logs so far are kept.

    \b
    Examples:
      asyncexp unpause experiment.py:run_experiment 7 12 20-30
      asyncexp unpause experiment.py:run_experiment --where kernel=rbf

    Screen, signals and exit codes are those of `asyncexp run`; 1 also if a row named is not paused, and none is run.
    """
    rows = {
        "where": place.where(where, keyfields_only=True),
        "experiment_ids": words.ids(ids),
        "max_experiments": most,
        "from_status": FromStatus.paused,
        "random_order": random,
    }
    return _begin(place, Wish(function, how, limits, shown, rows), all_must_be_paused=True)


# --------------------------------------------------------------------------------------- the function


def _begin(place: Place, wish: Wish, *, all_must_be_paused: bool = False) -> Awaitable[int]:
    """Imports the function, before there is an event loop: what it is imported with may run one of its own."""
    from asyncexp.cli import functions

    place.configuration  # noqa: B018  (what is wrong with it comes before what the user's module takes its time for)
    with output.stdout_kept(place.json):
        function = functions.loaded(wish.function)
    return _run(place, wish, function, all_must_be_paused=all_must_be_paused)


# ------------------------------------------------------------------------------------------- the run


async def _run(place: Place, wish: Wish, function: Callable[..., Any], *, all_must_be_paused: bool) -> int:
    import asyncio

    from asyncexp.cli import account, ending

    try:
        with (
            output.stdout_kept(place.json),
            ending.lasting_streams(),
            ending.handled(terminal := ending.Terminal()) as ended,
        ):
            async with _open(place, wish) as experimenter:
                if all_must_be_paused:
                    await _must_be_paused(experimenter, wish.keywords.get("experiment_ids"))
                summary, failures = await _executed(experimenter, wish, function, terminal)
                told = await account.told(experimenter, summary, failures, wish.keywords, wish.function)
    except asyncio.CancelledError:
        if not ended.by_signal:
            raise
        return TERMINATED
    if place.json:
        output.write_json(summary)
    else:
        output.say(told)
    return exit_code(summary)


@asynccontextmanager
async def _open(place: Place, wish: Wish) -> AsyncIterator[Experimenter]:
    from asyncexp import logs

    level = {} if wish.shown.log_file is None or place.debug else {"log_level": "INFO"}
    async with place.open(
        new=wish.fill,
        patient=True,
        name=wish.how.name,
        use_codecarbon=not wish.how.no_energy,
        log_file=wish.shown.log_file,
        **level,
    ) as experimenter:
        if not place.debug:
            logs.brief(logging.getLogger("py-experimenter"))
        if wish.fill:
            filled = await experimenter.fill_table_from_config()
            output.note(f"{output.count(filled.added, 'row')} added, {filled.existed:,} existed already")
        yield experimenter


async def _executed(
    experimenter: Experimenter, wish: Wish, function: Callable[..., Any], terminal: Terminal
) -> tuple[Summary, Sequence[Failure]]:
    from asyncexp import config
    from asyncexp.cli import screen

    database = experimenter.configuration.database
    where = f"table {database.table.name} in {database.provider} {Path(database.database).name}"
    given = {} if (grace := wish.keywords.get("grace")) is None else {"grace": grace}
    seconds = config.execution(experimenter.configuration, **given).grace
    async with screen.watching(
        experimenter, where, seconds, terminal, plain=wish.shown.plain, quiet=wish.shown.quiet
    ) as watch:
        summary = await experimenter.execute(function, progress=watch, handle_signals=True, **wish.keywords)
    return summary, watch.failures


def exit_code(summary: Summary) -> int:
    """What a call of `execute` ends the command with."""
    stopped = _STOPPED.get(summary.stopped_by or "", OK)
    return stopped or (NOT_ALL_WELL if summary.error else OK)


async def _must_be_paused(experimenter: Experimenter, ids: list[int] | None) -> None:
    """Sees to it that all of these rows are paused.

    Raises:
        Refused: they are not; what they are is told.
    """
    if not ids:
        return
    paused = set(await experimenter.ids("paused"))
    for experiment_id in ids:
        if experiment_id not in paused:
            found = await experimenter.counts({"ID": experiment_id})
            status = next((name for name, number in found.items() if number), None)
            what = "does not exist" if status is None else f"is {status}"
            raise Refused(f"Experiment {experiment_id} {what}, not paused; nothing was run.", NOT_ALL_WELL)
