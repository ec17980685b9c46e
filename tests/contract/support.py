"""What several contract tests need: SQL audits, waiting for a condition, and worker processes.

The audits read the tables directly, so that a test does not believe what the code under test says of itself.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from asyncexp.db.base import Target
from tests.contract.sql import fetch as sql
from tests.studies import write_configuration, write_credentials

Keys = dict[str, Any]
PROJECT = Path(__file__).resolve().parents[2]


def numbers(count: int) -> dict[str, Any]:
    """One keyfield, `number`, from 0 to `count` - 1: experiment ID = number + 1."""
    return {"number": {"type": "INT", "values": {"start": 0, "stop": count}}}


# --------------------------------------------------------------------------------------------- SQL


async def statuses(target: Target) -> dict[str, int]:
    rows = await sql(target, 'SELECT "status", COUNT(*) FROM "experiments" GROUP BY "status"')
    return {str(status): int(count) for status, count in rows}


async def audit(target: Target) -> dict[str, int]:
    """Checks what must hold when nothing runs; how many rows are in each status.

    Nothing is `running`, every end has a start, every attempt ended exactly once (as `done`, or as one line
    of `_attempts`), and every log line belongs to an attempt that there was.
    """
    found = await statuses(target)
    assert "running" not in found, found
    ended = "\"status\" IN ('done', 'error', 'paused')"
    assert not await sql(
        target, f'SELECT "ID" FROM "experiments" WHERE {ended} AND ("start_date" IS NULL OR "end_date" IS NULL)'
    )
    others = 'SELECT COUNT(*) FROM "experiments_attempts" WHERE "experiment_id" = "experiments"."ID"'
    done = "CASE WHEN \"status\" = 'done' THEN 1 ELSE 0 END"
    wrong = await sql(
        target,
        f'SELECT "ID", "status", "_attempt", ({others}) FROM "experiments" WHERE "_attempt" <> ({others}) + {done}',
    )
    assert not wrong, f"attempts that ended never or twice: {wrong}"
    doubled = 'SELECT "experiment_id", "attempt" FROM "experiments_attempts" GROUP BY 1, 2 HAVING COUNT(*) > 1'
    assert not await sql(target, doubled)
    stray = (
        'SELECT "line"."ID" FROM "experiments__steps" AS "line" LEFT JOIN "experiments" AS "row" '
        'ON "row"."ID" = "line"."experiment_id" WHERE "row"."ID" IS NULL OR "line"."_attempt" > "row"."_attempt"'
    )
    assert not await sql(target, stray)
    return found


async def eventually(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 30.0) -> None:
    """Returns when the condition holds; fails when it does not in time."""
    end = time.monotonic() + seconds
    while True:
        held = condition()
        if await held if inspect.isawaitable(held) else held:
            return
        assert time.monotonic() < end, f"not within {seconds} s: {inspect.getsource(condition).strip()}"
        await asyncio.sleep(0.01)


# ----------------------------------------------------------------------------------------- processes


LABEL = re.compile(rb"^\[[0-9]+\] (?=\[)")
"""What stands before a line that an experiment prints in a child process."""


class Child:
    """A worker process; it speaks JSON lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def told(self) -> Any:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 100)
        assert line, "the worker process ended without a word; see its stderr"
        return json.loads(LABEL.sub(b"", line))

    async def tell(self, word: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        await self.process.stdin.drain()

    async def ended(self) -> int:
        """Its exit code."""
        return await asyncio.wait_for(self.process.wait(), 100)


@asynccontextmanager
async def child(
    script: str,
    folder: Path,
    target: Target,
    *arguments: str,
    through: Sequence[str] = (),
    ssh: Mapping[str, Any] | None = None,
    **study: Any,
) -> AsyncIterator[Child]:
    """Starts `tests.contract.workers.<script>` on a study, `through` another command; it has ended afterwards."""
    configuration = write_configuration(folder, target, use_ssh_tunnel=ssh is not None, **study)
    credentials = write_credentials(folder, target, ssh)
    process = await asyncio.create_subprocess_exec(
        *(*through, sys.executable, "-W", "error", "-m", f"tests.contract.workers.{script}"),
        *(str(configuration), str(credentials or ""), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=PROJECT,
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
