"""One side of S2: pgqueuer drains a queue of jobs that do nothing. Knows nothing of asyncexp.

    DATABASE_URL=<of an empty PostgreSQL database> python peer_pgqueuer.py <jobs> <batch size>

Durable tables, asyncpg, and uvloop, as its own command line runs. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

ENQUEUED_AT_ONCE = 5_000


async def drain(url: str, jobs: int, batch_size: int) -> dict[str, object]:
    connection = await asyncpg.connect(url)
    try:
        queries = Queries(AsyncpgDriver(connection))
        await queries.install()
        for start in range(0, jobs, ENQUEUED_AT_ONCE):
            numbers = range(start, min(start + ENQUEUED_AT_ONCE, jobs))
            payloads: list[bytes | None] = [str(number).encode() for number in numbers]
            await queries.enqueue(["no_op"] * len(payloads), payloads, [0] * len(payloads))
        done: list[bytes | None] = []
        queue = PgQueuer.from_asyncpg_connection(connection)

        @queue.entrypoint("no_op")
        async def no_op(job: Job) -> None:
            done.append(job.payload)

        began = time.perf_counter()
        await queue.run(batch_size=batch_size, mode=QueueExecutionMode.drain)
        seconds = time.perf_counter() - began
        left = await connection.fetchval("SELECT COUNT(*) FROM pgqueuer")
    finally:
        await connection.close()
    assert left == 0, left
    return {"version": version("pgqueuer"), "seconds": seconds, "done": len(set(done))}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(drain(os.environ["DATABASE_URL"], int(sys.argv[1]), int(sys.argv[2])))))
