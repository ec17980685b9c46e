"""One of codecarbon's trackers: how it is made, asked and closed. Nothing else imports codecarbon."""

from __future__ import annotations

import csv
import difflib
import inspect
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from asyncexp.emissions.amounts import NOTHING, Columns, Row, Spent
from asyncexp.emissions.hearing import Ear
from asyncexp.emissions.settings import Settings, is_true, knows_intensity, methods

HANGING_SECONDS = 60.0
"""A measurement, or the start, that takes longer will not end."""
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


class Tracker:
    """One of codecarbon's trackers, quiet, without threads and files of its own; for one thread.

    Every method raises what codecarbon raises.
    """

    def __init__(self, settings: Settings, logger: logging.Logger) -> None:
        self._settings = settings
        self._logger = logger
        self._ear = Ear("log_level" in settings.given)
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
        self.knows_emissions = not self._settings.offline or knows_intensity(given)
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

        names = [word for flag, word in METHODS.items() if is_true(own.get(flag))]
        if not self._settings.offline:
            names += [name for name in methods(given) if name != "csv"]
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
