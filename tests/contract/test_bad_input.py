"""Bad input: one clear error each, that says what to do; no password in it, nothing half-written."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter, ResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import (
    ConfigError,
    CreatingTableError,
    DatabaseConnectionError,
    DatabaseError,
    DatabaseQueryError,
    InvalidColumnError,
    InvalidConfigError,
    InvalidValuesInConfiguration,
    NoConfigFileError,
    PyExperimenterError,
)
from tests.contract import sql
from tests.contract.conftest import Make
from tests.contract.functions import never
from tests.contract.modes import Mode
from tests.contract.support import eventually
from tests.servers import PASSWORD, Server, free_port
from tests.studies import experimenter as study
from tests.studies import write_configuration, write_credentials

PROJECT = Path(__file__).resolve().parents[2]
CANARY = "a-canary-of-a-password"
on_servers = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
on_sqlite = pytest.mark.parametrize("provider", ["sqlite"])


async def _run(_: Any, results: ResultProcessor, __: Any) -> None:
    await results.process_results({"result": 1.0})


def _check_clear(error: BaseException) -> None:
    """One of ours, in one readable line, without a secret in it or in what is printed with it."""
    assert isinstance(error, PyExperimenterError)
    assert 20 < len(str(error)) < 600
    assert "\n" not in str(error).strip()
    printed = "".join(traceback.format_exception(error)) + repr(error)
    assert CANARY not in printed
    assert PASSWORD not in printed


# -------------------------------------------------------------------------------- reaching the database


@on_servers
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password": CANARY}, "not let in; check user and password"),
        ({"user": "nobody_of_this_name", "password": CANARY}, "not let in; check user and password"),
        ({"port": 0}, "does not answer.*is it running, are `host` and `port` right"),
        ({"host": "no-such-host.invalid"}, "no such host.*check `host`|does not answer"),
    ],
)
async def test_a_database_that_cannot_be_reached(
    target: Target, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    wrong = replace(target, **({"port": free_port()} if "port" in change else change))
    async with _Unopened(tmp_path, wrong) as experimenter:
        begin = time.monotonic()
        for call in (
            experimenter.get_table,
            experimenter.fill_table_from_config,
            lambda: experimenter.execute(never, database_wait=0.0),
        ):
            with pytest.raises(DatabaseConnectionError, match=words) as raised:
                await call()
            _check_clear(raised.value)
            assert target.database in str(raised.value)
        assert time.monotonic() - begin < 55


class _Unopened:
    """`async with` without the opening."""

    def __init__(self, folder: Path, target: Target) -> None:
        self._made = study(folder, target)

    async def __aenter__(self) -> Experimenter:
        return self._made

    async def __aexit__(self, *_: object) -> None:
        await self._made.aclose()


@on_servers
async def test_a_wrong_password_is_not_waited_for(target: Target, tmp_path: Path) -> None:
    async with _Unopened(tmp_path, replace(target, password=CANARY)) as experimenter:
        begin = time.monotonic()
        with pytest.raises(DatabaseConnectionError, match="check user and password"):
            await experimenter.execute(never, database_wait=60.0)
        assert time.monotonic() - begin < 50


@on_servers
async def test_opening_by_async_with_says_it_too(target: Target, tmp_path: Path) -> None:
    with pytest.raises(DatabaseConnectionError, match="check user and password") as raised:
        async with study(tmp_path, replace(target, password=CANARY)):
            raise AssertionError("it was not let in")
    _check_clear(raised.value)


@on_servers
async def test_a_database_that_comes_back_in_time_is_waited_for(
    target: Target, tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with study(tmp_path, target) as experimenter:
        await experimenter.fill_table_from_config()
    server.stop()
    try:
        async with _Unopened(tmp_path, target) as experimenter:
            with pytest.raises(DatabaseConnectionError, match="does not answer"):
                await experimenter.execute(never, database_wait=0.2)
            caplog.clear()
            running = asyncio.create_task(experimenter.execute(_run, database_wait=60.0))
            await eventually(lambda: "does not answer" in caplog.text)
            server.start()
            assert (await running).done == 10
    finally:
        server.restart()


@pytest.mark.parametrize(
    ("provider", "driver"), [("sqlite", "aiosqlite"), ("postgresql", "asyncpg"), ("mysql", "aiomysql")]
)
def test_a_missing_driver_names_the_package(target: Target, tmp_path: Path, driver: str) -> None:
    script = (
        "import asyncio, sys\n"
        f"sys.modules[{driver!r}] = None\n"
        "from asyncexp import Experimenter\n"
        "async def main():\n"
        "    async with Experimenter(sys.argv[1], sys.argv[2] or None, log_file=None) as experimenter:\n"
        "        await experimenter.get_table()\n"
        "asyncio.run(main())\n"
    )
    files = [str(write_configuration(tmp_path, target)), str(write_credentials(tmp_path, target) or "")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *files],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith(f"is not installed: pip install {driver}")
    assert "DatabaseConnectionError" in done.stderr
    assert PASSWORD not in done.stderr


@on_sqlite
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("missing/study.db", "the folder .* does not exist; make it first"),
        ("folder.db", "is a folder; give the name of a file"),
        ("text.db", "it is no SQLite database; give another name"),
    ],
)
async def test_an_impossible_sqlite_file(target: Target, tmp_path: Path, place: str, words: str) -> None:
    _odd_files(tmp_path)
    async with _Unopened(tmp_path, replace(target, database=str(tmp_path / place))) as experimenter:
        with pytest.raises(DatabaseConnectionError, match=words) as raised:
            await experimenter.fill_table_from_config()
        _check_clear(raised.value)
    assert (tmp_path / "text.db").read_bytes() == b"no database at all" * 500


def _odd_files(folder: Path) -> None:
    (folder / "folder.db").mkdir()
    (folder / "text.db").write_bytes(b"no database at all" * 500)


# ------------------------------------------------------------------------------------------- rights


@pytest.fixture
def guest(server: Server, target: Target) -> Iterator[Target]:
    """The same database, entered by a user who may read it and do nothing else."""
    name = f"guest_{target.database}"
    if target.provider == "postgresql":
        server.sql(f"CREATE ROLE {name} LOGIN PASSWORD '{CANARY}'")
        server.sql(f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {name}", target.database)
    else:
        server.sql(f"CREATE USER {name} IDENTIFIED BY '{CANARY}'")
        server.sql(f"GRANT SELECT ON {target.database}.* TO {name}")
    yield replace(target, user=name, password=CANARY)
    if target.provider == "postgresql":
        server.sql(f"DROP OWNED BY {name}", target.database)
        server.sql(f"DROP ROLE {name}")
    else:
        server.sql(f"DROP USER {name}")


@on_servers
async def test_who_may_not_create_is_told_so(guest: Target, tmp_path: Path) -> None:
    async with study(tmp_path, guest) as experimenter:
        for call in (experimenter.create_table, experimenter.fill_table_from_config):
            with pytest.raises(
                CreatingTableError, match="this user may not do that; ask for the right with GRANT"
            ) as raised:
                await call()
            _check_clear(raised.value)
    assert await sql.tables(guest, "experiments") == set()


@on_servers
async def test_who_may_not_write_reads_and_is_told_so(guest: Target, target: Target, tmp_path: Path) -> None:
    async with study(tmp_path, target) as owner, study(tmp_path, guest) as experimenter:
        await owner.fill_table_with_rows([{"number": 1, "kind": "a"}])
        before = await experimenter.get_table()
        assert len(before) == 1
        for call in (
            experimenter.fill_table_from_config,
            lambda: experimenter.execute(never),
            lambda: experimenter.reset_experiments("all"),
            lambda: experimenter.add_experiment_and_execute({"number": 2, "kind": "a"}, never),
        ):
            with pytest.raises(DatabaseQueryError, match="ask for the right with GRANT") as raised:
                await call()
            _check_clear(raised.value)
        assert (await owner.get_table()).equals(before)
        assert await owner.workers() == []


@on_servers
async def test_who_may_not_make_the_database_is_told_so(guest: Target, tmp_path: Path) -> None:
    async with _Unopened(tmp_path, replace(guest, database=f"{guest.database}_new")) as experimenter:
        with pytest.raises(DatabaseError, match=r"GRANT|could not be made") as raised:
            await experimenter.create_table(create_database=True)
        _check_clear(raised.value)


# -------------------------------------------------------------------------------------- credentials


@on_servers
async def test_credentials_that_others_can_read_are_refused_with_the_chmod_to_run(
    target: Target, tmp_path: Path
) -> None:
    experimenter = study(tmp_path, target)
    _open_to_all(tmp_path)
    with pytest.raises(InvalidConfigError, match=r"chmod 600 .*credentials\.yml") as raised:
        await experimenter.get_table()
    _check_clear(raised.value)


def _open_to_all(folder: Path) -> None:
    (folder / "credentials.yml").chmod(0o644)


@on_servers
async def test_missing_credentials_say_where_they_are_looked_for(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "PGUSER", "ASYNCEXP_DATABASE__USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    experimenter = Experimenter(write_configuration(tmp_path, target), logger_name="asyncexp-tests", log_file=None)
    with pytest.raises(NoConfigFileError, match=r"config/database_credentials\.yml.*CREDENTIALS\.Database\.user"):
        await experimenter.get_table()


# ------------------------------------------------------------------------------------ configuration


@on_sqlite
@pytest.mark.parametrize(
    ("other", "error", "words"),
    [
        ({"keyfields": {"a": {"typ": "INT"}}}, ConfigError, "unknown key 'typ'.*did you mean 'type'"),
        ({"keyfields": {"a": {"type": "INTT"}}}, InvalidColumnError, "unknown type 'INTT'; did you mean INT"),
        ({"keyfields": {"a": {"type": "INT", "values": ["x"]}}}, InvalidValuesInConfiguration, "'x'"),
        (
            {"keyfields": {"a": {"type": "INT", "values": {"start": 0, "stop": 3, "stepsize": 1}}}},
            ConfigError,
            r"\{start, stop, step\}.*does not know 'stepsize'",
        ),
        ({"resultfields": {"a": "VARCHR(3)"}}, InvalidColumnError, r"unknown type .*did you mean VARCHAR"),
        ({"execution": {"retrys": 1}}, InvalidConfigError, "unknown key 'retrys'.*did you mean 'retries'"),
        ({"execution": {"lease": 10}}, InvalidConfigError, "at least four times heartbeat_interval"),
        ({"n_jobs": "many"}, InvalidConfigError, "must be a whole number, not 'many'"),
    ],
)
def test_a_wrong_configuration_names_place_and_nearest_word(
    target: Target, tmp_path: Path, other: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        study(tmp_path, target, **other)
    assert f"{tmp_path}/configuration.yml:" in str(raised.value)


@on_sqlite
def test_a_configuration_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoConfigFileError, match=r"config/experiment_configuration\.yml"):
        Experimenter(log_file=None)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yml"):
        Experimenter(tmp_path / "nowhere.yml", log_file=None)
    assert not os.path.exists(target.database)  # noqa: PTH110


# ------------------------------------------------------------------------------- keywords of execute

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"retrys": 3}, "'retrys'.*did you mean 'retries'"),
    ({"max_experiment": 3}, "did you mean 'max_experiments'|'max_experiment'"),
    ({"n_jobs": 0}, "n_jobs"),
    ({"n_jobs": -2}, "n_jobs"),
    ({"n_jobs": 1.5}, "n_jobs"),
    ({"n_jobs": "4"}, "n_jobs"),
    ({"n_jobs": True}, "n_jobs"),
    ({"retries": -1}, "retries must be at least 0"),
    ({"retries": "often"}, "retries must be a whole number"),
    ({"timeout": 0}, "timeout must be greater than 0"),
    ({"timeout": "soon"}, "timeout must be a number"),
    ({"max_errors": 0}, "max_errors must be a number from 1 on, or -1"),
    ({"lease": 5.0}, "at least four times heartbeat_interval"),
    ({"retry_on": 7}, "retry_on"),
    ({"until": "tired"}, "until.*'tired'.*'?empty"),
    ({"from_status": "done"}, "from_status.*'done'.*created"),
    ({"pool": "threads"}, "pool"),
    ({"where": {"numbr": 1}}, "'numbr'; did you mean 'number'"),
    ({"where": {"number": "x"}}, "'number': 'x'"),
    ({"experiment_ids": ["x"]}, "ids are whole numbers.*'x'"),
    ({"max_experiments": "all"}, "max_experiments"),
]


async def test_a_wrong_keyword_of_execute_is_named_and_nothing_is_claimed(make: Make, target: Target) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()
    unclear: list[Any] = []
    for keywords, words in WRONG:
        try:
            with pytest.raises(PyExperimenterError, match=words) as raised:
                await experimenter.execute(never, **keywords)
            _check_clear(raised.value)
        except (AssertionError, TypeError, ValueError, pytest.fail.Exception) as wrong:
            unclear.append((keywords, repr(wrong)[:200]))
    assert not unclear, json.dumps(unclear, indent=1, default=repr)
    assert (await experimenter.counts())["created"] == 10
    assert await sql.fetch(target, 'SELECT MAX("_attempt") FROM "experiments"') == [(0,)]


@pytest.mark.parametrize("function", [None, "run", 7, {}])
async def test_what_cannot_be_called_is_no_experiment_function(make: Make, mode: Mode, function: Any) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()
    with pytest.raises(InvalidConfigError, match=r"experiment_function is .*; it must be a function"):
        await experimenter.execute(function)
    wrong: tuple[type[Exception], str] = (InvalidConfigError, r"experiment_function is .*; it must be a function")
    if mode == "blocking" and function is None:  # there it means that none was given
        wrong = TypeError, "takes experiment_function"
    with pytest.raises(wrong[0], match=wrong[1]):
        await experimenter.add_experiment_and_execute({"number": 99, "kind": "a"}, function)
    assert await experimenter.counts() == {"created": 10, "running": 0, "done": 0, "error": 0, "paused": 0}


async def test_a_function_that_takes_other_arguments_is_refused_before_a_row_is_claimed(make: Make) -> None:
    experimenter = make()
    await experimenter.fill_table_with_rows([{"number": 1, "kind": "a"}])

    async def run(keyfields: Any) -> None:
        raise AssertionError(keyfields)

    with pytest.raises(InvalidConfigError, match=r"called with \(keyfields, result_processor, custom_fields\)"):
        await experimenter.execute(run)
    assert (await experimenter.counts())["created"] == 1


@pytest.mark.parametrize("keyword", ["where", "max_experiment", "until"])
async def test_a_wrong_keyword_of_a_single_run_is_named_and_nothing_is_added(make: Make, keyword: str) -> None:
    experimenter = make()
    wrong: dict[str, Any] = {keyword: 1}
    with pytest.raises(InvalidConfigError, match=f"'{keyword}'"):
        await experimenter.add_experiment_and_execute({"number": 1, "kind": "a"}, never, **wrong)
    assert len(await experimenter.get_table()) == 0


# ----------------------------------------------------------------------------------- SQL in values

EVIL = [
    "'; DROP TABLE experiments; --",
    '"; DROP TABLE "experiments"; --',
    "1 OR 1=1",
    "' OR '1'='1",
    "\\'; DROP TABLE experiments; -- ",
    "%s %(x)s %% :x $1 ?",
    "`; DROP TABLE experiments; #",
    "/* */ UNION SELECT 1 --",
]


async def test_sql_in_values_stays_a_value(make: Make, target: Target) -> None:
    keyfields = {"number": {"type": "INT"}, "kind": {"type": "TEXT"}}
    experimenter = make(keyfields=keyfields)
    await experimenter.fill_table_with_rows([{"number": n, "kind": text} for n, text in enumerate(EVIL)])
    before = await sql.tables(target)

    async def run(given: dict[str, Any], results: ResultProcessor, _: Any) -> None:
        assert given["kind"] == EVIL[given["number"]]
        await results.process_results({"text": given["kind"]})
        await results.process_logs({"steps": {"note": given["kind"]}})
        await results.heartbeat(message=given["kind"])
        raise ValueError(given["kind"])

    await experimenter.execute(run, max_errors=-1)
    table, lines = await experimenter.get_table(), await experimenter.get_logtable("steps")
    for column in (table["kind"], table["text"], table["_message"], lines["note"]):
        assert sorted(column) == sorted(EVIL)
    assert all(f"ValueError: {text}" in error for text, error in zip(table["kind"], table["error"], strict=True))
    for number, text in enumerate(EVIL):
        assert list((await experimenter.get_table({"kind": text}))["number"]) == [number]
        assert list((await experimenter.get_table({"text": [text]}))["number"]) == [number]
        assert await experimenter.retry_errors(where={"kind": text}) == 1
    assert await sql.tables(target) == before


@pytest.mark.executes_nothing
async def test_sql_in_names_of_statuses_fields_and_tables_is_refused(make: Make, target: Target) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()
    before = await sql.tables(target)
    for text in EVIL:
        with pytest.raises(InvalidColumnError, match="no status"):
            await experimenter.reset_experiments(text)
        with pytest.raises(InvalidColumnError, match="no status"):
            await experimenter.delete_experiments("done", text)
        with pytest.raises(PyExperimenterError, match="no column"):
            await experimenter.get_table({text: 1})
        with pytest.raises(ConfigError, match="no log table"):
            await experimenter.get_logtable(text)
        assert len(await experimenter.get_table({"status": text})) == 0
        assert sum((await experimenter.counts({"text": text})).values()) == 0
    assert await sql.tables(target) == before
    assert len(await experimenter.get_table()) == 10
