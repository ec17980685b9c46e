"""The tests would notice: with a safeguard taken out of asyncexp, a small part of the suite goes red, and only then.

Each run is a process of its own, for which `tests.canaries` throws the switch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.canaries import SWITCH, SWITCHES
from tests.conftest import PROVIDERS
from tests.contract.support import PROJECT

MODEL = "tests/contract/test_model.py::test_the_store_does_what_the_model_does[{}]"
MATCHED = "tests/unit/test_db.py::test_execute_counts_the_rows_that_match_even_if_they_stay_as_they_were[{}]"
WHOLE = "tests/unit/test_db.py::test_a_transaction_is_whole_when_the_work_raises[{}]"
LOST = "tests/unit/test_writer.py::test_a_row_lost_under_the_worker_takes_nothing_and_its_caller_is_told[{}-taken_over]"
PART = (MODEL, MATCHED, WHOLE, LOST)
SERVERS = ("postgresql", "mysql")
BROKEN = ("TypeError", "AttributeError", "NameError", "KeyError", "NotImplementedError")
"""What a test would fail with because of the switch itself."""


@dataclass(frozen=True)
class Canary:
    """A safeguard taken out: which tests go red, on which of the databases that are tried."""

    switch: str
    red: Collection[str]
    on: Collection[str] = PROVIDERS
    tried: Collection[str] = PROVIDERS
    examples: int = 12
    """Of the model's, if it stays green so long."""


CANARIES = [
    Canary("fence", (MODEL, LOST)),
    Canary("worker of the fence", (MODEL,), ["sqlite"], ["sqlite"]),
    Canary("attempt of the fence", (MODEL,), ["sqlite"], ["sqlite"]),
    Canary("status of the fence", (MODEL,), ["sqlite"], ["sqlite"]),
    Canary("rollback", (MODEL, WHOLE)),
    Canary("database clock", (MODEL,), SERVERS, SERVERS),
    Canary("FOUND_ROWS", (MATCHED,), ["mysql"], ["mysql"], examples=2),
]


def named(tests: Iterable[str], providers: Iterable[str]) -> set[str]:
    return {test.format(provider) for test in tests for provider in providers}


def failures(switch: str | None, tests: Collection[str], examples: int, folder: Path) -> dict[str, str]:
    """Runs these tests with the safeguard taken out; those that failed, and why."""
    report = folder / "report.xml"
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TEST_"))}
    switched = {"TEST_EXAMPLES": str(examples), "TMPDIR": str(folder), **({SWITCH: switch} if switch else {})}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"),
            *("-p", "tests.canaries", f"--junitxml={report}", f"--basetemp={folder / 'tests'}", *sorted(tests)),
        ],
        cwd=PROJECT,
        env=ours | switched,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    ran, failed = _read(report)
    assert ran == {test.rpartition("::")[2] for test in tests}
    assert bool(failed) == bool(done.returncode), done.stdout
    return {test: failed[name] for test in tests if (name := test.rpartition("::")[2]) in failed}


def _read(report: Path) -> tuple[set[str], dict[str, str]]:
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))  # noqa: S314  (our own)
    assert not [case.attrib for case in cases for _ in case.iter("error")], "a fixture failed: that proves nothing"
    failed = {case.attrib["name"]: found.attrib["message"] for case in cases for found in case.iter("failure")}
    return {case.attrib["name"] for case in cases}, failed


def test_every_switch_has_its_canary() -> None:
    assert {canary.switch for canary in CANARIES} == set(SWITCHES)


def test_with_every_safeguard_in_place_all_is_green(tmp_path: Path) -> None:
    assert failures(None, named(PART, PROVIDERS), 4, tmp_path) == {}


@pytest.mark.parametrize("canary", CANARIES, ids=[canary.switch for canary in CANARIES])
def test_without_a_safeguard_just_those_tests_go_red_that_are_about_it(canary: Canary, tmp_path: Path) -> None:
    failed = failures(canary.switch, named(PART, canary.tried), canary.examples, tmp_path)
    assert set(failed) == named(canary.red, canary.on)
    broken = {test: why for test, why in failed.items() if why.startswith(BROKEN)}
    assert not broken, "the switch does not take the safeguard out, it breaks something else"
