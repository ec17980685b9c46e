"""`asyncexp check`: each thing that can be wrong is found, told with its mend, and what depends on it is skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from asyncexp.cli import check as code
from asyncexp.db.base import Target
from tests.accounts import account
from tests.cli.conftest import MakeShell
from tests.cli.shell import COMMAND, Shell, environment
from tests.contract.sql import execute, fetch
from tests.servers import Server, free_port
from tests.sshd import ssh_server
from tests.studies import write_configuration, write_credentials

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])
on_servers = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
FUNCTIONS = """
async def asks(keyfields, results, custom): ...
def computes(keyfields, results, custom): ...
def too_few(keyfields): ...
"""


def found(shell: Shell, *words: str, code: int | None = None, **variables: str) -> dict[str, list[Any]]:
    """Name -> (ok, words and mend) of its findings, and the exit code is as they are."""
    done = shell.run("check", "--json", *words, code=code, **variables)
    lines = json.loads(done.stdout)
    assert done.returncode == any(line["ok"] is False for line in lines)
    told: dict[str, list[Any]] = {}
    for line in lines:
        told.setdefault(line["name"], []).append((line["ok"], f"{line['words']} {line['mend']}".strip()))
    return told


def one(told: dict[str, list[Any]], name: str) -> tuple[bool | None, str]:
    [(ok, words)] = told[name]
    return ok, words


def as_user(shell: Shell, target: Target, ssh: Mapping[str, Any] | None = None) -> None:
    """Other credentials."""
    written = write_credentials(shell.folder / "config", target, ssh)
    assert written is not None
    written.replace(shell.folder / "config" / "database_credentials.yml")


# --------------------------------------------------------------------------------------- all is well


async def test_all_is_well_before_and_after_a_fill(shell: Shell, target: Target) -> None:
    before = found(shell, code=0)
    assert "asyncexp fill" in one(before, "tables")[1]
    assert target.provider != "sqlite" or not _exists(target)
    assert not await _made(target)
    shell.run("fill")
    after = found(shell, code=0)
    assert all(ok is True for lines in after.values() for ok, _ in lines)
    assert one(after, "tables")[1] == "experiments and what belongs to it are as configured"
    assert {"configuration", "credentials", "connection", "rights", "workers", "n_jobs", "energy"} <= after.keys()
    if target.provider == "sqlite":
        assert one(after, "file")[0]
        assert "SQLite 3" in one(after, "connection")[1]
    else:
        assert "not encrypted" in one(after, "connection")[1]
        assert "are free" in one(after, "connections")[1]
        assert one(after, "clock")[0]
    assert await fetch(target, 'SELECT COUNT(*) FROM "experiments"')


def _exists(target: Target) -> bool:
    return Path(target.database).exists()


async def _made(target: Target) -> bool:
    if target.provider == "sqlite":
        return _exists(target)
    [(count,)] = await fetch(
        target, "SELECT COUNT(*) FROM information_schema.tables WHERE table_name LIKE 'experiments%'"
    )
    return bool(count)


@sqlite_only
@pytest.mark.parametrize("columns", [80, 120])
def test_its_lines_fit_the_terminal(shell: Shell, columns: int) -> None:
    shell.write("mine.py", "1 / 0")
    terminal = shell.terminal("check", "mine.py", columns=columns, rows=40)
    told = terminal.end(1)
    assert max(map(len, terminal.all_lines)) <= columns
    assert "…" not in told
    for line in ("✓  tables  ", "→ asyncexp fill", "-  rights  ", "✗  function  ", "→ mend line 1"):
        assert line in told


@sqlite_only
def test_a_terminal_without_such_characters_gets_letters(shell: Shell) -> None:
    told = shell.run("check", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C").stdout
    assert "-> asyncexp fill" in told
    assert told.isascii()


# ------------------------------------------------------------------------ configuration, credentials


@sqlite_only
def test_every_error_of_the_configuration_is_a_finding(shell: Shell) -> None:
    path = shell.folder / "config" / "experiment_configuration.yml"
    path.write_text(path.read_text().replace("n_jobs", "njobs").replace("type: INT", "type: ITN"))
    told = found(shell, code=1)
    words = " ".join(words for _, words in told["configuration"])
    assert "unknown key 'njobs' in PY_EXPERIMENTER; did you mean 'n_jobs'?" in words
    assert "experiment_configuration.yml:" in words
    assert "did you mean INT?" in words
    assert len(told["configuration"]) >= 2
    for name in ("credentials", "connection", "rights", "tables"):
        assert one(told, name)[0] is None


@sqlite_only
def test_without_a_configuration_it_says_how_to_begin(shell: Shell) -> None:
    (shell.folder / "config" / "experiment_configuration.yml").unlink()
    assert "asyncexp init" in one(found(shell, code=1), "configuration")[1]


@pytest.mark.parametrize("provider", ["postgresql"])
def test_credentials_that_others_can_read_or_that_are_missing(shell: Shell) -> None:
    file = shell.folder / "config" / "database_credentials.yml"
    file.chmod(0o644)
    told = found(shell, code=1)
    ok, words = one(told, "credentials")
    assert not ok
    assert "chmod 600" in words
    assert one(told, "connection")[0] is None
    file.unlink()
    ok, words = one(found(shell, code=1), "credentials")
    assert not ok
    assert "database_credentials" in words


# --------------------------------------------------------------------------------------- connection


@on_servers
def test_a_wrong_password_and_a_server_that_is_down(shell: Shell, target: Target) -> None:
    wrong = Target(target.provider, target.database, target.host, target.port, target.user, "a-canary")
    as_user(shell, wrong)
    told = found(shell, code=1)
    assert "check user and password" in one(told, "connection")[1]
    assert one(told, "rights")[0] is None
    assert "canary" not in str(told)
    as_user(shell, Target(target.provider, target.database, target.host, free_port(), target.user, target.password))
    assert "is it running" in one(found(shell, code=1), "connection")[1]


@on_servers
def test_a_missing_database(shell: Shell, target: Target, server: Server) -> None:
    server.drop(target.database)
    ok, words = one(found(shell, code=1), "connection")
    assert not ok
    assert "asyncexp fill --create-database" in words
    assert "create_table" not in words


@pytest.mark.parametrize("provider", ["postgresql"])
def test_a_tunnel_that_opens_and_one_that_does_not(shell_in: MakeShell, target: Target) -> None:
    shell = shell_in(use_ssh_tunnel=True)
    with ssh_server() as ssh:
        as_user(shell, target, ssh.connection())
        ok, words = one(found(shell, code=0), "connection")
        assert ok
        assert "through an SSH tunnel" in words
    ok, words = one(found(shell, code=1), "connection")
    assert not ok
    assert "key_file" in words, "which went with the server"


# ------------------------------------------------------------------------------------------- rights


@on_servers
def test_rights_that_are_lacking_and_what_gives_them(shell: Shell, target: Target, server: Server) -> None:
    shell.run("fill")
    with account(server, target, "SELECT", "INSERT", "UPDATE") as limited:
        as_user(shell, limited)
        told = found(shell, code=1)
        ok, words = one(told, "rights")
        assert not ok
        assert "may not DELETE on all 5 tables" in words
        statement = words.partition("the administrator runs: ")[2]
        for each in statement.split(";"):
            if each.strip():
                server.sql(each, target.database)
        assert one(found(shell, code=0), "rights")[0]


@on_servers
def test_who_may_only_work_is_told_that_it_is_enough(shell: Shell, target: Target, server: Server) -> None:
    shell.run("fill")
    with account(server, target, "SELECT", "INSERT", "UPDATE", "DELETE") as limited:
        as_user(shell, limited)
        ok, words = one(found(shell, code=0), "rights")
        assert ok
        assert "make none" in words


@on_servers
def test_who_may_make_no_tables_where_there_are_none(shell: Shell, target: Target, server: Server) -> None:
    with account(server, target) as limited:
        as_user(shell, limited)
        ok, words = found(shell, code=1)["rights"][-1]
        assert not ok
        assert "GRANT" in words
        assert "CREATE" in words


@on_servers
def test_who_may_not_even_look(shell: Shell, target: Target, server: Server) -> None:
    shell.run("fill")
    with account(server, target) as limited:
        as_user(shell, limited)
        told = found(shell, code=1)
        assert "may not SELECT, INSERT, UPDATE, DELETE on all 5 tables" in told["rights"][0][1]
        assert one(told, "workers")[0] is None


# ----------------------------------------------------------------------------------- SQLite's places


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of ours that any user reaches."""
    folder = Path(tempfile.mkdtemp(prefix="asyncexp-open-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def _as_nobody(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", *words]
    return subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)


