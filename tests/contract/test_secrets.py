"""A canary password, in all that asyncexp leaves behind: everything is done with it, and all of it is searched."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
import yaml

from asyncexp import Experimenter, SyncResultProcessor
from asyncexp.db.base import Target
from tests.contract import sql
from tests.contract.canary import Canary, user
from tests.contract.support import PROJECT, Child, numbers
from tests.servers import HOST, Server
from tests.sshd import SshServer, make_key, ssh_server
from tests.studies import write_configuration

SERVERS = ("postgresql", "mysql")


@dataclass
class House:
    """A study, a home and a working folder; the password lives where a source puts it."""

    folder: Path
    server: Server
    target: Target
    canary: Canary
    environment: dict[str, str] = field(default_factory=dict)
    credentials: Path | None = None
    keys: list[Path] = field(default_factory=list)
    """Files that hold the password by right."""
    logs: list[Path] = field(default_factory=list)
    """Those of servers."""
    passphrase: Canary | None = None
    ssh: SshServer | None = None

    @property
    def canaries(self) -> list[Canary]:
        return [self.canary, *([self.passphrase] if self.passphrase else [])]

    def holds(self, *things: bytes | str) -> bool:
        return any(canary.is_in(*things) for canary in self.canaries)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def write(self, path: Path, text: str) -> Path:
        path.touch(mode=0o600)
        path.write_text(text)
        self.keys.append(path)
        return path

    def log_in(self, **without: str) -> None:
        """Host, port and user, which are no secret."""
        named = {"HOST": HOST, "PORT": str(self.target.port), "USER": str(self.target.user)}
        self.environment |= {f"ASYNCEXP_DATABASE__{name}": value for name, value in named.items()} | without


# --------------------------------------------------------------------------- where the password lives


def file(house: House) -> None:
    login = {"user": house.target.user, "password": house.canary.password}
    standard = {"server": HOST, "port": house.target.port}
    whole = {"CREDENTIALS": {"Database": login, "Connection": {"Standard": standard}}}
    house.credentials = house.write(house.folder / "credentials.yml", yaml.safe_dump(whole))


def tunnel(house: House) -> None:
    """As `file`, and the key for the SSH server is encrypted."""
    file(house)
    assert house.ssh is not None
    assert house.credentials is not None
    house.passphrase = Canary()
    house.logs.append(house.ssh.folder / "log")
    key = make_key(house.folder / "key", house.passphrase.password)
    house.ssh.allow(key.with_suffix(".pub"))
    content = yaml.safe_load(house.credentials.read_text())
    way = house.ssh.connection(key_file=str(key), passphrase=house.passphrase.password)
    content["CREDENTIALS"]["Connection"]["Ssh"] = way | {"remote_port": house.target.port}
    house.credentials.write_text(yaml.safe_dump(content))


def variable(house: House) -> None:
    house.log_in(ASYNCEXP_DATABASE__PASSWORD=house.canary.password)


def url(house: House) -> None:
    scheme, login = house.target.provider, f"{house.target.user}:{quote(house.canary.password, safe='')}"
    house.environment["DATABASE_URL"] = f"{scheme}://{login}@{HOST}:{house.target.port}/ignored"


def pgpassword(house: House) -> None:
    house.log_in(PGPASSWORD=house.canary.password)


def pgpass(house: House) -> None:
    house.log_in()
    escaped = house.canary.password.replace("\\", "\\\\").replace(":", "\\:")
    house.write(house.home / ".pgpass", f"{HOST}:{house.target.port}:*:{house.target.user}:{escaped}\n")


def my_cnf(house: House) -> None:
    house.log_in()
    house.write(house.home / ".my.cnf", f"[client]\nuser={house.target.user}\npassword='{house.canary.password}'\n")


SOURCES: tuple[tuple[str, Callable[[House], None]], ...] = (
    *((provider, source) for source in (file, variable, url) for provider in SERVERS),
    *(("postgresql", source) for source in (pgpassword, pgpass)),
    ("mysql", my_cnf),
)


@pytest.fixture
def house(server: Server, target: Target, tmp_path: Path) -> Iterator[House]:
    canary = Canary()
    with user(server, canary, target.database) as name:
        made = House(tmp_path, server, replace(target, user=name, password=canary.password), canary)
        made.logs.append(server.folder / "log")
        made.home.mkdir()
        made.work.mkdir()
        yield made


# ------------------------------------------------------------------------------------------- the run


async def live(house: House, *flags: str) -> None:
    """Runs the program, all its output in files, and ends its sessions when it asks for it."""
    execution = {"grace": 5.0}
    through = house.ssh is not None
    configuration = write_configuration(
        house.folder, house.target, keyfields=numbers(12), execution=execution, use_ssh_tunnel=through
    )
    clean = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    loud = {"PYTHONASYNCIODEBUG": "1", "PYTHONFAULTHANDLER": "1", "PYTHONUTF8": "1", "HOME": str(house.home)}
    loud |= {"PYTHONPATH": str(PROJECT), "TMPDIR": str(house.work)}
    with (house.work / "stderr").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-m", "tests.contract.workers.everything"),
            *(str(configuration), str(house.credentials or ""), "run", *flags),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=house.work,
            env=clean | loud | house.environment,
            limit=2**24,
        )
    child = Child(process)
    heard = []
    assert process.stdout is not None
    try:
        while line := await asyncio.wait_for(process.stdout.readline(), 100):
            heard.append(line)
            if line == b'"cut"\n':
                house.server.end_sessions(house.target.database)
                await child.tell()
        status = await child.ended()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        (house.work / "stdout").write_bytes(b"".join(heard))
    text = (house.work / "stderr").read_text(errors="replace")
    assert status == 1, text[-5000:]
    assert b'"done"\n' in heard, text[-5000:]


async def found(house: House) -> dict[str, list[str]]:
    """Where the canary is: folder of the program, tables, the server's own log."""
    files = [path for canary in house.canaries for path in canary.files(house.folder, but=house.keys)]
    tables = [table for table in sorted(await sql.tables(house.target)) if await _holds(house, table)]
    logs = [str(path) for path in house.logs if house.holds(path.read_bytes())]
    places = {"files": files, "tables": tables, "servers' logs": logs}
    return {place: seen for place, seen in places.items() if seen}


