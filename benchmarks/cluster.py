"""What a cluster of workers costs one server: `python -m benchmarks.cluster [--workers 1000] [postgresql|mysql]`.

Each worker is an `Experimenter` in `execute` with one `async def` experiment that sleeps, at the default interval and
lease; fifty of them share a process (see `cluster_workers`). Counted is what reaches the server, by its own counters:
when all start at once, while all only beat, while all but one wait for the last row (`until="finished"`), and when
all end. That no row was lost and nobody taken for dead is seen at the end, or there are no figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import psutil
from rich.console import Console
from rich.table import Table

from asyncexp.db.base import Target
from benchmarks import cluster_workers, machine, study
from benchmarks.places import SHOWN, Place
from benchmarks.processes import Child, child
from tests.servers import MariadbServer, PostgresServer, Server

RESULTS = Path(__file__).with_name("results")
PAPER = 110
"""Columns of the table where there is no terminal."""
STEPS = (100, 300)
"""Smaller clusters that are measured before, so that one sees how it grows."""
IN_ONE_PROCESS = 50
INTERVAL_SECONDS = 15.0
WAITING_SECONDS = 20.0
"""At most so long the workers are watched while they wait."""
SAMPLE_SECONDS = 0.5
SETTLE_SECONDS = 30.0
SHOWN_LINES = 5
"""Of the workers' log."""
PER_WORKER = 3
"""Connections that the server allows for each."""

Figures = dict[str, Any]
T = TypeVar("T")


# --------------------------------------------------------------------------------------- the server


class Gauge(ABC):
    """Reads off a server what reaches it and what it takes."""

    name: ClassVar[str]

    def __init__(self, server: Server, pid: int) -> None:
        self.server = server
        self._process = psutil.Process(pid)
        self._own: Counter[str] = Counter()

    def calibrate(self, database: str) -> None:
        """Learns, while nobody else is there, what a reading itself adds to the counters."""
        first = self._counters(database)
        self._own = self._counters(database)
        self._own.subtract(first)

    def statements(self, database: str, since: Counter[str]) -> Counter[str]:
        """How many of each kind reached the server after an earlier reading of its counters."""
        now = self._counters(database)
        now.subtract(since)
        now.subtract(self._own)
        return +now

    def counters(self, database: str) -> Counter[str]:
        return self._counters(database)

    @abstractmethod
    def _counters(self, database: str) -> Counter[str]: ...

    @abstractmethod
    def connections(self, database: str) -> int:
        """How many clients are in that database."""

    def cpu_seconds(self) -> float:
        """Of all its processes so far, those that have ended included."""
        own = self._process.cpu_times()
        total = own.children_user + own.children_system
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                total += self._cpu_seconds(process)
        return float(total)

    def _cpu_seconds(self, process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    def memory_mb(self) -> float:
        """Of all its processes together, shared pages once."""
        total = 0
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total / 1e6

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]


