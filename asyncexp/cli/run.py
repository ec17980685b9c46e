"""Commands that run experiments: `run` and `unpause`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncexp.cli import output, words
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


def _option(*names: str, panel: str | None = None, metavar: str | None = None, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=False)


HOW, WHICH, LIMITS, SHOWN = "How", "Which", "Limits", "What is shown"
Function = Annotated[
    str, typer.Argument(metavar="FUNCTION", help="module:function, or file.py:function (file.py if it has only one).")
]
Jobs = Annotated[
    int | None, _option("-n", "--jobs", panel=HOW, metavar="N", help="So many at once; -1: the usable cores.")
]
InPool = Annotated[
    Pool | None, _option("--pool", panel=HOW, help="In this process, or in child processes (default of `def`).")
]
Name = Annotated[
    str, _option("--name", panel=HOW, metavar="TEXT", help="Written into each row, a SLURM job's ID for instance.")
]
NoEnergy = Annotated[bool, _option("--no-energy", panel=HOW, help="Record no energy and emissions.")]
Where = Annotated[
    list[str] | None, _option("--where", panel=WHICH, metavar="KEY=VALUE", help="Only such rows; again: any of them.")
]
Ids = Annotated[list[str] | None, _option("--ids", panel=WHICH, metavar="ID", help="Only these rows: 7, 7,9 or 20-30.")]
Most = Annotated[int, _option("--max", panel=WHICH, metavar="N", help="Start so many at most.")]
In = Annotated[FromStatus, _option("--from-status", panel=WHICH, help="Begin new rows, or continue paused ones.")]
Random = Annotated[bool, _option("--random", panel=WHICH, help="In random order.")]
Fill = Annotated[bool, _option("--fill", panel=WHICH, help="First add the rows of the configuration.")]
UntilWhen = Annotated[
    Until, _option("--until", panel=WHICH, help="No row is left to take, or none runs elsewhere either.")
]
Timeout = Annotated[
    float | None, _option("--timeout", panel=LIMITS, metavar="SECONDS", help="An experiment's, from its start.")
]
Stall = Annotated[
    float | None, _option("--stall-timeout", panel=LIMITS, metavar="SECONDS", help="The same, from its last sign.")
]
Retries = Annotated[
    int | None, _option("--retries", panel=LIMITS, metavar="N", help="Further tries of one that fails.")
]
MaxErrors = Annotated[
    int | None, _option("--max-errors", panel=LIMITS, metavar="N", help="Stop after so many; -1: never.")
]
Grace = Annotated[
    float | None, _option("--grace", panel=LIMITS, metavar="SECONDS", help="What runs has so long when it is stopped.")
]
Outage = Annotated[OnOutage | None, _option("--on-outage", panel=LIMITS, help="While the database is away.")]
LogFile = Annotated[Path | None, _option("--log-file", panel=SHOWN, metavar="FILE", help="Where the log goes, too.")]
Plain = Annotated[bool, _option("--plain", panel=SHOWN, help="Plain lines, also on a terminal.")]
Quiet = Annotated[bool, _option("--quiet", "-q", panel=SHOWN, help="No progress, the account at the end alone.")]


@dataclass(frozen=True)
class Wish:
    """What a command line asks for."""

    function: str
    execution: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of `execute`; None where the configuration decides."""
    name: str = "asyncexp"
    log_file: Path | None = None
    energy: bool = True
    fill: bool = False
    plain: bool = False
    quiet: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        plain = {name: value.value if isinstance(value, StrEnum) else value for name, value in self.execution.items()}
        return {name: value for name, value in plain.items() if value is not None}


