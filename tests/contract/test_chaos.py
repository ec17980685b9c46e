"""A few seconds of `make chaos` on each database: real workers, killed, frozen and cut off, and an audit at the end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.contract.support import PROJECT

SECONDS = 7
"""Of storm; starting servers and workers, and letting the workers finish, takes about twice as long."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_storm_loses_nothing_and_does_nothing_twice(provider: str) -> None:
    """Its seed is random, and printed."""
    command = [sys.executable, "-m", "tests.chaos", "--seconds", str(SECONDS), "--database", provider]
    done = subprocess.run(command, cwd=PROJECT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert "nothing lost, nothing done twice" in done.stdout
