"""What commands share that go on until Ctrl-C: their end, and databases that are away for a while."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from asyncexp.cli import output
from asyncexp.cli.codes import OK

PATIENCE_SECONDS = 3.0
"""After Ctrl-C so long the end waits for the database."""


async def until_ctrl_c(work: Coroutine[Any, Any, int | None]) -> int | None:
    """What `work` returns. Ctrl-C is its normal end, also where a database that does not answer holds it up."""
    try:
        return await work
    except asyncio.CancelledError:
        return OK


@contextmanager
def ends_soon() -> Iterator[None]:
    """Once interrupted, the process ends in a few seconds: whoever only reads has nothing to lose."""
    try:
        yield
    except asyncio.CancelledError:
        timer = threading.Timer(PATIENCE_SECONDS, os._exit, (OK,))
        timer.daemon = True
        timer.start()
        raise


class Away:
    """Says once that the database is away, and once that it is back."""

    def __init__(self) -> None:
        self._away = False

    def told(self, failure: Exception) -> None:
        if not self._away:
            output.note(f"the database does not answer, trying on: {failure}")
        self._away = True

    def back(self) -> None:
        if self._away:
            output.note("the database answers again")
        self._away = False
