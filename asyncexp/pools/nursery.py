"""The process that starts a pool's children and takes them along when it ends.

It is small, has one thread and imports nothing of the user's, so that forking a child from it is quick and
safe. It sees its parent's death, however that came about, and then kills every child's process group and
whatever else descends from it; its own death kills the children, too.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncexp.pools import child
from asyncexp.pools.frames import Frames, packed

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
TO_A_WHOLE_JOB = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What SLURM, systemd and terminals send to every process of a job is for the parent to answer, which ends this one."""
CHUNK = 65536
MOST_DESCRIPTORS = 64
LAST_LOOK_SECONDS = 5.0
"""How long at most it looks for descendants that do not die."""
OOM_SCORE = 500
"""The kernel that runs out of memory takes a child first: that costs one experiment."""


@dataclass
class Nursery:
    """What the nursery knows of its children."""

    link: socket.socket
    children: dict[int, int] = field(default_factory=dict)
    """Process id -> the parent's name for that child."""
    frames: Frames = field(default_factory=Frames)
    descriptors: list[int] = field(default_factory=list)
    """Received, not yet given to a child."""

    def tell(self, *message: Any) -> None:
        with suppress(OSError):  # the parent is gone; that is noticed where it is waited for
            self.link.sendall(packed(message))


def run(link: socket.socket, parent: int, given: child.Given) -> None:
    """Serves the parent until it ends, or says so; returns in a child, when that is to end."""
    _fill_standard_streams()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wakes = _watch_children()
    life = _watch(parent)
    nursery = Nursery(link)
    poll = select.poll()
    for waited in (link.fileno(), wakes[0], *life):
        poll.register(waited, select.POLLIN)
    ready: set[int] = set()
    while ready.isdisjoint(life) and os.getppid() == parent:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if wakes[0] in ready:
            _drain(wakes[0])
            _bury(nursery)
        if link.fileno() in ready:
            order = _obey(nursery)
            if order is None:
                break
            if isinstance(order, child.Birth):
                for descriptor in (*wakes, *life, link.detach()):
                    os.close(descriptor)
                child.live(order, given)
                return
    _end(nursery)
    os._exit(0)


def _fill_standard_streams() -> None:
    """Opens what the parent had closed: a descriptor that comes must not land there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _watch_children() -> tuple[int, int]:
    reads, writes = os.pipe()
    for end in (reads, writes):
        os.set_blocking(end, False)
    for number in (signal.SIGCHLD, *TO_A_WHOLE_JOB):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    return reads, writes


def _watch(parent: int) -> list[int]:
    # Not the end of the stream alone: a process that the parent forked holds the other end, too.
    if not hasattr(os, "pidfd_open"):  # no Linux
        return []
    try:
        return [os.pidfd_open(parent)]
    except OSError:  # it is gone already, or the kernel is older than 5.3
        return []


def _drain(descriptor: int) -> None:
    with suppress(BlockingIOError):
        while os.read(descriptor, CHUNK):
            continue


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


# ------------------------------------------------------------------------------------------ orders


def _obey(nursery: Nursery) -> child.Birth | bool | None:
    """Does what the parent asks; None: end; in a new child what it was born with."""
    try:
        data, descriptors, _, _ = socket.recv_fds(nursery.link, CHUNK, MOST_DESCRIPTORS)
    except OSError:
        return None
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # what an experiment starts is not to hold the line to its parent
    nursery.descriptors += descriptors
    if not data:
        return None
    for message in nursery.frames.feed(data):
        match message:
            case ("fork", name, env):
                birth = _fork(nursery, name, env)
                if birth is not None:
                    return birth
            case ("kill", name):
                _kill(nursery, name)
            case _:
                return None
    return True


def _fork(nursery: Nursery, name: int, env: dict[str, str]) -> child.Birth | None:
    given, nursery.descriptors = nursery.descriptors[:3], nursery.descriptors[3:]
    mother = os.getpid()
    try:
        pid = os.fork()
    except OSError as failure:
        nursery.tell("failed", name, str(failure))
        pid = -1
    if pid == 0:
        _grow_up(mother, nursery, given)
        return child.Birth(given[0], env)
    for descriptor in given:
        os.close(descriptor)
    if pid > 0:
        nursery.children[pid] = name
        nursery.tell("forked", name, pid)
    return None


def _grow_up(mother: int, nursery: Nursery, given: list[int]) -> None:
    os.setsid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != mother:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in nursery.descriptors:
        os.close(descriptor)
    for target, descriptor in zip((1, 2), given[1:], strict=True):
        os.dup2(descriptor, target)
        os.close(descriptor)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")


def _kill(nursery: Nursery, name: int) -> None:
    """Kills a child with its group, and with what it started that has left that."""
    for pid, known in nursery.children.items():
        if known == name:
            started = _descendants(pid)
            _kill_group(pid)
            _kill_each(started)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):  # so young that it has no group of its own yet
        os.kill(pid, signal.SIGKILL)


def _bury(nursery: Nursery) -> None:
    """Reaps the dead, and tells the parent of its children."""
    while (dead := _reaped(nursery)) is not None:
        pid, status = dead
        name = nursery.children.pop(pid, None)
        if name is not None:
            nursery.tell("dead", name, os.waitstatus_to_exitcode(status))


def _reaped(nursery: Nursery) -> tuple[int, int] | None:
    """The next that has died, and its status; what is left of its group is killed."""
    try:
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in nursery.children:
                _kill_group(pid)
            return (pid, status) if pid else None
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if found is None:
        return None
    if found.si_pid in nursery.children:  # while it is unreaped nobody else has its number
        _kill_group(found.si_pid)
    return os.waitpid(found.si_pid, 0)


def _end(nursery: Nursery) -> None:
    """Kills whatever descends from here, also what has left its group: orphans come to this process."""
    until = time.monotonic() + LAST_LOOK_SECONDS
    while time.monotonic() < until:
        for pid in nursery.children:
            _kill_group(pid)
        left = {*nursery.children, *_children_of(os.getpid())}
        _kill_each(left)
        _bury(nursery)
        if not left:
            return
        select.select([], [], [], 0.002)


def _kill_each(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        found += _children_of(each)
    return found[1:]


def _children_of(pid: int) -> list[int]:
    """Empty where the system does not tell them."""
    try:
        listed = [tell.read_text(encoding="ascii") for tell in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for children in listed for child in children.split()]