async def _holds(house: House, table: str) -> bool:
    rows = await sql.fetch(house.target, f'SELECT * FROM "{table}"')
    assert rows or table.endswith("_codecarbon"), f"{table} is empty, so that there is nothing to search"
    return any(house.holds(value if isinstance(value, bytes) else str(value)) for row in rows for value in row)


def kind(path: str) -> str:
    """What a file of the working folder is about."""
    return Path(path).name.partition("-")[0]


SHOWN = {"stdout", "stderr", "run.log", "again.log", "objects", "pickles", "errors", "tables"}
PROCESSES = {"processes", "environments", "started", "stacks"}
KINDS = SHOWN | PROCESSES
FROM_ENVIRONMENT = (variable, url, pgpassword)


@pytest.mark.parametrize(("provider", "source"), SOURCES, ids=lambda each: getattr(each, "__name__", str(each)))
async def test_a_password_is_nowhere(house: House, source: Callable[[House], None]) -> None:
    """But in the environment that it came by, which children of a process have from it."""
    source(house)
    await live(house, *(["measure"] if source is file else []))
    assert {kind(path.name) for path in house.work.iterdir()} >= KINDS
    seen = await found(house)
    if source in FROM_ENVIRONMENT:
        assert {kind(path) for path in seen.pop("files")} == {"environments"}
    assert not seen


@pytest.mark.parametrize("provider", SERVERS)
async def test_a_passphrase_is_nowhere(house: House) -> None:
    """Nor is the password, which goes through the tunnel."""
    with ssh_server() as house.ssh:
        tunnel(house)
        await live(house)
        assert not await found(house)


@pytest.mark.parametrize("provider", ["postgresql"])
async def test_the_search_finds_a_secret_that_is_somewhere(house: House) -> None:
    file(house)
    planted = Canary()
    house.environment["PLANTED"] = planted.password
    await live(house, "plant")
    with pytest.raises(asyncpg.UndefinedTableError):
        house.server.sql(f"SELECT 1 FROM nowhere -- {planted.password}")
    house.canary = planted
    seen = await found(house)
    assert {kind(path) for path in seen["files"]} == KINDS - {"stacks"}
    whole = {f"experiments{table}" for table in ("", "__steps", "_attempts", "_workers")}
    assert set(seen["tables"]) == whole
    assert seen["servers' logs"]


def environments_of_a_child(_: dict[str, Any], results: SyncResultProcessor, __: dict[str, Any]) -> None:
    """Where the password is: with itself, with the process that started it."""
    password = bytes.fromhex(os.environ["LOOK_FOR"])
    seen = {str(pid): password in Path(f"/proc/{pid}/environ").read_bytes() for pid in (os.getpid(), os.getppid())}
    results.process_results({"text": json.dumps([*seen.values(), password.decode() in os.environ.values()])})


@pytest.mark.parametrize(("blank", "seen"), [(None, [True, True, True]), ("", [False, False, False])])
@pytest.mark.parametrize("provider", ["postgresql"])
async def test_worker_env_keeps_the_password_from_children(
    house: House, monkeypatch: pytest.MonkeyPatch, blank: str | None, seen: list[bool]
) -> None:
    variable(house)
    for name, value in house.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOOK_FOR", house.canary.password.encode().hex())
    configuration = write_configuration(house.folder, house.target, keyfields=numbers(1))
    env = {} if blank is None else {"ASYNCEXP_DATABASE__PASSWORD": blank}
    async with Experimenter(configuration, log_file=None, logger_name="asyncexp-tests") as experimenter:
        await experimenter.fill_table_from_config()
        summary = await experimenter.execute(environments_of_a_child, worker_env=env, progress=False)
        table = await experimenter.get_table()
    assert summary.done == 1
    assert json.loads(table["text"][0]) == seen
