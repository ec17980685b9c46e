"""One side of S2: procrastinate works off jobs that do nothing. Knows nothing of asyncexp.

    DATABASE_URL=<of an empty PostgreSQL database> python peer_procrastinate.py <jobs> <concurrency>

Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from importlib.metadata import version

from procrastinate import App, PsycopgConnector

DEFERRED_AT_ONCE = 1_000


async def work(url: str, jobs: int, concurrency: int) -> dict[str, object]:
    app = App(connector=PsycopgConnector(conninfo=url))
    done: list[int] = []

    @app.task(name="no_op")
    async def no_op(number: int) -> None:
        done.append(number)

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for start in range(0, jobs, DEFERRED_AT_ONCE):
            numbers = range(start, min(start + DEFERRED_AT_ONCE, jobs))
            await no_op.batch_defer_async(*({"number": number} for number in numbers))
        began = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=concurrency, install_signal_handlers=False)
        seconds = time.perf_counter() - began
        [ended] = await app.connector.execute_query_all_async(
            "SELECT COUNT(*) AS jobs FROM procrastinate_jobs WHERE status = 'succeeded'"
        )
    assert ended["jobs"] == jobs, ended
    return {"version": version("procrastinate"), "seconds": seconds, "done": len(set(done))}


if __name__ == "__main__":
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    print(json.dumps(asyncio.run(work(os.environ["DATABASE_URL"], int(sys.argv[1]), int(sys.argv[2])))))
