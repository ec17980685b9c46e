"""One worker of the storm, as a process of its own: its arguments are its configuration, credentials and role (JSON).

With `machine` it takes itself for one on a machine of its own, so that only its lease tells others that it is dead.
With `limit_seconds` an answer counts as lost after so long; its link is a bad one. At SIGUSR1 it tells where each of
its threads is, at SIGUSR2 each of its tasks.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import asyncexp.provenance
import asyncexp.writer
from asyncexp import Experimenter
from asyncexp.db import whole
from asyncexp.db.whole import WholeDatabase
from tests.chaos.experiments import as_task, plainly


@dataclass(frozen=True, slots=True)
class Role:
    """What a worker does; it travels as JSON."""

    function: str
    keywords: dict[str, Any]
    """Of `execute`."""
    machine: str | None = None
    limit_seconds: float | None = None

    def packed(self) -> str:
        return json.dumps(asdict(self))


def _pretend(role: Role) -> None:
    machine, limit = role.machine, role.limit_seconds
    if machine is not None:
        asyncexp.provenance.machine = lambda: f"{machine}-{os.getpid()}"
    if limit is not None:
        asyncexp.writer.FLUSH_LIMIT_SECONDS = limit
        for call in (WholeDatabase.run, WholeDatabase.alone, WholeDatabase.fetch, WholeDatabase.execute):
            call.__kwdefaults__ = dict(call.__kwdefaults__ or {}, limit_seconds=limit)


def _tell_tasks() -> None:
    for task in [*asyncio.all_tasks(), *whole._unseen]:
        if not task.done():
            task.print_stack()


async def main() -> None:
    faulthandler.register(signal.SIGUSR1)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, _tell_tasks)
    configuration, credentials, packed = sys.argv[1:]
    role = Role(**json.loads(packed))
    _pretend(role)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("asyncexp-chaos").setLevel(logging.INFO)
    experimenter = Experimenter(configuration, credentials or None, logger_name="asyncexp-chaos")
    functions: dict[str, Callable[..., Any]] = {"as_task": as_task, "plainly": plainly}
    try:
        await experimenter.execute(functions[role.function], until="finished", progress=False, **role.keywords)
    finally:
        await experimenter.aclose()


if __name__ == "__main__":
    asyncio.run(main())
