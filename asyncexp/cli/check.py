"""`check`: whether everything is in place for a study to run, finding by finding, and what to do about each."""

from __future__ import annotations

import shutil
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncexp.cli import options, output
from asyncexp.cli.codes import NOT_ALL_WELL
from asyncexp.cli.command import command, for_shell
from asyncexp.cli.place import Place
from asyncexp.errors import ConfigError, CreatingTableError, DatabaseError, NoConfigFileError, PyExperimenterError

if TYPE_CHECKING:
    from rich.text import Text

    from asyncexp import Experimenter
    from asyncexp.config.models import Configuration
    from asyncexp.store.rights import Rights
    from asyncexp.store.server import ServerInfo

PANEL = "Begin"
LITTLE_ROOM_BYTES = 200_000_000
FEW_CONNECTIONS = 5
CLOCK_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the result."""

    name: str
    ok: bool | None
    """None: it was skipped."""
    words: str
    mend: str = ""
    """What to do about it, or what to know of it."""


@dataclass
class Findings:
    """All lines, in their order."""

    lines: list[Finding] = field(default_factory=list)

    def good(self, name: str, words: str, advice: str = "") -> None:
        self.lines.append(Finding(name, True, words, advice))

    def bad(self, name: str, words: str, mend: str = "") -> None:
        self.lines.append(Finding(name, False, for_shell(words), mend))

    def skip(self, why: str, *names: str) -> None:
        self.lines += [Finding(name, None, f"skipped: {why}") for name in names]

    @property
    def all_well(self) -> bool:
        return all(line.ok is not False for line in self.lines)


@command(PANEL)
def check(
    place: Place,
    function: Annotated[
        str | None,
        typer.Argument(metavar="FUNCTION", help=f"Look at this function, too: {options.FUNCTION}"),
    ] = None,
) -> Awaitable[int | None]:
    """Whether all is in place: configuration, credentials, connection, rights, tables; and what to do if not.

    Nothing is changed. Ends with 1 if something is wrong.

    \b
    Examples:
      asyncexp check
      asyncexp check experiment.py:run_experiment
    """
    of_function = Findings()  # before there is an event loop: what it is imported with may run one of its own
    is_async = None if function is None else _function(of_function, function)
    return _check(place, of_function, is_async)


async def _check(place: Place, of_function: Findings, is_async: bool | None) -> int | None:
    found = Findings()
    experimenter = _configuration(found, place)
    if experimenter is not None:
        await _database(found, place, experimenter)
    found.lines += of_function.lines
    if experimenter is not None:
        _machine(found, experimenter.configuration, is_async)
    if place.json:
        output.write_json(found.lines)
    else:
        _show(found)
    return None if found.all_well else NOT_ALL_WELL


def _show(found: Findings) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for overflow in ("ellipsis", "ellipsis", "fold"):  # a long path is to be read, too
        table.add_column(overflow=overflow)
    for line in found.lines:
        sign = output.mark(line.ok) if line.ok is not None else "-"
        table.add_row(sign, line.name, _words(line))
    output.say(table)


def _words(line: Finding) -> Text:
    from rich.text import Text

    arrow = "→" if output.in_unicode(output.out()) else "->"
    mend = f"\n{arrow} {line.mend}" if line.mend else ""
    return Text.assemble((line.words, "bright_black" if line.ok is None else ""), (mend, "bold" if not line.ok else ""))


# ----------------------------------------------------------------------------------- configuration


def _configuration(found: Findings, place: Place) -> Experimenter | None:
    try:
        experimenter = place.experimenter()
    except ConfigError as wrong:
        for line in str(wrong).splitlines():
            missing = isinstance(wrong, NoConfigFileError) and place.config is None
            found.bad("configuration", line, "asyncexp init makes a project with one" if missing else "")
        found.skip("there is no configuration", "credentials", "connection", "rights", "tables")
        return None
    configuration = experimenter.configuration
    database = configuration.database
    where = configuration.path.name if configuration.path is not None else ""
    what = f"table {database.table.name} in the {database.provider} database {database.database}"
    found.good("configuration", f"{where}: {what}")
    return experimenter


def _credentials(found: Findings, place: Place, configuration: Configuration) -> bool:
    """Whether they are as they must be; what they are is told nowhere."""
    from asyncexp import config

    if configuration.database.provider == "sqlite":
        found.good("credentials", "none are needed for SQLite")
        return True
    try:
        config.target(configuration, place.credentials)
        config.ssh(configuration, place.credentials)
    except ConfigError as wrong:
        found.bad("credentials", str(wrong))
        return False
    file = configuration.credentials
    if file is not None:
        found.good("credentials", f"{file}, {stat.filemode(file.stat().st_mode)}")
    else:
        found.good("credentials", "from the environment, or the files of the database's own clients")
    return True


# ----------------------------------------------------------------------------------------- database


async def _database(found: Findings, place: Place, experimenter: Experimenter) -> None:
    if not _credentials(found, place, experimenter.configuration):
        found.skip("without credentials", "connection", "rights", "tables")
        return
    if experimenter.configuration.database.provider == "sqlite" and not _file(found, place, experimenter.configuration):
        return
    async with _connected(found, experimenter) as server:
        if server is None:
            found.skip("there is no connection", "rights", "tables")
            return
        _server(found, experimenter.configuration, server)
        await _contents(found, experimenter)


@asynccontextmanager
async def _connected(found: Findings, experimenter: Experimenter) -> AsyncIterator[ServerInfo | None]:
    try:
        server = None
        try:
            server = await experimenter.server()
        except DatabaseError as refused:
            found.bad("connection", str(refused))
        yield server
    finally:
        await experimenter.aclose()


async def _contents(found: Findings, experimenter: Experimenter) -> None:
    try:
        rights = await experimenter.check_rights()
        name, lacking = experimenter.configuration.database.table.name, await _lacking(experimenter)
        missing = isinstance(lacking, dict) and "ID" in lacking.get(name, ())
        _rights(found, rights, needs_to_make=missing)
        if not _tables(found, name, lacking, hidden=missing and name in rights.tables):
            found.skip("without its tables", "workers")
        elif any(right.action == "SELECT" for right in rights.refused):
            found.skip("they may not be read", "workers")
        else:
            await _workers(found, experimenter)
    except DatabaseError as broken:  # the connection, meanwhile
        found.bad("connection", str(broken))


def _file(found: Findings, place: Place, configuration: Configuration) -> bool:
    """Whether an SQLite file is there; to connect to one that is not would make it."""
    from asyncexp import config
    from asyncexp.db.sqlite import look_at_the_place

    file = Path(config.target(configuration, place.credentials).database)
    try:
        look_at_the_place(file)
    except DatabaseError as wrong:
        found.bad("file", str(wrong))
        found.skip("the file cannot be used", "connection", "rights", "tables")
        return False
    _room(found, file.parent)
    if file.exists():
        return True
    found.good("tables", f"none yet, and no file {file.name}", "asyncexp fill makes them")
    found.skip("there is no file yet", "connection", "rights", "workers")
    return False


def _room(found: Findings, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    words = f"{folder} can be written to, on a local disk with {free / 1e9:,.1f} GB free"
    if free < LITTLE_ROOM_BYTES:
        found.bad("file", words, "make room, or put the database elsewhere: `database` takes a path")
    else:
        found.good("file", words)


def _server(found: Findings, configuration: Configuration, server: ServerInfo) -> None:
    if server.most_connections is None:
        found.good("connection", server.version)
    else:
        tls = f"encrypted by {server.tls}" if server.tls else "not encrypted"
        tunnel = configuration.database.use_ssh_tunnel
        way = f"through an SSH tunnel, behind it {tls}" if tunnel else tls
        insist = "" if server.tls or tunnel else "`tls: verify-full` insists on encryption"
        found.good("connection", f"{server.version}, {way}", insist)
        _room_for_workers(found, server)
        _clock(found, server.clock_seconds)


def _room_for_workers(found: Findings, server: ServerInfo) -> None:
    free, most = server.free_connections, server.most_connections
    assert free is not None
    words = f"{free} of {most} are free; a worker takes two"
    if free < FEW_CONNECTIONS:
        found.bad("connections", words, "end workers or other programs that hold some, or raise max_connections")
    else:
        found.good("connections", words)


def _clock(found: Findings, ahead: float) -> None:
    """Nothing goes wrong by it, for all dates are the database's; but who compares them with a log is misled."""
    if abs(ahead) < CLOCK_SECONDS:
        found.good("clock", f"the server's is within {CLOCK_SECONDS:g} s of this machine's")
    else:
        which = "ahead of" if ahead > 0 else "behind"
        words = f"the server's is {abs(ahead):,.0f} s {which} this machine's"
        found.good("clock", words, "harmless here, where all dates are the server's; dates in your logs will differ")


