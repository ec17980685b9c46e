"""Faults, and worker processes for them as their tests see them; see `tests.contract.workers.fault`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncexp.db.base import Target
from tests.contract.shared import Gate, Seen
from tests.contract.support import Child, child
from tests.servers import Server


@asynccontextmanager
async def worker(
    target: Target,
    folder: Path,
    function: str,
    ran: Seen,
    go_on: Gate | None = None,
    *,
    keyfields: Any,
    execution: Any,
    may_end: Gate | None = None,
    marks: Mapping[str, Any] | None = None,
    limits: Mapping[str, float] | None = None,
    through: Sequence[str] = (),
    **keywords: Any,
) -> AsyncIterator[Child]:
    """A worker process that has opened its study; see `tests.contract.workers.fault`."""
    gates = {"go_on": go_on, "may_end": may_end}
    given: dict[str, Any] = {name: str(gate.path) for name, gate in gates.items() if gate is not None}
    given |= {"function": function, "ran": str(ran.path), "marks": marks or {}, "keywords": keywords}
    given["limits"] = {"asyncexp.writer.FLUSH_LIMIT_SECONDS": 1.5, **(limits or {})}
    study = {"keyfields": keyfields, "execution": execution}
    async with child("fault", folder, target, json.dumps(given), through=through, **study) as process:
        assert await process.told() == ["open"]
        yield process


@contextmanager
def away(target: Target, request: pytest.FixtureRequest) -> Iterator[None]:
    """The database is away: its server stopped, its file locked."""
    if target.provider == "sqlite":
        with closing(sqlite3.connect(target.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
        return
    server: Server = request.getfixturevalue("server")
    server.stop()
    try:
        yield
    finally:
        server.start()


async def heard(process: Child, words: str) -> None:
    """Returns when a worker has said so in its log."""
    while True:
        kind, *rest = await process.told()
        assert kind == "log", f"it ended without a word of {words!r}: {rest}"
        if words in rest[0]:
            return


async def end_of(process: Child) -> dict[str, Any]:
    """A worker's summary."""
    while True:
        kind, *rest = await process.told()
        if kind == "ended":
            summary: dict[str, Any] = rest[0]
            return summary