class Postgres(PostgresServer):
    """A server that lets many in and counts statements."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        super().__init__(durable=True)

    def command(self) -> list[str]:
        settings = {"max_connections": self._connections, "shared_preload_libraries": "pg_stat_statements"}
        return [*super().command(), *(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))]

    def gauge(self) -> Gauge:
        assert self._process is not None
        self.sql("CREATE EXTENSION pg_stat_statements")
        return PostgresGauge(self, self._process.pid)


class PostgresGauge(Gauge):
    def _cpu_seconds(self, process: psutil.Process) -> float:
        # A process a connection, which beats for a millisecond: the times that psutil knows come in steps of ten.
        exact = Path(f"/proc/{process.pid}/schedstat")
        with suppress(OSError):
            return int(exact.read_text().split()[0]) / 1e9
        return super()._cpu_seconds(process)

    def _counters(self, database: str) -> Counter[str]:
        rows = self.server.sql(
            "SELECT upper(substring(query FROM '[A-Za-z]+')), CAST(SUM(calls) AS bigint) FROM pg_stat_statements "
            f"JOIN pg_database ON pg_database.oid = dbid WHERE datname = '{database}' GROUP BY 1"
        )
        return Counter(dict(rows))

    def connections(self, database: str) -> int:
        [(count,)] = self.server.sql(
            f"SELECT COUNT(*) FROM pg_stat_activity WHERE datname = '{database}' AND backend_type = 'client backend'"
        )
        return int(count)


class Mariadb(MariadbServer):
    """A server that lets many in, and works for as many at once as it has cores.

    With a thread for each connection, which is MariaDB's default, 600 claims at once on two cores get into each other's
    way inside InnoDB: for half a minute none is answered.
    """

    def __init__(self, connections: int) -> None:
        self._connections = connections
        super().__init__(durable=True)

    def command(self) -> list[str]:
        return [*super().command(), f"--max-connections={self._connections}", "--thread-handling=pool-of-threads"]

    def gauge(self) -> Gauge:
        assert self._process is not None
        return MariadbGauge(self, self._process.pid)


class MariadbGauge(Gauge):
    def _counters(self, database: str) -> Counter[str]:  # noqa: ARG002  (they are the whole server's)
        counters = Counter({name: int(value) for name, value in self.server.sql("SHOW GLOBAL STATUS LIKE 'Com\\_%'")})
        kinds = Counter({name.removeprefix("Com_").upper(): count for name, count in counters.items() if count})
        [(_, questions)] = self.server.sql("SHOW GLOBAL STATUS LIKE 'Questions'")
        kinds["OTHER"] = int(questions) - kinds.total()
        return kinds

    def connections(self, database: str) -> int:
        return len(self.server.sessions(database))


SERVERS: dict[str, type[Postgres] | type[Mariadb]] = {"postgresql": Postgres, "mysql": Mariadb}


@contextmanager
def started(provider: str, workers: int) -> Iterator[tuple[Place, Gauge]]:
    """A private server for so many workers, in earnest about the disk, and what reads it."""
    server = SERVERS[provider](PER_WORKER * workers + 50)
    try:
        yield Place(provider, server), server.gauge()
    finally:
        server.remove()


# -------------------------------------------------------------------------------------- the cluster


@dataclass
class Cluster:
    """Worker processes that all do the same at the same time."""

    children: Sequence[Child]
    sizes: Sequence[int]
    """How many workers each holds."""
    hello: Sequence[Figures] = field(init=False)

    def __post_init__(self) -> None:
        self.hello = [one.hear() for one in self.children]

    def all(self, do: str, **told: Any) -> list[Figures]:
        for one in self.children:
            one.tell(do=do, **told)
        return [one.hear() for one in self.children]

    def claim(self) -> list[Figures]:
        for one, size in zip(self.children, self.sizes, strict=True):
            one.tell(do="claim", workers=size, rows=1)
        return [one.hear() for one in self.children]

    def cpu_seconds(self) -> float:
        """Of all of them so far, and of the programs that they have called."""
        times = [psutil.Process(hello["pid"]).cpu_times() for hello in self.hello]
        return float(sum(one.user + one.system + one.children_user + one.children_system for one in times))


@contextmanager
def cluster(folder: Path, workers: int, interval_seconds: float, *, one_machine: bool) -> Iterator[Cluster]:
    """Processes with so many workers, ready to start."""
    sizes = [min(IN_ONE_PROCESS, workers - first) for first in range(0, workers, IN_ONE_PROCESS)]
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                child("cluster_workers", str(folder), "0" if one_machine else str(n), str(size), str(interval_seconds))
            )
            for n, size in enumerate(sizes, 1)
        ]
        yield Cluster(children, sizes)


class Peak:
    """Counts connections every now and then, in a thread."""

    def __init__(self, gauge: Gauge, database: str) -> None:
        self.most = 0
        self._gauge, self._database = gauge, database

    @contextmanager
    def watched(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._sample, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.look()

    def look(self) -> int:
        now = self._gauge.connections(self._database)
        self.most = max(self.most, now)
        return now

    def _sample(self, over: threading.Event) -> None:
        while not over.wait(SAMPLE_SECONDS):
            self.look()


# ------------------------------------------------------------------------------------- the measures


@dataclass(frozen=True)
class Measure:
    """One cluster on one database, from its start to its end."""

    gauge: Gauge
    target: Target
    crew: Cluster
    workers: int
    peak: Peak
    idle_mb: float

    def start(self) -> Figures:
        """All at once; each opens its connections, sees to the tables, signs in and claims a row."""
        before = self.gauge.counters(self.target.database)
        cpu, crew, began = self.gauge.cpu_seconds(), self.crew.cpu_seconds(), time.time()
        with self.peak.watched():
            told = self.crew.claim()
        seconds = max(one["at"] for one in told) - began
        cpu, crew = self.gauge.cpu_seconds() - cpu, self.crew.cpu_seconds() - crew
        sent = self.gauge.statements(self.target.database, before)
        return {
            "start_seconds": seconds,
            "claims_a_second": self.workers / seconds,
            "start_server_ms_each": cpu / self.workers * 1e3,
            "start_worker_ms_each": crew / self.workers * 1e3,
            "start_statements_each": sent.total() / self.workers,
            "start_statements": dict(sent),
        }

    def beat(self, seconds: float) -> Figures:
        """All sleep; signs of life, and now and then a look for the dead."""
        self._settle()
        told, connections = self._watch(seconds), self.peak.look()
        sent: Counter[str] = told["statements"]
        weights = self.crew.all("weigh")
        return {
            "connections": connections,
            "connections_each": connections / self.workers,
            "server_mb_a_connection": (self.gauge.memory_mb() - self.idle_mb) / connections,
            **{f"{name}_each": self._grown(weights, name) / self.workers for name in ("threads", "files", "memory_mb")},
            "beats_a_second": sent["UPDATE"] / told["seconds"],
            "beats_in_one_second": self._densest(),
            "statements_a_second": sent.total() / told["seconds"],
            "commits_a_second": sent["COMMIT"] / told["seconds"],
            "server_core_percent": told["server_core_percent"],
            "worker_core_percent": told["workers_core_percent"] / self.workers,
            "beat_seconds": told["seconds"],
            "beat_statements": dict(sent),
        }

    def wait(self, seconds: float, rows: int) -> Figures:
        """One runs the last rows, all others wait for them."""
        leader = self.crew.children[0]
        leader.tell(do="claim", workers=1, rows=rows)
        leader.hear()
        wanted = 2 * self.workers
        for one, size in zip(self.crew.children, self.crew.sizes, strict=True):
            new = size - (one is leader)
            one.tell(do="queue", skip=size - new)
            one.hear()
            wanted += new
            self._reach(wanted)
        told = self._watch(seconds)
        sent: Counter[str] = told["statements"]
        return {
            "waiting_connections_each": self.peak.look() / self.workers,
            "waiting_statements_a_second": sent.total() / told["seconds"],
            "waiting_commits_a_second": sent["COMMIT"] / told["seconds"],
            "waiting_server_core_percent": told["server_core_percent"],
            "waiting_worker_core_percent": told["workers_core_percent"] / self.workers,
            "waiting_statements": dict(sent),
        }

    def wake(self) -> tuple[int, float]:
        """All experiments end; how many, and how long it takes until all calls have returned."""
        began = time.monotonic()
        with self.peak.watched():
            done = sum(one["done"] for one in self.crew.all("wake"))
        return done, time.monotonic() - began

    def close(self) -> Figures:
        """All workers end; what their processes still hold that they did not before is a leak."""
        began = time.monotonic()
        with self.peak.watched():
            told = self.crew.all("close")
        seconds = time.monotonic() - began
        left = {f"{name}_left": self._grown(told, name) for name in ("threads", "files")}
        return {"close_seconds": seconds, "connections_left": self.peak.look(), **left}

    def fates(self) -> Figures:
        """What became of the workers, and the attempts that were lost."""
        [(workers, stopped, rescued)] = study.run(
            study.ask(
                self.target,
                f'SELECT COUNT(*), COUNT("stopped"), COUNT("rescued") FROM "{study.TABLE}_workers"',
            )
        )
        [(lost,)] = study.run(study.ask(self.target, f'SELECT COUNT(*) FROM "{study.TABLE}_attempts"'))
        return {"workers_stopped": stopped, "worker_rows": workers, "taken_for_dead": rescued, "attempts_lost": lost}

    def _grown(self, told: Sequence[Figures], name: str) -> float:
        """What the processes hold more than before they had workers."""
        return float(sum(now[name] - then[name] for now, then in zip(told, self.crew.hello, strict=True)))

    def _watch(self, seconds: float) -> Figures:
        """What reaches the server in so many seconds, and what it takes."""
        database = self.target.database
        before, server, crew = (
            _at(lambda: self.gauge.counters(database)),
            _at(self.gauge.cpu_seconds),
            _at(self.crew.cpu_seconds),
        )
        time.sleep(seconds)
        sent = _at(lambda: self.gauge.statements(database, before[0]))
        return {
            "seconds": sent[1] - before[1],
            "statements": sent[0],
            "server_core_percent": _percent(server, _at(self.gauge.cpu_seconds)),
            "workers_core_percent": _percent(crew, _at(self.crew.cpu_seconds)),
        }

    def _reach(self, connections: int) -> None:
        """Until so many clients are there: workers come to wait one after the other, as their rows end."""
        until = time.monotonic() + SETTLE_SECONDS
        while self.peak.look() < connections and time.monotonic() < until:
            time.sleep(SAMPLE_SECONDS)

    def _settle(self) -> None:
        """Until each worker has found out and written what it knows of its code."""
        until = time.monotonic() + SETTLE_SECONDS
        text = f'SELECT COUNT(*) FROM "{study.TABLE}_workers" WHERE "git_commit" IS NULL'
        while study.run(study.ask(self.target, text)) != [(0,)] and time.monotonic() < until:
            time.sleep(SAMPLE_SECONDS)

    def _densest(self) -> int:
        """The most of the last signs of life of all workers that fell into one second."""
        found = study.run(study.ask(self.target, f'SELECT "heartbeat" FROM "{study.TABLE}_workers"'))
        return max(Counter(str(heartbeat)[:19] for (heartbeat,) in found).values())


def _at(read: Callable[[], T]) -> tuple[T, float]:
    """A reading and its time; on a busy machine one takes seconds, where there are thousands of processes."""
    began = time.monotonic()
    value = read()
    return value, (began + time.monotonic()) / 2


def _percent(before: tuple[float, float], after: tuple[float, float]) -> float:
    """CPU seconds between two readings, of one core's."""
    return (after[0] - before[0]) / (after[1] - before[1]) * 100