def _rights(found: Findings, rights: Rights, *, needs_to_make: bool) -> None:
    """What is lacking for rows is wrong; who may make no tables needs that only where the tables are lacking."""
    from asyncexp.store.rights import alike

    whom = f"{rights.user} may" if rights.user else "may"
    all_tables = f"all {len(rights.tables)} tables"
    making = [right.action for right in rights.refused if right.table is None]
    needed = making if needs_to_make else []
    for actions, tables in alike(rights.refused):
        where = all_tables if len(tables) == len(rights.tables) else ", ".join(tables)
        found.bad("rights", f"{whom} not {', '.join(actions)} on {where}")
    if needed:
        found.bad("rights", f"{whom} not {', '.join(needed)} tables")
    if not found.lines[-1].ok:
        grants = " ".join([*rights.grants, *(rights.grants_to_make if needed else ())])
        found.lines[-1] = replace(found.lines[-1], mend=f"the administrator runs: {grants}" if grants else "")
    elif making:
        found.good("rights", f"{whom} read and write {all_tables}, and make none", _ASK_FOR_MIGRATE)
    else:
        found.good(
            "rights", f"{whom} read and write {all_tables}, and make some" if rights.tables else f"{whom} make tables"
        )


_ASK_FOR_MIGRATE = "enough to run; asyncexp migrate needs more"


