"""Databases to measure on: a file on the disk, private servers that write to the disk as in earnest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from asyncexp.db.base import Target
from tests import servers
from tests.servers import Server

PROVIDERS = ("sqlite", "postgresql", "mysql")
SHOWN = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MySQL/MariaDB"}
_VERSION = {"postgresql": "SHOW server_version", "mysql": "SELECT VERSION()"}


@dataclass(frozen=True)
class Place:
    """One database system; every figure is taken in an empty database and on a table of its own."""

    provider: str
    server: Server | None = None
    _spare: list[Target] = field(default_factory=list)

    @property
    def shown(self) -> str:
        return SHOWN[self.provider]

    @property
    def version(self) -> str:
        import sqlite3

        return sqlite3.sqlite_version if self.server is None else str(self.server.sql(_VERSION[self.provider])[0][0])

    @contextmanager
    def empty(self) -> Iterator[tuple[Path, Target]]:
        """A folder and an empty database, both removed at the end."""
        with tempfile.TemporaryDirectory(prefix="asyncexp-benchmark-") as name:
            folder = Path(name)
            if self.server is None:
                yield folder, Target("sqlite", str(folder / "experiments.db"))
                return
            target = self._fresh(self.server)
            try:
                yield folder, target
            finally:
                self._clear(self.server, target)

    def _fresh(self, server: Server) -> Target:
        if not self._spare:
            self._spare.append(server.fresh())
        return self._spare.pop()

    def _clear(self, server: Server, target: Target) -> None:
        if self.provider != "postgresql":
            server.drop(target.database)
            return
        # It takes PostgreSQL half a second to make a database, and no time to empty one.
        server.sql("DROP SCHEMA public CASCADE", target.database)
        server.sql("CREATE SCHEMA public", target.database)
        self._spare.append(target)


@contextmanager
def places(providers: Sequence[str]) -> Iterator[list[Place]]:
    """The database systems asked for, their servers started, in earnest about the disk."""
    start = {"postgresql": servers.postgres_server, "mysql": servers.mariadb_server}
    with ExitStack() as stack:
        yield [
            Place(name, stack.enter_context(start[name](durable=True)) if name in start else None) for name in providers
        ]