def measured(
    place: Place, gauge: Gauge, workers: int, seconds: float, *, interval_seconds: float, one_machine: bool = False
) -> Figures:
    """The figures of a cluster of so many workers.

    Raises:
        AssertionError: a row was lost, or a worker taken for dead.
    """
    rows = workers + 2 - workers % 2
    with place.empty() as (folder, target):
        study.prepared(folder, target, rows)
        gauge.calibrate(target.database)
        idle_mb = gauge.memory_mb()
        with _said_if_it_fails(folder), cluster(folder, workers, interval_seconds, one_machine=one_machine) as crew:
            run = Measure(gauge, target, crew, workers, Peak(gauge, target.database), idle_mb)
            figures: Figures = {"workers": workers, "processes": len(crew.sizes), "seconds": seconds}
            figures |= run.start() | run.beat(seconds)
            done, end_seconds = run.wake()
            figures |= run.wait(min(seconds, WAITING_SECONDS), rows - workers)
            late, figures["seen_finished_seconds"] = run.wake()
            figures |= run.close()
            figures["end_seconds"] = end_seconds
            figures["stop_seconds"] = end_seconds + figures["close_seconds"]
        figures["most_connections"] = run.peak.most
        figures["most_connections_each"] = run.peak.most / workers
        figures |= run.fates()
        said = _said(folder)
        figures |= {"log_lines": len(said), "log": said[:SHOWN_LINES]}
        study.run(study.prove(target, rows))
    assert (done, late) == (workers, rows - workers), (done, late)
    prove_whole(figures)
    return figures


