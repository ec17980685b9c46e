"""Databases for the tests, and the look around after each of them.

Every fixture that gives a `Target` gives an empty database of its own. The servers behind are private
ones (see `tests.servers`), started when first asked for and shared by the tests of one process.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from asyncexp.db.base import Target
from tests import servers
from tests.servers import MariadbServer, PostgresServer, Server

PROVIDERS = ("sqlite", "postgresql", "mysql")
PATIENCE_SECONDS = 20.0


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


# ----------------------------------------------------------------------------------------- databases


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with servers.postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariadbServer]:
    with servers.mariadb_server() as server:
        yield server


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    """The name of each database in turn; `target` is one of that kind."""
    return str(request.param)


@pytest.fixture
def target(provider: str, request: pytest.FixtureRequest) -> Target:
    """An empty database of each kind in turn."""
    named = {"sqlite": "sqlite_target", "postgresql": "postgres_target", "mysql": "mariadb_target"}
    found = request.getfixturevalue(named[provider])
    assert isinstance(found, Target)
    return found


@pytest.fixture
def server(provider: str, request: pytest.FixtureRequest) -> Server:
    """The server behind `target`; not for SQLite."""
    found = request.getfixturevalue({"postgresql": "postgres_server", "mysql": "mariadb_server"}[provider])
    assert isinstance(found, Server)
    return found


@pytest.fixture
def sqlite_target(tmp_path: Path) -> Target:
    return Target("sqlite", str(tmp_path / "experiments.db"))


@pytest.fixture
def postgres_target(postgres_server: PostgresServer) -> Iterator[Target]:
    yield from _fresh(postgres_server)


@pytest.fixture
def mariadb_target(mariadb_server: MariadbServer) -> Iterator[Target]:
    yield from _fresh(mariadb_server)


def _fresh(server: Server) -> Iterator[Target]:
    target = server.fresh()
    try:
        yield target
        left = _soon_empty(lambda: set(server.sessions(target.database)))
        assert not left, f"connections left open by the test: sessions {sorted(map(str, left))} of {target}"
    finally:
        server.drop(target.database)


# --------------------------------------------------------------------------- nothing is left behind


@pytest.fixture(autouse=True, scope="session")
def _own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes "no temporary file left" a question about this process alone."""
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    folder = tmp_path_factory.mktemp("tmp")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    yield
    tempfile.tempdir = before[0]
    if before[1] is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before[1]
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _nothing_left(_own_temporary_folder: None) -> Iterator[None]:
    """After each test: no thread, child process, file descriptor or temporary file more than before."""
    looks: dict[str, Callable[[], set[object]]] = {
        "threads": lambda: set(threading.enumerate()),
        "child processes": _children,
        "file descriptors": _descriptors,
        "temporary files": lambda: set(Path(tempfile.gettempdir()).iterdir()),
    }
    before = {what: look() for what, look in looks.items()}
    yield
    gc.collect()  # so that what was never closed complains in the test that forgot it
    for what, look in looks.items():
        left = _soon_empty(partial(_added, look, before[what]))
        assert not left, f"{what} left by the test: {sorted(map(str, left))}"


def _added(look: Callable[[], set[object]], before: set[object]) -> set[object]:
    return look() - before


def _children() -> set[object]:
    ours = psutil.Process().children(recursive=True)
    known = {child for child in ours if child.pid in servers.PIDS}
    family = {grand for child in known for grand in _family(child)}
    return {child for child in ours if child not in known and child not in family}


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _descriptors() -> set[object]:
    found: set[object] = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add((entry.name, str(entry.readlink())))
        except FileNotFoundError:
            continue  # the one that lists this folder
    return found


def _soon_empty(look: Callable[[], set[object]]) -> set[object]:
    """What is still there after a moment: sessions, threads and sockets take one to end."""
    end = time.monotonic() + PATIENCE_SECONDS
    while (left := look()) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    return left
