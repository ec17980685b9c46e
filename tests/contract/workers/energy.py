"""A worker whose tracker measures before it is told to go; then it computes, one experiment after the other."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any

from asyncexp import SyncResultProcessor
from tests.contract.support import eventually
from tests.contract.workers.common import say, study, wait_for_word


def computes(keys: dict[str, Any], results: SyncResultProcessor, _: dict[str, Any]) -> None:
    until = time.monotonic() + 0.4
    while time.monotonic() < until:
        sum(range(1000))


async def main() -> None:
    async with study() as experimenter:
        await experimenter.execute(computes, max_experiments=0)
        [session] = experimenter._sessions.values()
        energy = session.energy
        assert energy is not None
        await eventually(lambda: energy.is_warm)
        say("ready")
        await asyncio.to_thread(wait_for_word)
        summary = await experimenter.execute(computes, pool="task", progress=False)
    say(asdict(summary))


if __name__ == "__main__":
    asyncio.run(main())