@command(PANEL)
def run(
    place: Place,
    function: Function,
    jobs: Jobs = None,
    pool: InPool = None,
    name: Name = "asyncexp",
    no_energy: NoEnergy = False,
    where: Where = None,
    ids: Ids = None,
    most: Most = -1,
    from_status: In = FromStatus.created,
    until: UntilWhen = Until.empty,
    random: Random = False,
    fill: Fill = False,
    timeout: Timeout = None,
    stall_timeout: Stall = None,
    retries: Retries = None,
    max_errors: MaxErrors = None,
    grace: Grace = None,
    on_outage: Outage = None,
    log_file: LogFile = None,
    plain: Plain = False,
    quiet: Quiet = False,
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
    execution = {
        "n_jobs": jobs,
        "pool": pool,
        "where": place.where(where, keyfields_only=True),
        "experiment_ids": words.ids(ids),
        "max_experiments": most,
        "from_status": from_status,
        "until": until,
        "random_order": random,
        "timeout": timeout,
        "stall_timeout": stall_timeout,
        "retries": retries,
        "max_errors": max_errors,
        "grace": grace,
        "on_outage": on_outage,
    }
    wish = Wish(function, execution, name, log_file, not no_energy, fill, plain, quiet)
    return _begin(place, wish)


@command(PANEL)
def unpause(
    place: Place,
    function: Function,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="7, 7,9 or 20-30; all, if none.")] = None,
    jobs: Jobs = None,
    pool: InPool = None,
    name: Name = "asyncexp",
    no_energy: NoEnergy = False,
    where: Where = None,
    most: Most = -1,
    random: Random = False,
    timeout: Timeout = None,
    stall_timeout: Stall = None,
    retries: Retries = None,
    max_errors: MaxErrors = None,
    grace: Grace = None,
    on_outage: Outage = None,
    log_file: LogFile = None,
    plain: Plain = False,
    quiet: Quiet = False,
) -> Awaitable[int]:
    """Continues paused rows; results and logs so far are kept.

    \b
    Examples:
      asyncexp unpause experiment.py:run_experiment 7 12 20-30
      asyncexp unpause experiment.py:run_experiment --where kernel=rbf

    Screen, signals and exit codes are those of `asyncexp run`; 1 also if a row named is not paused, and none is run.
    """
    execution = {
        "n_jobs": jobs,
        "pool": pool,
        "where": place.where(where, keyfields_only=True),
        "experiment_ids": words.ids(ids),
        "max_experiments": most,
        "from_status": "paused",
        "random_order": random,
        "timeout": timeout,
        "stall_timeout": stall_timeout,
        "retries": retries,
        "max_errors": max_errors,
        "grace": grace,
        "on_outage": on_outage,
    }
    wish = Wish(function, execution, name, log_file, not no_energy, plain=plain, quiet=quiet)
    return _begin(place, wish, all_must_be_paused=True)


# --------------------------------------------------------------------------------------- the function


def _begin(place: Place, wish: Wish, *, all_must_be_paused: bool = False) -> Awaitable[int]:
    """Imports the function, before there is an event loop: what it is imported with may run one of its own."""
    from asyncexp.cli import functions

    place.configuration  # noqa: B018  (what is wrong with it comes before what the user's module takes its time for)
    with _stdout_kept(place.json):
        function = functions.loaded(wish.function)
    return _run(place, wish, function, all_must_be_paused=all_must_be_paused)


@contextmanager
def _stdout_kept(wanted: bool) -> Iterator[None]:
    """While inside, what is written to standard output goes to standard error, by whatever process."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


# ------------------------------------------------------------------------------------------- the run


async def _run(place: Place, wish: Wish, function: Callable[..., Any], *, all_must_be_paused: bool) -> int:
    import asyncio

    from asyncexp.cli import account, ending

    try:
        with _stdout_kept(place.json), ending.handled(terminal := ending.Terminal()) as ended:
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

    level = {} if wish.log_file is None or place.debug else {"log_level": "INFO"}
    async with place.open(
        new=wish.fill, patient=True, name=wish.name, use_codecarbon=wish.energy, log_file=wish.log_file, **level
    ) as experimenter:
        if not place.debug:
            logs.brief(logging.getLogger("py-experimenter"))
        if wish.fill:
            await experimenter.fill_table_from_config()
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
    async with screen.watching(experimenter, where, seconds, terminal, plain=wish.plain, quiet=wish.quiet) as watch:
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
    for experiment_id in ids or ():
        found = await experimenter.counts({"ID": experiment_id})
        status = next((name for name, number in found.items() if number), None)
        if status != "paused":
            what = "does not exist" if status is None else f"is {status}"
            raise Refused(f"Experiment {experiment_id} {what}, not paused; nothing was run.", NOT_ALL_WELL)
