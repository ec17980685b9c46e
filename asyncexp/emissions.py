"""Energy and emissions, as CodeCarbon tells them: one tracker a worker, its energy shared among what ran meanwhile.

Nothing else knows codecarbon. One thread a process measures, every second while experiments run, and shares each
second's energy by the CPU time that each experiment took in it; `docs/energy.md` says how, and where the limits are.
"""

from __future__ import annotations

import csv
import difflib
import inspect
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

INTERVAL_SECONDS = 1.0
LEAST_SHARE = 100
"""A measurement that takes long is made seldom: at most so much of the time goes into measuring."""
WARM_UP_AFTER_SECONDS = 0.25
"""Calls that are over by then never pay for the tracker's start."""
HANGING_SECONDS = 60.0
"""A measurement, or the start, that takes longer will not end."""
TICK_SECONDS = 0.01
"""What the machine's CPU time is told in."""
SHORTEST_SECONDS = 1e-6
JOULES = 3.6e6
"""Of a kWh."""
API_CALLS_EVERY = 120
"""Measurements between two calls of codecarbon's service: as seldom as by default, at a second each."""

NOT_THE_TRACKERS = ("offline_mode", "save_to_file", "output_methods", "output_dir", "output_file", "on_csv_write")
OUTSIDE = ("save_to_api", "save_to_prometheus", "save_to_logfire", "emissions_endpoint")
TOKENS = ("electricitymaps_api_token", "co2_signal_api_token")
METHODS = {"save_to_api": "api", "save_to_logger": "logger", "save_to_prometheus": "prometheus"} | {
    "save_to_logfire": "logfire"
}
FACTS = {
    name: name
    for name in (
        *("project_name", "run_id", "country_name", "country_iso_code", "region", "cloud_provider", "cloud_region"),
        *("os", "python_version", "codecarbon_version", "cpu_count", "cpu_model", "gpu_count", "gpu_model"),
        *("longitude", "latitude", "ram_total_size", "tracking_mode", "on_cloud"),
    )
} | {"power_usage_efficiency": "pue"}
"""Column -> codecarbon's name, of what is the same for all experiments of a tracker."""
NUMBERS = ("cpu_count", "gpu_count", "ram_total_size", "power_usage_efficiency")
WORD_LENGTH = 255

Key = tuple[int, int]
Rates = tuple[float | None, float | None, float | None, float | None]
"""kWh of CPU, GPU and RAM, and kg of CO2 equivalent, a second; None: not measured."""
UNKNOWN: Rates = (None, None, None, None)
Row = tuple[int, int, float, float | None, float | None, float | None, float | None]
"""(ID, attempt, seconds, *rates)"""
Brief = tuple[list[int], list[int], list[float], list[float]]
"""IDs, 0 for those that get no row; attempts; seconds; begins."""
Columns = Sequence[Any]
"""Rows by column, as a list, or as the one value that all have."""
Deliver = Callable[[Columns, Mapping[str, Any]], None]
"""Takes rows and what else they have in common, by name; called in the measuring thread."""


# ------------------------------------------------------------------------------------------ settings


@dataclass(frozen=True)
class Settings:
    """The configuration's section, read."""

    given: Mapping[str, Any]

    @property
    def offline(self) -> bool:
        """Only `offline_mode: false`, written out, allows calls to the outside."""
        return self.given.get("offline_mode") is not False

    @property
    def saves_to_file(self) -> bool:
        return _is_true(self.given.get("save_to_file")) or "csv" in _methods(self.given)

    @property
    def interval(self) -> float:
        with suppress(TypeError, ValueError):
            return max(INTERVAL_SECONDS, float(self.given.get("measure_power_secs") or 0))
        return INTERVAL_SECONDS


def _is_true(value: Any) -> bool:
    return value is True or str(value).casefold() == "true"


def _methods(given: Mapping[str, Any]) -> list[str]:
    methods = given.get("output_methods") or ()
    names = methods.split(",") if isinstance(methods, str) else methods
    return [str(getattr(name, "value", name)).strip().casefold() for name in names]