async def _lacking(experimenter: Experimenter) -> dict[str, list[str]] | str:
    """What the tables lack, or what is wrong with them."""
    try:
        return await experimenter.preview_migration()
    except CreatingTableError as wrong:
        return str(wrong)


def _tables(found: Findings, name: str, lacking: dict[str, list[str]] | str, *, hidden: bool) -> bool:
    """Whether they are there, and as the configuration describes them."""
    if isinstance(lacking, str):
        found.bad("tables", lacking)
    elif not lacking:
        found.good("tables", f"{name} and what belongs to it are as configured")
    elif "ID" in lacking.get(name, ()):
        _missing(found, name, hidden=hidden)
    elif "_attempt" in lacking.get(name, ()):
        found.bad("tables", f"{name} was made by PyExperimenter", "save a copy; then asyncexp migrate takes it over")
    else:
        found.bad("tables", _told(lacking), "asyncexp migrate adds it")
    return not lacking


def _missing(found: Findings, name: str, *, hidden: bool) -> None:
    if hidden:
        found.bad("tables", f"{name} is not there, or this user may not see it")
    else:
        found.good("tables", f"{name} is not there yet", "asyncexp fill makes it")


def _told(lacking: dict[str, list[str]]) -> str:
    parts = []
    for table, columns in lacking.items():
        parts.append(f"{table} is missing" if "ID" in columns else f"{table} lacks {', '.join(columns)}")
    return "; ".join(parts)


async def _workers(found: Findings, experimenter: Experimenter) -> None:
    workers = await experimenter.workers()
    live = sum(worker.state == "live" for worker in workers)
    lost = [worker for worker in workers if worker.state == "lost" and worker.running]
    if lost:
        held = output.count(sum(worker.running for worker in lost), "row")
        who = ", ".join(f"{worker.name} on {worker.machine}, pid {worker.pid}" for worker in lost[:3])
        words = f"{output.count(len(lost), 'lost worker')} with {held}: {who}"
        found.bad("workers", words, "asyncexp run takes the rows over; end the worker if it still lives")
    else:
        found.good("workers", f"{output.count(live, 'live worker')}, none lost with rows")


# ---------------------------------------------------------------------------- function and machine


def _function(found: Findings, target: str) -> bool | None:
    """Whether it is asynchronous; None if it cannot be used."""
    from asyncexp.pools.base import check_function, is_async

    try:
        function = _imported(target)
        check_function(target, function, "keyfields", "result_processor", "custom_fields")
    except ModuleNotFoundError as missing:
        package = "scikit-learn" if missing.name == "sklearn" else missing.name
        found.bad("function", f"{target} cannot be imported: {missing}", f"pip install {package}, or mend the name")
    except PyExperimenterError as wrong:
        found.bad("function", str(wrong))
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # noqa: BLE001  (whatever the module raises, sys.exit too)
        words = f"{type(failure).__name__}: {failure}".splitlines()[0]
        found.bad("function", f"{target} cannot be imported: {words}", _line_of(failure))
    else:
        asynchronous = is_async(function)
        how = "`async def`: tasks of one process" if asynchronous else "`def`: each in a child process"
        found.good("function", f"{target}, {how}")
        return asynchronous
    return None


def _imported(target: str) -> Callable[..., Any]:
    """What it prints goes to standard error: standard output is for the result."""
    from asyncexp.cli import functions

    sys.argv = [target.partition(":")[0]]
    with output.stdout_kept():
        return functions.named(target)


def _line_of(failure: BaseException) -> str:
    import traceback

    frames = traceback.extract_tb(failure.__traceback__)
    last = frames[-1] if frames else None
    if isinstance(failure, SyntaxError):
        return f"mend line {failure.lineno} of {failure.filename}"
    return f"mend line {last.lineno} of {last.filename}" if last else ""


def _machine(found: Findings, configuration: Configuration, is_async: bool | None) -> None:
    from asyncexp.config.models import usable_cores

    cores, wanted = usable_cores(), configuration.slots()
    own_process = configuration.execution.pool == "process" or (is_async is False and not configuration.execution.pool)
    advice = "`n_jobs: -1` is as many as there are cores" if own_process and wanted > cores else ""
    found.good("n_jobs", f"{wanted} at once, on {cores} usable cores", advice)
    _energy(found, configuration)


def _energy(found: Findings, configuration: Configuration) -> None:
    from asyncexp.emissions.settings import knows_intensity

    try:
        number = version("codecarbon")
    except PackageNotFoundError:
        found.bad("energy", "codecarbon is not installed", "pip install codecarbon, or asyncexp run --no-energy")
        return
    if knows_intensity(configuration.codecarbon):
        found.good("energy", f"codecarbon {number} records energy and emissions")
    else:
        advice = "`CodeCarbon: {country_iso_code: DEU}`, your country's, for the emissions, too"
        found.good("energy", f"codecarbon {number} records energy", advice)
