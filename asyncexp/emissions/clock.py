"""CPU times of this process, of each process below it, and of the whole machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds of CPU so far."""

    at: float
    """`time.monotonic()`"""
    busy: float
    """Of the whole machine."""
    own: float
    """Of this process and all that it started."""
    trees: Mapping[int, float]
    """The same of each process below this one."""


class Clock:
    """Reads CPU times; they never run backwards."""

    def __init__(self) -> None:
        self._told: dict[int, float] = {}
        self._gone: dict[int, float] = {}
        """What is missing for good, of each process."""
        self._behind: set[int] = set()
        """Those of which something was missing at the last look."""

    def read(self) -> Reading:
        at = time.monotonic()
        trees: dict[int, float] = {}
        me = os.getpid()
        own = time.process_time() + sum(os.times()[2:4]) + sum(_tree(pid, trees) for pid in _children(me))
        self._told = {pid: self._forward(pid, seconds) for pid, seconds in {**trees, me: own}.items()}
        self._gone = {pid: seconds for pid, seconds in self._gone.items() if pid in self._told}
        self._behind &= self._told.keys()
        return Reading(at, busy_seconds(), self._told[me], self._told)

    def _forward(self, pid: int, seconds: float) -> float:
        told, now = self._told.get(pid, 0.0), seconds + self._gone.get(pid, 0.0)
        if now >= told:
            self._behind.discard(pid)
            return now
        # Who dies between two looks is missing until its parent has it in its own account. Who is missing at a second
        # look stays so: an orphan, whose parent was killed. What is used from here on is not to be hidden by that.
        if pid in self._behind:
            self._gone[pid] = told - seconds
        self._behind.add(pid)
        return told


def busy_seconds() -> float:
    """CPU time that the machine has spent on anything."""
    import psutil

    times = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq")
    return sum(float(getattr(times, name, 0.0)) for name in names)


def _tree(pid: int, trees: dict[int, float]) -> float:
    trees[pid] = total = _process_seconds(pid) + sum(_tree(child, trees) for child in _children(pid))
    return total


def _process_seconds(pid: int) -> float:
    """Of one process, and of those of its children that have ended; 0.0 if it has gone."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return sum(map(int, rest[11:15])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return _process_seconds_elsewhere(pid) if not _HAS_PROC else 0.0


def _process_seconds_elsewhere(pid: int) -> float:
    import psutil

    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _children(pid: int) -> list[int]:
    if not _LISTS_CHILDREN:
        return _children_elsewhere(pid)
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError):
                found += map(int, (thread / "children").read_bytes().split())
    return found


def _children_elsewhere(pid: int) -> list[int]:
    import psutil

    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children()]
    return []


_HAS_PROC = Path("/proc/self/stat").exists()
_LISTS_CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children").exists()