def test_a_file_and_a_folder_that_cannot_be_written(open_folder: Path) -> None:
    if os.geteuid() != 0 or _as_nobody(open_folder, *COMMAND, "--version").returncode:
        pytest.skip("only root can become somebody else, who must be able to run Python")
    file = open_folder / "experiments.db"
    (open_folder / "config").mkdir()
    write_configuration(open_folder / "config", Target("sqlite", str(file)), name="experiment_configuration.yml")
    Shell(open_folder).run("fill")
    told = _as_nobody(open_folder, *COMMAND, "check")
    assert told.returncode == 1, told.stderr
    assert f"the folder {open_folder} cannot be written to" in told.stdout
    assert "skipped: the file cannot be used" in told.stdout
    open_folder.chmod(0o777)
    told = _as_nobody(open_folder, *COMMAND, "check")
    assert told.returncode == 1
    assert "cannot be read and written by this user" in told.stdout


@sqlite_only
def test_a_folder_that_is_not_there(shell: Shell) -> None:
    ok, words = one(found(shell, "--database", "/nowhere/at/all", code=1), "file")
    assert not ok
    assert "the folder /nowhere/at does not exist" in words


def test_little_room_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = code.Findings()
    code._room(findings, tmp_path)
    assert findings.all_well
    monkeypatch.setattr(code, "LITTLE_ROOM_BYTES", 10**18)
    code._room(findings, tmp_path)
    assert not findings.all_well
    assert "make room" in findings.lines[-1].mend


