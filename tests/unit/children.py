"""What the tests of the process pool share: studies on SQLite, and what their experiments told."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from asyncexp import Experimenter
from asyncexp.db.base import Target
from tests.contract.sql import fetch as sql

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
