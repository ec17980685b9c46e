"""Makes the tables of its configuration when told to, and says when they are there."""

from __future__ import annotations

import asyncio

from tests.contract.workers.common import say, study, wait_for_word


async def main() -> None:
    async with study() as experimenter:
        say("ready")
        wait_for_word()
        await experimenter.create_table()
        say("made")


if __name__ == "__main__":
    asyncio.run(main())
