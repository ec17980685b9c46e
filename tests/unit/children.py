"""What the tests of the process pool share: studies on SQLite, and what their experiments told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncexp import Experimenter
from asyncexp.db.base import Target
from tests.contract.sql import fetch as sql
from tests.contract.support import PROJECT

Study = Callable[..., Awaitable[Experimenter]]


async def told(target: Target) -> list[Any]:
    """What the experiments wrote into `text`, as JSON, in the order of their rows; fails if one failed."""
    rows = await sql(target, 'SELECT "text", "error" FROM "experiments" ORDER BY "ID"')
    assert [error for _, error in rows if error is not None] == []
    return [None if text is None else json.loads(text) for text, _ in rows]


async def errors(target: Target) -> list[str]:
    """The `error` of each row, empty if it has none."""
    return [text or "" for (text,) in await sql(target, 'SELECT "error" FROM "experiments" ORDER BY "ID"')]


async def some_done(target: Target, count: int) -> bool:
    """Whether so many rows are done."""
    [(found,)] = await sql(target, 'SELECT COUNT(*) FROM "experiments" WHERE "status" = \'done\'')
    return int(found) >= count


def _hear_ctrl_c() -> None:
    """A shell lets what it runs in the background ignore Ctrl-C, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def program(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`python …` under way in that folder; its process group, its own, is killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_ctrl_c,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