# ------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ({"resultfields": {"result": "DOUBLE", "text": "TEXT", "score": "INT"}}, "experiments lacks score"),
        ({"logtables": {"steps": {"step": "INT", "note": "TEXT"}, "more": {"x": "INT"}}}, "__more is missing"),
        ({"resultfields": {"result": "TEXT", "text": "TEXT"}}, "column 'result' is"),
    ],
)
def test_tables_that_are_not_as_configured(shell_in: MakeShell, study: dict[str, Any], said: str) -> None:
    shell_in().run("fill")
    told = found(shell_in(**study), code=1)
    ok, words = one(told, "tables")
    assert not ok
    assert said in words
    assert ("asyncexp migrate" in words) == ("result' is" not in said)
    assert "migrate()" not in words
    assert one(told, "workers")[0] is None


async def test_a_table_of_pyexperimenter(shell: Shell, target: Target) -> None:
    shell.run("fill")
    text = 'ALTER TABLE "experiments" DROP COLUMN "{}"'
    await execute(target, text.format("_attempt"))
    ok, words = one(found(shell, code=1), "tables")
    assert not ok
    assert "PyExperimenter" in words
    assert "asyncexp migrate" in words


async def test_a_lost_worker_with_rows(shell: Shell, target: Target) -> None:
    shell.run("fill")
    long_ago = "2020-01-01 00:00:00"
    if target.provider == "sqlite":
        long_ago = "2020-01-01 00:00:00.000000"
    names = '"id", "role", "name", "machine", "pid", "started", "heartbeat", "lease", "boot_id", "pid_namespace"'
    await execute(
        target,
        f'INSERT INTO "experiments_workers" ({names}) '
        f"VALUES (7, 'worker', 'gone', 'there', 99, '{long_ago}', '{long_ago}', 60, '', '')",
    )
    assert one(found(shell, code=0), "workers")[0]
    await execute(
        target,
        'UPDATE "experiments" SET "status" = \'running\', "_worker" = 7, "_attempt" = 1 WHERE "number" = 0',
    )
    ok, words = one(found(shell, code=1), "workers")
    assert not ok
    assert "1 lost worker with 2 rows: gone on there, pid 99" in words
    assert "asyncexp run" in words


# ------------------------------------------------------------------------------- function and machine


@sqlite_only
@pytest.mark.parametrize(
    ("function", "ok", "said"),
    [
        ("mine.py:asks", True, "tasks of one process"),
        ("mine:computes", True, "each in a child process"),
        ("mine.py:too_few", False, "is called with (keyfields, result_processor, custom_fields)"),
        ("mine.py:comptes", False, "did you mean 'computes'?"),
        ("mien.py:computes", False, "did you mean 'mine.py'"),
        ("lacks.py:run", False, "pip install scikit-learn"),
        ("wrong.py:run", False, "line 1 of"),
        ("raises.py:run", False, "ValueError: of its own"),
        ("exits.py:run", False, "SystemExit"),
    ],
)
def test_the_function(shell: Shell, function: str, ok: bool, said: str) -> None:
    own_loop = "import asyncio, os\nos.system('echo a child says')\nasyncio.run(asyncio.sleep(0))"
    shell.write("mine.py", f"print('hello')\n{own_loop}\n{FUNCTIONS}")
    shell.write("lacks.py", "raise ModuleNotFoundError(\"No module named 'sklearn'\", name='sklearn')")
    shell.write("wrong.py", "def run(:\n    pass")
    shell.write("raises.py", "raise ValueError('of its own')")
    shell.write("exits.py", "import sys; sys.exit(3)")
    told = shell.json("check", function, code=0 if ok else 1)
    [line] = [line for line in told if line["name"] == "function"]
    assert line["ok"] == ok
    assert said in f"{line['words']} {line['mend']}"


@sqlite_only
def test_more_processes_than_cores_are_advised_against_and_no_fault(shell_in: MakeShell) -> None:
    shell = shell_in(n_jobs=500)
    shell.write("mine.py", FUNCTIONS)
    for function, advised in (("mine.py:computes", True), ("mine.py:asks", False)):
        [line] = [line for line in shell.json("check", function) if line["name"] == "n_jobs"]
        assert ("n_jobs: -1" in line["mend"]) == advised


def test_few_free_connections_and_a_clock_that_is_off() -> None:
    from asyncexp.store.server import ServerInfo

    findings = code.Findings()
    code._room_for_workers(findings, ServerInfo("x", None, 0.0, 98, 100))
    code._clock(findings, -4000.0)
    few, clock = findings.lines
    assert not few.ok
    assert "max_connections" in few.mend
    assert clock.ok
    assert "4,000 s behind" in clock.words
