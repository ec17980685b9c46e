"""A forked child and what it inherits: nothing of it is touched, and nothing is said of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncexp.db.base import Target
from tests.studies import write_configuration, write_credentials

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = """
import gc, os, sys, threading
from asyncexp.sync import PyExperimenter

experimenter = PyExperimenter(*sys.argv[1:], log_level="WARNING")
experimenter.fill_table_from_config()
begun, forked = threading.Event(), threading.Event()

def run(keyfields, results, custom):
    results.process_logs({"steps": {"step": 1}})
    begun.set()
    forked.wait()

def fork():
    if not (child := os.fork()):
        CHILD
        gc.collect()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0

thread = threading.Thread(target=lambda: print(experimenter.execute(run).done, flush=True))
thread.start()
begun.wait()
fork()
forked.set()
thread.join()
fork()
"""


@pytest.mark.parametrize("child", ["assert sum(experimenter.counts().values()) == 10", "del globals()['experimenter']"])
def test_a_forked_child_says_nothing_of_what_it_inherited(target: Target, tmp_path: Path, child: str) -> None:
    configuration, credentials = write_configuration(tmp_path, target, n_jobs=1), write_credentials(tmp_path, target)
    (tmp_path / "script.py").write_text(SCRIPT.replace("CHILD", child))
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py", *map(str, filter(None, (configuration, credentials)))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "10\n", "")
