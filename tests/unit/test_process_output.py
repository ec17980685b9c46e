"""What experiments print in child processes: whole lines, on the parent's own output."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from asyncexp import SyncResultProcessor
from asyncexp.db.base import Target
from tests.contract.shared import Shared
from tests.contract.support import Keys, eventually
from tests.unit.children import Study, errors

Replaced = Callable[[str], "Output"]


class Output(io.StringIO):
    """A replaced standard stream, as a notebook has it."""

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def replaced() -> Iterator[Callable[[str], Output]]:
    """Replaces a stream, from inside the test: pytest puts its own there when that begins."""
    with ExitStack() as undo:

        def replace(name: str) -> Output:
            undo.callback(setattr, sys, name, getattr(sys, name))
            setattr(sys, name, Output())
            stream = getattr(sys, name)
            assert isinstance(stream, Output)
            return stream

        yield replace


async def test_prints_appear_on_the_replaced_output_in_order_and_before_the_end(
    study: Study, replaced: Replaced
) -> None:
    out = replaced("stdout")
    err = replaced("stderr")

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        print("number", keys["number"])
        print("a", end="", flush=True)
        print("b")
        sys.stderr.write("to stderr\n")
        os.write(1, b"by descriptor\n")
        subprocess.run(["/bin/echo", "by a grandchild"], check=True)
        print("\r10%\r20%\r100%")
        print("not ended", end="")

    experimenter = await study(2)
    assert (await experimenter.execute(run, n_jobs=1)).done == 2
    each = ["ab", "by descriptor", "by a grandchild", "100%", "not ended"]
    assert out.lines() == ["number 0", *each, "number 1", *each]
    assert err.lines().count("to stderr") == 2


async def test_lines_of_several_experiments_are_whole_and_say_whose_they_are(
    study: Study, replaced: Replaced, shared: Shared
) -> None:
    out = replaced("stdout")
    gate = shared.gate()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        for step in range(50):
            os.write(1, f"{keys['number']} ".encode())
            os.write(1, f"step {step}\n".encode())
        gate.wait()
        print(keys["number"], "ends", end="")

    experimenter = await study(3)
    running = asyncio.create_task(experimenter.execute(run, n_jobs=3))
    await eventually(lambda: len(out.lines()) >= 150)
    gate.open()
    assert (await running).done == 3
    lines = out.lines()
    assert len(lines) == 153
    for number in range(3):
        mine = [line for line in lines if line.startswith(f"[{number + 1}] ")]
        steps = [f"[{number + 1}] {number} step {step}" for step in range(50)]
        assert mine == [*steps, f"[{number + 1}] {number} ends"]


async def test_bytes_that_are_no_text_and_lines_without_end_are_shown_too(study: Study, replaced: Replaced) -> None:
    out = replaced("stdout")

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        os.write(1, b"caf\xe9 \xff\n")
        print("lone \ud800, snake 🐍")
        os.write(1, b"x" * 200_000)
        os.write(1, b"\n")

    await (await study(1)).execute(run, n_jobs=1)
    assert out.lines()[:2] == ["caf\ufffd \ufffd", "lone \\ud800, snake 🐍"]
    assert "".join(out.lines()[2:]) == "x" * 200_000


async def test_a_flood_is_shown_whole_and_keeps_nobody_waiting(study: Study, replaced: Replaced) -> None:
    out = replaced("stdout")

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        line = "y" * 99
        for _number in range(100_000):
            print(line)
        results.process_results({"result": 1})

    began = time.monotonic()
    assert (await (await study(1)).execute(run, n_jobs=1)).done == 1
    assert time.monotonic() - began < 60
    assert len(out.getvalue()) == 10_000_000
    assert set(out.lines()) == {"y" * 99}


class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise RuntimeError("no more")


@pytest.mark.parametrize("stream", ["closed", "broken pipe", "none", "broken"])
async def test_output_that_cannot_be_written_costs_nothing(
    study: Study, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        print("hello")

    reads, writes = os.pipe()
    os.close(reads)
    streams: dict[str, Any] = {"closed": io.StringIO(), "broken pipe": os.fdopen(writes, "w"), "none": None}
    streams["closed"].close()
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said["message"]))
    monkeypatch.setattr(sys, "stdout", streams.get(stream, Broken()))
    assert (await (await study(3)).execute(run, n_jobs=1)).done == 3
    assert len(complaints) == (3 if stream == "broken" else 0)
    monkeypatch.undo()
    os.close(writes)
    with pytest.raises(OSError, match="Bad file descriptor"):
        streams["broken pipe"].close()


async def test_the_last_words_of_a_dead_child_are_shown_and_kept_in_its_error(
    study: Study, replaced: Replaced, sqlite_target: Target
) -> None:
    err = replaced("stderr")

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        sys.stderr.write("first\nlast words")
        sys.stderr.flush()
        os.abort()

    await (await study(1)).execute(run, n_jobs=1)
    [error] = await errors(sqlite_target)
    assert "last words" in error
    assert error.splitlines()[-1].startswith("ChildProcessError: ")
    assert "SIGABRT" in error.splitlines()[-1]
    assert {"first", "last words"} <= {line.partition("Fatal")[0] for line in err.lines()}


def closes_the_stream() -> None:
    sys.stdout.close()


def closes_the_descriptors() -> None:
    os.close(1)
    os.close(2)


@pytest.mark.parametrize("close", [closes_the_stream, closes_the_descriptors])
async def test_output_that_an_experiment_closes_is_open_for_the_next(
    study: Study, replaced: Replaced, close: Callable[[], None]
) -> None:
    out = replaced("stdout")

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        print("hello", keys["number"])
        if keys["number"] == 1:
            close()

    assert (await (await study(4)).execute(run, n_jobs=1)).done == 4
    assert out.lines() == [f"hello {number}" for number in range(4)]