def _knows_intensity(given: Mapping[str, Any]) -> bool:
    """Whether the settings say how dirty the electricity is, without asking anybody."""
    cloud = given.get("cloud_provider") and given.get("cloud_region")
    return bool(given.get("country_iso_code") or cloud or given.get("force_carbon_intensity_g_co2e_kwh") is not None)


def problems(given: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the configuration's section: the key, and what to say."""
    offline, code = given.get("offline_mode"), given.get("country_iso_code")
    if offline is not None and not isinstance(offline, bool):
        yield "offline_mode", f"offline_mode must be true or false, not {offline!r}"
    if offline is True and not _knows_intensity(given):
        yield (
            "offline_mode",
            "offline_mode: true needs country_iso_code, the three letters of the country (such as DEU), for the "
            "emissions of its electricity; without both, energy is recorded and emissions are not",
        )
    known = countries() if code is not None else {}
    if known and code not in known:
        yield "country_iso_code", f"CodeCarbon knows no country {code!r}; {_nearest_country(str(code), known)}"


def _nearest_country(code: str, known: Mapping[str, str]) -> str:
    by_name = {name.casefold(): code for code, name in known.items()}
    if (upper := code.upper()) in known or upper in _OTHER_CODES:
        meant = _OTHER_CODES.get(upper, upper)
    elif names := difflib.get_close_matches(code.casefold(), by_name, n=1, cutoff=0.75):
        meant = by_name[names[0]]
    elif codes := difflib.get_close_matches(upper, known, n=20, cutoff=0.5):
        meant = max(codes, key=lambda each: (upper[:2] == each[:2], upper[:1] == each[:1]))
    else:
        return "it takes the three letters of ISO 3166, such as DEU, FRA or USA"
    return f"did you mean {meant!r} ({known[meant]})?"


_OTHER_CODES = {"UK": "GBR", "ENGLAND": "GBR"}


def countries() -> dict[str, str]:
    """Code -> name of every country of which codecarbon knows the electricity; empty without codecarbon.

    Read from its data, for its import takes long.
    """
    found = find_spec("codecarbon")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        file = Path(folder) / "data" / "private_infra" / "global_energy_mix.json"
        with suppress(OSError, ValueError, AttributeError, TypeError):
            mix: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8"))
            return {code: str(of.get("country_name", code)) for code, of in mix.items()}
    return {}


# ------------------------------------------------------------------------------------------- tracker


@dataclass(frozen=True, slots=True)
class Spent:
    """What the tracker measured: kWh, and kg of CO2 equivalent."""

    cpu: float = 0.0
    gpu: float = 0.0
    ram: float = 0.0
    kilograms: float = 0.0

    def since(self, before: Spent) -> Spent:
        return Spent(*(max(0.0, a - b) for a, b in zip(self._all, before._all, strict=True)))

    def plus(self, other: Spent, share: float, of_cpu: float) -> Spent:
        """And so much of another; of its CPU's, `of_cpu`."""
        return Spent(
            self.cpu + other.cpu * of_cpu,
            self.gpu + other.gpu * share,
            self.ram + other.ram * share,
            self.kilograms + other.kilograms * share,
        )

    def rates(self, seconds: float, account: Account) -> Rates:
        """The same a second; emissions only if they can be told."""
        kilograms = self.kilograms / seconds if account.tracker.knows_emissions else None
        return self.cpu / seconds, self.gpu / seconds, self.ram / seconds, kilograms

    @property
    def _all(self) -> tuple[float, float, float, float]:
        return self.cpu, self.gpu, self.ram, self.kilograms


NOTHING = Spent()


class Tracker:
    """One of codecarbon's trackers, quiet, without threads and files of its own; for one thread.

    Every method raises what codecarbon raises.
    """

    def __init__(self, settings: Settings, logger: logging.Logger) -> None:
        self._settings = settings
        self._logger = logger
        self._ear = _Ear("log_level" in settings.given)
        self._before = NOTHING
        self._data: Any = None
        self._tracker: Any = None
        self._file: Any = None
        self.facts: dict[str, Any] = {}
        """Columns that all its rows share."""
        self.knows_emissions = False
        self.of_process_only = False
        """The energy of the CPU that it tells is this process's and its children's own."""

    def open(self) -> None:
        """Starts it; the first in a process takes seconds.

        Raises:
            ImportError: there is no codecarbon.
        """
        codecarbon = _imported()
        with self._ear.listening(everywhere=True):
            kind = codecarbon.OfflineEmissionsTracker if self._settings.offline else codecarbon.EmissionsTracker
            self._tracker = kind(**self._arguments(codecarbon))
            self._tracker.start()
            if getattr(self._tracker, "_start_time", None) is None:
                raise RuntimeError(self._ear.heard or "its tracker did not start")
            for name in ("_scheduler", "_scheduler_monitor_power"):  # threads that measure by themselves
                if (scheduler := getattr(self._tracker, name, None)) is not None:
                    scheduler.stop()
                    if isinstance(timer := getattr(scheduler, "_timer", None), threading.Thread):
                        timer.join(HANGING_SECONDS)
        self._know()

    def _know(self) -> None:
        self.measure()
        given = {**self._settings.given, "country_iso_code": getattr(self._data, "country_iso_code", None)}
        self.knows_emissions = not self._settings.offline or _knows_intensity(given)
        if not self.knows_emissions:
            self._logger.info(
                "CodeCarbon: energy is recorded, emissions are not: country_iso_code is not given "
                "(nothing outside is asked, unless offline_mode: false is written out)"
            )
        self.facts = {column: _fact(column, getattr(self._data, name, None)) for column, name in FACTS.items()}
        self.facts["offline_mode"] = self._settings.offline
        modes = {
            getattr(each, "_mode", "") for each in getattr(self._tracker, "_hardware", ()) if hasattr(each, "_tdp")
        }
        self.of_process_only = self.facts["tracking_mode"] == "process" and modes == {"cpu_load"}

    def _arguments(self, codecarbon: Any) -> dict[str, Any]:
        """What the tracker is made with. In vain it would look for more in codecarbon's own files and variables."""
        known = set(inspect.signature(codecarbon.EmissionsTracker.__init__).parameters)
        known |= set(inspect.signature(codecarbon.OfflineEmissionsTracker.__init__).parameters)
        given = {str(key): value for key, value in self._settings.given.items() if value is not None}
        self._tell_unknown(given, known - {"self", "args", "kwargs"})
        own = {name: value for name, value in given.items() if name in known and name not in NOT_THE_TRACKERS}
        own = {"log_level": "warning", "api_call_interval": API_CALLS_EVERY} | own
        # Its own thread is not to measure, and a file that keeps others out is not to lie about.
        own |= {"measure_power_secs": 3600.0, "allow_multiple_runs": True}
        if self._settings.offline:
            own |= dict.fromkeys((*TOKENS, "emissions_endpoint"), "") | dict.fromkeys(METHODS, False)
        own |= {"save_to_file": False}
        if "output_methods" in known:  # where the flags are deprecated
            own["output_methods"] = self._outputs(own, given)
            own = {name: value for name, value in own.items() if name not in METHODS and name != "save_to_file"}
            if own.get(TOKENS[0]) == "":
                own.pop(TOKENS[1], None)
        return {name: value for name, value in own.items() if name in known}

    def _outputs(self, own: Mapping[str, Any], given: Mapping[str, Any]) -> list[Any]:
        from codecarbon.output_methods.base_output import OutputMethod

        names = [word for flag, word in METHODS.items() if _is_true(own.get(flag))]
        if not self._settings.offline:
            names += [name for name in _methods(given) if name != "csv"]
        return [OutputMethod(name) for name in dict.fromkeys(names)]

    def _tell_unknown(self, given: Mapping[str, Any], known: set[str]) -> None:
        for name in given.keys() - known - {"offline_mode", "save_to_file", *METHODS, *TOKENS}:
            found = [name.casefold()] if name.casefold() in known else difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {found[0]!r}?" if found else ""
            self._logger.warning("CodeCarbon has no setting %r: it is passed over%s", name, hint)
        asked = [name for name in OUTSIDE if given.get(name)] + [name for name in TOKENS if given.get(name)]
        if asked and self._settings.offline:
            self._logger.warning(
                "CodeCarbon: %s is passed over, for nothing outside is asked unless offline_mode: false is written out",
                ", ".join(asked),
            )

    def measure(self) -> Spent:
        """What was spent since the last time."""
        with self._ear.listening():
            self._tracker._measure_power_and_energy()
            self._data = data = self._tracker._prepare_emissions_data()
        now = Spent(data.cpu_energy, data.gpu_energy, data.ram_energy, data.emissions)
        spent, self._before = now.since(self._before), now
        return spent

    def save(self, columns: Columns) -> None:
        """Appends rows to codecarbon's own file, as it would itself, if that is wanted."""
        if not self._settings.saves_to_file:
            return
        if told := [self._as_told(row) for row in _rows(columns) if row[3] is not None]:
            with self._ear.listening():
                path = self._write_first(told[0])
            with path.open(newline="") as file:
                header = next(csv.reader(file))
            with path.open("a", newline="") as file:
                csv.DictWriter(file, header, extrasaction="ignore").writerows(dict(each.values) for each in told[1:])

    def _write_first(self, told: Any) -> Path:
        """One row by codecarbon, which sees to the file and its header."""
        from codecarbon.output_methods.file import FileOutput

        given = self._settings.given
        folder, name = str(given.get("output_dir") or "."), str(given.get("output_file") or "emissions.csv")
        Path(folder).mkdir(parents=True, exist_ok=True)
        output = FileOutput(name, folder)
        output.out(told, told)
        return Path(folder) / name

    def _as_told(self, row: Row) -> Any:
        _, _, seconds, *rates, kilograms = row
        cpu, gpu, ram = ((rate or 0.0) * seconds for rate in rates)
        return replace(
            self._data,
            duration=seconds,
            emissions=None if kilograms is None else kilograms * seconds,
            emissions_rate=kilograms,
            cpu_energy=cpu,
            gpu_energy=gpu,
            ram_energy=ram,
            energy_consumed=cpu + gpu + ram,
            cpu_power=cpu * JOULES / seconds,
            gpu_power=gpu * JOULES / seconds,
            ram_power=ram * JOULES / seconds,
        )

    def close(self) -> None:
        if self._tracker is not None:
            with self._ear.listening():
                self._tracker.stop()


def _rows(columns: Columns) -> Iterator[Row]:
    count = len(columns[0])
    yield from zip(*(each if isinstance(each, list) else [each] * count for each in columns), strict=True)


def _imported() -> Any:
    """codecarbon, with all that it imports when first used."""
    with _importing:
        import codecarbon

        for name in ("core.emissions", "core.resource_tracker", "external.geography", "input"):
            with suppress(ImportError):  # another version's
                import_module(f"codecarbon.{name}")
        return codecarbon


_importing = threading.Lock()
"""Who forks meanwhile waits: in the child a module that is half imported here would stay so, and lock out for ever."""
_waits_to_fork: list[bool] = []


def _before_fork() -> None:
    _waits_to_fork.append(_importing.acquire(timeout=HANGING_SECONDS))


def _after_fork() -> None:
    if _waits_to_fork and _waits_to_fork.pop():
        _importing.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _fact(column: str, value: Any) -> Any:
    if value is None:
        return None
    return float(value) if column in NUMBERS else str(value)[:WORD_LENGTH]


class _Ear(logging.Filter):
    """Hears what codecarbon logs of itself in our calls, and keeps it from the user's terminal unless he asked."""

    def __init__(self, let_through: bool) -> None:
        super().__init__()
        self.heard = ""
        self._let_through = let_through
        self._thread: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if self._thread is not None and record.thread != self._thread:
            return True  # a tracker of the user's own
        if self.heard:  # the first thing that goes wrong is why
            pass
        elif record.exc_info and record.exc_info[1] is not None:  # it raises little, and logs what it would have
            self.heard = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        elif record.levelno >= logging.ERROR:
            self.heard = record.getMessage()
        return self._let_through

    @contextmanager
    def listening(self, *, everywhere: bool = False) -> Iterator[None]:
        """While it calls codecarbon in this thread; `everywhere`: codecarbon starts threads of its own for that."""
        logger = logging.getLogger("codecarbon")
        self._thread = None if everywhere else threading.get_ident()
        self.heard = ""
        logger.setLevel(min(logger.level, logging.WARNING))  # as which it logs exceptions
        logger.addFilter(self)
        try:
            yield
        finally:
            logger.removeFilter(self)


# -------------------------------------------------------------------------------------- one attempt


class Child(Protocol):
    """A child process in which experiments run."""

    pid: int | None
    loading_cpu: float
    """Seconds of CPU that it took before its first experiment, which are nobody's own."""


class Use:
    """What one attempt used. Its worker says when it begins, is over, and has ended; the meter does the rest."""

    # Not one of these is set for each: experiments may be short, and many.
    began: float | None = None
    over: float | None = None
    ended = False
    kept = False
    pid: int | None = None
    """The child process that it runs in."""
    child_had_used = 0.0
    """Seconds of CPU that this had used before its first experiment."""
    clock: tuple[int, float] | None = None
    """The CPU clock of the thread that it runs in, and what that showed when it began."""
    cpu: float | None = None
    """Seconds of CPU from begin to end, where they can be told."""
    counted = 0.0
    """Seconds of CPU that are shared out already."""
    spent = NOTHING
    was_measured = False

    def __init__(self, meter: Meter, account: Account, key: Key) -> None:
        self._meter = meter
        self.account = account
        self.key = key

    def begin(self) -> None:
        """The function is called."""
        self.began = time.monotonic()
        self._meter.add(self)

    def stop(self) -> None:
        """The function has returned, or nobody waits for it any more."""
        if self.over is None:
            self.over = time.monotonic()

    def end(self, *, kept: bool) -> None:
        """Its end is committed, or it was lost; only one that is `kept` gets a row."""
        self.stop()
        if self.began is not None and not self.ended:
            self.kept = kept
            self.ended = True
            self._meter.remove(self, self.began, self.over or self.began)

    def runs_in(self, child: Child) -> None:
        self.pid, self.child_had_used = child.pid, child.loading_cpu

    @contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """While its function runs in this thread and no other experiment does."""
        began = time.thread_time()
        if hasattr(time, "pthread_getcpuclockid"):
            self.clock = (time.pthread_getcpuclockid(threading.get_ident()), began)
        try:
            yield
        finally:
            self.cpu, self.clock = time.thread_time() - began, None

    @property
    def seconds(self) -> float:
        """How long it took, once it is over."""
        return max(SHORTEST_SECONDS, (self.over or 0.0) - (self.began or 0.0))

    def row(self) -> Row:
        """Its row, once it has ended."""
        seconds = self.seconds
        return (*self.key, seconds, *(self.spent.rates(seconds, self.account) if self.was_measured else UNKNOWN))


# ---------------------------------------------------------------------------------------- CPU times


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
        self._highest: dict[int, float] = {}

    def read(self) -> Reading:
        at = time.monotonic()
        trees: dict[int, float] = {}
        me = os.getpid()
        own = time.process_time() + sum(os.times()[2:4]) + sum(_tree(pid, trees) for pid in _children(me))
        # Who dies between two looks is missing until its parent has it in its own account.
        self._highest = {pid: max(seconds, self._highest.get(pid, 0.0)) for pid, seconds in {**trees, me: own}.items()}
        return Reading(at, busy_seconds(), self._highest[me], self._highest)


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


# --------------------------------------------------------------------------------------------- meter


class Account:
    """One worker's side of the meter.

    Args:
        deliver: is given the rows of attempts that have ended; called in the measuring thread.
        failed: is told, once, why energy can no longer be measured; also there.
    """

    def __init__(
        self, settings: Settings, logger: logging.Logger, deliver: Deliver, failed: Callable[[BaseException], None]
    ) -> None:
        self.tracker = Tracker(settings, logger)
        self.settings = settings
        self.deliver = deliver
        self.failed = failed
        self.ready = False
        """The tracker measures."""
        self.off = False
        """It does no longer, or never will."""
        self.failure: BaseException | None = None
        self.brief: deque[float] = deque()
        """ID (0 for one that gets no row), attempt, begin, end of those that have ended, and no more is known of."""
        self.ended: deque[Use] = deque()
        """The others that have ended."""
        self._taking = threading.Lock()
        self.active = 0
        """Calls under way whose experiments are measured."""
        self._meter = meter()

    def join(self) -> None:
        """Begins to measure; warms up in the thread if need be."""
        self._meter.join(self)

    def begin(self) -> None:
        """Experiments are about to run."""
        self.active += 1
        self._meter.look()

    def rest(self) -> None:
        """One call of `begin` is over."""
        self.active -= 1

    def use(self, key: Key) -> Use | None:
        """What an attempt is to report to; None when nothing is measured any more."""
        return None if self.off else Use(self._meter, self, key)

    def settle(self, done: Callable[[], None]) -> bool:
        """Measures now; `done` is called in the thread when the rows of all that has ended are delivered.

        False, and nothing is called, while there is nothing to measure with: then ask for `unmeasured`.
        """
        if not self.ready or self.off:
            return False
        self._meter.settle(done)
        return True

    def give_up(self, why: BaseException) -> None:
        """Measures no more; from any thread."""
        if not self.off:
            self.off, self.failure = True, why
            self._meter.leave(self)
            self.failed(why)

    def leave(self) -> Columns | None:
        """Measures no more; rows of attempts that have ended and were never settled, if there are any."""
        self.off = True
        self._meter.leave(self)
        return self.unmeasured()

    def unmeasured(self) -> Columns | None:
        """Rows of attempts that have ended and were never settled, if there are any; mostly only how long they took."""
        rows = [use.row() for use in self.take_ended() if use.kept]
        ids, attempts, seconds, _ = _kept(self.take_brief())
        rows += [
            (number, attempt, lived, *UNKNOWN) for number, attempt, lived in zip(ids, attempts, seconds, strict=True)
        ]
        return [list(column) for column in zip(*rows, strict=True)] or None

    def take_brief(self) -> Brief:
        """Those that `brief` holds, and holds no longer."""
        with self._taking:
            flat: list[Any] = [self.brief.popleft() for _ in range(len(self.brief) // 4 * 4)]
        began = flat[2::4]
        return flat[0::4], flat[1::4], [b - a for a, b in zip(began, flat[3::4], strict=True)], began

    def take_ended(self) -> list[Use]:
        """Those that `ended` holds, and holds no longer."""
        with self._taking:
            return [self.ended.popleft() for _ in range(len(self.ended))]

    @property
    def is_over(self) -> bool:
        """Whether no thread works for it any more."""
        return self._meter.works_not_for(self)


class Meter:
    """Measures for all workers of this process, on a thread that lives while there are any."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._accounts: list[Account] = []
        self._opened: list[Account] = []
        """Those whose tracker the thread has to close."""
        self._running: dict[Use, None] = {}
        self._asked: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._clock = Clock()
        self._last: Reading | None = None
        self._took = 0.0

    # ------------------------------------------------------------------------------ for the workers

    def join(self, account: Account) -> None:
        with self._lock:
            self._accounts.append(account)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="asyncexp energy", daemon=True)
                self._thread.start()
        self._wake.set()

    def leave(self, account: Account) -> None:
        """Forgets a worker."""
        with self._lock:
            if account in self._accounts:
                self._accounts.remove(account)
        for use in [use for use in list(self._running) if use.account is account]:
            self._running.pop(use, None)
        self._wake.set()

    def works_not_for(self, account: Account) -> bool:
        return self._thread is None or account not in self._opened

    def add(self, use: Use) -> None:
        self._running[use] = None
        if (since := self._busy_since) is not None and use.began is not None and use.began - since > HANGING_SECONDS:
            use.account.give_up(TimeoutError(f"it has been at one measurement for over {HANGING_SECONDS:g} s"))

    def remove(self, use: Use, began: float, over: float) -> None:
        # First added, then removed: whoever looks in between sees it twice and not never.
        if use.account.off:
            pass
        elif use.pid is None and use.cpu is None and not use.was_measured:
            # As plain numbers: objects that are kept, if only for a second, keep the garbage collector busy.
            use.account.brief.extend((use.key[0] if use.kept else 0, use.key[1], began, over))
        else:
            use.account.ended.append(use)
        self._running.pop(use, None)

    def look(self) -> None:
        """Measures now."""
        self._wake.set()

    def settle(self, done: Callable[[], None]) -> None:
        self._asked.append(done)
        self._wake.set()

    # ---------------------------------------------------------------------------------- in the thread

    def _work(self) -> None:
        try:
            self._wait_before_start()
            while not self._is_done():
                self._busy_since = time.monotonic()
                self._close_those_gone()
                self._open_new()
                if self._accounts:
                    self._turn()
                self._busy_since = None
                if self._accounts:
                    self._pause()
        except BaseException as failure:  # noqa: BLE001  (the calls of the time go on without energy)
            for account in list(self._accounts):
                account.give_up(failure)

    def _is_done(self) -> bool:
        with self._lock:
            if self._accounts or self._opened:
                return False
            self._thread = None
            return True

    def _wait_before_start(self) -> None:
        until = time.monotonic() + WARM_UP_AFTER_SECONDS
        while self._accounts and (rest := until - time.monotonic()) > 0:
            self._wake.wait(rest)
            self._wake.clear()

    def _pause(self) -> None:
        """Until it is time for the next measurement, somebody asks for one, or experiments are to run again."""
        active = [account.settings.interval for account in list(self._accounts) if account.active]
        if active:
            self._wake.wait(max(min(active), LEAST_SHARE * self._took))
        else:
            self._last = None  # what is spent from here on is nobody's
            self._wake.wait()
        self._wake.clear()

    def _open_new(self) -> None:
        for account in [each for each in list(self._accounts) if each not in self._opened]:
            self._opened.append(account)
            try:
                account.tracker.open()
                account.ready = True
            except BaseException as failure:  # noqa: BLE001  (whatever it is, no experiment is to suffer from it)
                account.give_up(failure)

    def _close_those_gone(self) -> None:
        for account in [each for each in self._opened if each not in self._accounts]:
            with suppress(BaseException):
                account.tracker.close()
            self._opened.remove(account)

    def _turn(self) -> None:
        """One measurement, shared out."""
        began = time.thread_time()
        asked = [self._asked.popleft() for _ in range(len(self._asked))]
        running = list(self._running)
        accounts = [account for account in list(self._accounts) if account.ready and not account.off]
        ended = [use for account in accounts for use in account.take_ended()]
        brief = {account: account.take_brief() for account in accounts}
        before, now = self._last, self._clock.read()
        self._last = now
        spent = {account: found for account in accounts if (found := _measured(account)) is not None}
        each = dict.fromkeys(spent, UNKNOWN)
        if before is not None:
            told = set(ended)
            uses = [*ended, *(use for use in running if use not in told)]
            lived = sum(_lived_since(before.at, seconds, begins) for _, _, seconds, begins in brief.values())
            each = _share(before, now, uses, lived, spent)
        for account, rates in each.items():
            _deliver(account, _brief_columns(brief[account], rates))
            rows = [use.row() for use in ended if use.kept and use.account is account]
            _deliver(account, [list(column) for column in zip(*rows, strict=True)])
        self._took = time.thread_time() - began
        for done in asked:
            done()


def _lived_since(since: float, seconds: Iterable[float], began: Sequence[float]) -> float:
    if began and min(began) < since:
        return sum(max(0.0, lived - max(0.0, since - at)) for lived, at in zip(seconds, began, strict=True))
    return sum(seconds)


def _share(
    before: Reading, now: Reading, uses: Sequence[Use], brief_seconds: float, spent: Mapping[Account, Spent]
) -> dict[Account, Rates]:
    """Shares out what was spent; what a second of those comes to of whom only that is known, for each worker's."""
    shares, each, part = shared(before, now, uses, brief_seconds)
    for use, share in zip(uses, shares, strict=True):
        if (found := spent.get(use.account)) is not None:
            use.was_measured = True
            if share:
                use.spent = use.spent.plus(*_of(found, share, part, use.account))
    return {
        account: NOTHING.plus(*_of(found, each, part, account)).rates(1.0, account) for account, found in spent.items()
    }


def _of(found: Spent, share: float, part: float, account: Account) -> tuple[Spent, float, float]:
    return found, share * part, share if account.tracker.of_process_only else share * part


def _brief_columns(brief: Brief, rates: Rates) -> Columns:
    ids, attempts, seconds, _ = _kept(brief)
    return [ids, attempts[0] if len(set(attempts)) == 1 else attempts, seconds, *rates]


def _kept(brief: Brief) -> Brief:
    """Those that get a row."""
    ids, attempts, seconds, began = brief
    seconds = [max(SHORTEST_SECONDS, lived) for lived in seconds]
    if 0 not in ids:
        return ids, attempts, seconds, began
    places = [place for place, number in enumerate(ids) if number]
    return (
        [ids[place] for place in places],
        [attempts[place] for place in places],
        [seconds[place] for place in places],
        [began[place] for place in places],
    )


def _deliver(account: Account, columns: Columns) -> None:
    if not columns or not columns[0] or account.off:
        return
    try:
        account.tracker.save(columns)
    except Exception as failure:  # noqa: BLE001  (a file that cannot be written costs no row)
        account.give_up(failure)
    account.deliver(columns, account.tracker.facts)


def _measured(account: Account) -> Spent | None:
    try:
        return account.tracker.measure()
    except BaseException as failure:  # noqa: BLE001  (whatever it is, no experiment is to suffer from it)
        account.give_up(failure)
        return None


def shared(
    before: Reading, now: Reading, uses: Sequence[Use], others_alive: float = 0.0
) -> tuple[list[float], float, float]:
    """How what this process used between two readings is shared, and which part of the machine's use that was.

    By the CPU time that each used itself, as far as it can be told; what is left of the process's, tasks and the
    worker's own work, by how long each was alive.

    Args:
        others_alive: seconds that others were alive, of whom no more is known.

    Returns:
        The share of each, the share of a second of those others, and this process's part of the machine. All
        shares sum up to 1.0, or to 0.0 if nothing was used.
    """
    own = max(0.0, now.own - before.own)
    busy = max(0.0, now.busy - before.busy) + TICK_SECONDS
    direct = _direct(before, now, uses)
    alive = [_alive(use, before.at, now.at) for use in uses]
    rest, all_alive = max(0.0, own - sum(direct)), sum(alive) + others_alive
    each = rest / all_alive if all_alive else 0.0
    weights = [used + each * seconds for used, seconds in zip(direct, alive, strict=True)]
    whole = sum(weights) + each * others_alive
    if not whole:
        return [0.0] * len(uses), 0.0, 0.0
    return [weight / whole for weight in weights], each / whole, own / max(own, busy)


def _alive(use: Use, since: float, until: float) -> float:
    began = since if use.began is None or use.began < since else use.began
    over = until if use.over is None or use.over > until else use.over
    return over - began if over > began else 0.0


def _direct(before: Reading, now: Reading, uses: Sequence[Use]) -> list[float]:
    """Seconds of CPU that each is known to have used itself since they were last counted."""
    found = [0.0] * len(uses)
    by_child: dict[int, float] = {}
    in_children: list[tuple[int, Use, int]] = []
    for place, use in enumerate(uses):
        pid, clock = use.pid, use.clock
        if use.cpu is not None or clock is not None:
            found[place] = _counted(use, clock)
            if pid is not None:
                by_child[pid] = by_child.get(pid, 0.0) + found[place]
        elif pid is not None:
            in_children.append((place, use, pid))
    for place, use, pid in in_children:
        in_all = now.trees.get(pid, 0.0) - max(before.trees.get(pid, 0.0), use.child_had_used)
        found[place] = max(0.0, in_all - by_child.get(pid, 0.0))
        use.counted += found[place]
    return found


def _counted(use: Use, clock: tuple[int, float] | None) -> float:
    so_far = use.cpu
    if so_far is None and clock is not None:
        try:
            so_far = time.clock_gettime(clock[0]) - clock[1]
        except OSError:  # its thread has just ended
            so_far = use.cpu
    used = max(0.0, (so_far or 0.0) - use.counted)
    use.counted += used
    return used


_meter: Meter | None = None
_making = threading.Lock()


def meter() -> Meter:
    """That of this process: a forked child inherits another's, without its thread."""
    global _meter
    with _making:
        if _meter is None or _meter.pid != os.getpid():
            _meter = Meter()
        return _meter
