"""Fills the grid of its configuration when told to, and says how many rows it added and how many existed."""

from __future__ import annotations

import asyncio

from tests.contract.workers.common import say, study, wait_for_word


async def main() -> None:
    async with study() as experimenter:
        say("ready")
        wait_for_word()
        filled = await experimenter.fill_table_from_config()
        say([filled.added, filled.existed])


if __name__ == "__main__":
    asyncio.run(main())