@contextmanager
def _said_if_it_fails(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        said = _said(folder)
        print(f"The workers wrote {len(said)} lines of log; the first:", *said[:SHOWN_LINES], sep="\n", file=sys.stderr)
        raise


def _said(folder: Path) -> list[str]:
    """What the workers found worth a warning."""
    log = folder / cluster_workers.LOG
    return log.read_text().splitlines() if log.exists() else []


def prove_whole(figures: Figures) -> None:
    """Sees that every worker ended in good order, none was taken for dead meanwhile, and no attempt was lost.

    Raises:
        AssertionError: it was not so, and the figures are worth nothing.
    """
    workers = figures["workers"]
    wanted = {"worker_rows": workers, "workers_stopped": workers, "taken_for_dead": 0, "attempts_lost": 0}
    assert wanted.items() <= figures.items(), {name: figures[name] for name in wanted}


# ------------------------------------------------------------------------------------- what is shown

SHOWN_FIGURES = (
    ("connections_each", "connections a worker"),
    ("most_connections_each", "… at the most"),
    ("server_mb_a_connection", "server memory a connection, MB"),
    ("threads_each", "threads a worker"),
    ("files_each", "open files a worker"),
    ("memory_mb_each", "memory a worker beside the interpreter's, MB"),
    ("start_seconds", "all start at once: seconds until all have a row"),
    ("claims_a_second", "… claims a second"),
    ("start_statements_each", "… statements a worker"),
    ("start_server_ms_each", "… server CPU a worker, ms"),
    ("start_worker_ms_each", "… own CPU of a worker, ms"),
    ("beats_a_second", "all sleep: beats a second"),
    ("beats_in_one_second", "… most in one second"),
    ("statements_a_second", "… statements a second"),
    ("commits_a_second", "… commits a second"),
    ("server_core_percent", "… server CPU, % of a core"),
    ("worker_core_percent", "… CPU of one worker, % of a core"),
    ("waiting_connections_each", 'all but one wait (until="finished"): connections a worker'),
    ("waiting_statements_a_second", "… statements a second"),
    ("waiting_commits_a_second", "… commits a second"),
    ("waiting_server_core_percent", "… server CPU, % of a core"),
    ("waiting_worker_core_percent", "… CPU of one worker, % of a core"),
    ("seen_finished_seconds", "… seconds until all have seen the end"),
    ("stop_seconds", "all stop at once: seconds until all are gone"),
    ("connections_left", "connections left"),
    ("threads_left", "threads left"),
    ("files_left", "open files left"),
    ("taken_for_dead", "workers taken for dead"),
    ("attempts_lost", "attempts lost"),
)


def show(sizes: Sequence[Figures], shown: str, console: Console) -> None:
    """A column for each size."""
    table = Table(title=f"A cluster on one server: {shown}")
    table.add_column("workers")
    for figures in sizes:
        table.add_column(f"{figures['workers']:,}", justify="right")
    for name, label in SHOWN_FIGURES:
        table.add_row(label, *(_number(figures[name]) for figures in sizes))
    console.print(table)
    for figures in sizes:
        for line in figures["log"]:
            console.print(f"{figures['workers']} workers said, of {figures['log_lines']} lines: {line}", markup=False)


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 100 or figure == int(figure) else f"{figure:.2g}"


def run(
    provider: str,
    workers: Sequence[int],
    seconds: float,
    path: Path,
    *,
    interval_seconds: float = INTERVAL_SECONDS,
    one_machine: bool = False,
) -> list[Figures]:
    """Measures clusters of these sizes on one server; the JSON goes to `path`."""
    console = Console() if sys.stdout.isatty() else Console(width=PAPER)
    sizes: list[Figures] = []
    with started(provider, max(workers)) as (place, gauge):
        facts = machine.facts([place])
        for count in workers:
            figures = measured(place, gauge, count, seconds, interval_seconds=interval_seconds, one_machine=one_machine)
            sizes.append(figures)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {**facts, "interval_seconds": interval_seconds, "one_machine": one_machine, "sizes": sizes}
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    show(sizes, f"{SHOWN[provider]} {facts['versions'][SHOWN[provider]]}", console)
    return sizes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.cluster", description="what many workers cost one server")
    parser.add_argument("provider", nargs="?", choices=tuple(SERVERS), help="default: one after the other")
    parser.add_argument("--workers", type=int, default=1_000, help=f"default 1000; before it {STEPS}")
    parser.add_argument("--seconds", type=float, default=60.0, help="so long all only beat; default 60")
    parser.add_argument("--interval", type=float, default=INTERVAL_SECONDS, help="heartbeat_interval; default 15")
    parser.add_argument("--one-machine", action="store_true", help="all processes bear the name of one machine")
    given = parser.parse_args(arguments)
    sizes = [*(step for step in STEPS if step < given.workers), given.workers]
    for provider in [given.provider] if given.provider else SERVERS:
        path = RESULTS / f"cluster-{provider}.json"
        run(
            provider,
            sizes,
            given.seconds,
            path,
            interval_seconds=given.interval,
            one_machine=given.one_machine,
        )
        print(f"figures: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
