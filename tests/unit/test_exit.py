"""A worker whose first sign of life comes when the interpreter already ends."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from asyncexp.db.base import Target
from tests.studies import write_configuration

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = """
import asyncio
import concurrent.futures.thread

from asyncexp.store import workers
from asyncexp.sync import PyExperimenter

beat = workers.beat

async def late(*arguments):
    while not concurrent.futures.thread._shutdown:
        await asyncio.sleep(0.005)
    await asyncio.get_running_loop().getaddrinfo("localhost", 1)
    return await beat(*arguments)

workers.beat = late
experimenter = PyExperimenter("configuration.yml", log_level="WARNING")
experimenter.fill_table_from_config()
experimenter.execute(lambda *_: None, max_experiments=10)  # without a last look, which would wait for a sign of life
"""


def test_a_sign_of_life_while_the_interpreter_ends_tells_all_and_breaks_nothing(
    sqlite_target: Target, tmp_path: Path
) -> None:
    write_configuration(tmp_path, sqlite_target, n_jobs=1)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with closing(sqlite3.connect(sqlite_target.database)) as connection:
        told = connection.execute("SELECT stopped IS NOT NULL, ended_done FROM experiments_workers").fetchall()
    assert told == [(1, 10)]
