"""Which server this is, and how it was reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asyncexp.store.study import Study, utc


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A database server as it tells of itself; or SQLite."""

    version: str
    """Product and version."""
    tls: str | None
    """The version of TLS that this connection speaks; None: none."""
    clock_seconds: float
    """So far its clock is ahead of this process's."""
    connections: int | None
    """How many it has now; None: there is no such number."""
    most_connections: int | None
    """How many it takes."""

    @property
    def free_connections(self) -> int | None:
        """How many it takes beside those that it has."""
        if self.connections is None or self.most_connections is None:
            return None
        return max(0, self.most_connections - self.connections)


async def asked(study: Study) -> ServerInfo:
    """A few small queries; nothing of the tables is touched."""
    begun = utc()
    now = study.date(await _cell(study, f"SELECT {study.dialect.now}"))
    ahead = (now - (begun + (utc() - begun) / 2)).total_seconds()
    tls = await _cell(study, study.dialect.tls_version) if study.dialect.tls_version else None
    have, most = [int(await _cell(study, query)) for query in study.dialect.connections or ()] or (None, None)
    return ServerInfo(str(await _cell(study, study.dialect.version)), tls or None, ahead, have, most)


async def _cell(study: Study, query: str) -> Any:
    [row] = await study.fetch(study.db, query)
    return row[-1]
