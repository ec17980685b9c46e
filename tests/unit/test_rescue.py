"""Which processes of this machine are gone, also where `/proc` does not show those of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from asyncexp.rescue import is_gone
from tests.contract.support import PROJECT


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_process_is_gone_when_it_is_dead_buried_or_not() -> None:
    with sleeper() as process:
        assert not is_gone(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and left as it is
        assert is_gone(process.pid)
        process.wait()
        assert is_gone(process.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide processes")
def test_a_hidden_process_of_somebody_else_is_not_gone() -> None:
    drop = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    program = f"import os, psutil; from asyncexp.rescue import is_gone; {drop}; print(is_gone({os.getpid()}))"
    hide = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-c", program]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (said.stdout, said.stderr) == ("False\n", "")
