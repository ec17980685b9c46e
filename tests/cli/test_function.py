"""Which function `asyncexp run` runs: by module and by file, wherever that is, in this process and in children."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import MakeShell
from tests.cli.shell import Shell, environment

pytestmark = pytest.mark.parametrize("provider", ["sqlite"])

ONE = """
import asyncio
import sys

from helper import twice

assert sys.argv[1:] == [], sys.argv


def work(keys, results, custom):
    results.process_results({"result": twice(keys["number"])})


async def main():
    pass


asyncio.run(main())  # a script without guard
"""
SEVERAL = """
from functools import partial


async def work(keys, results, custom):
    pass


def in_child(keys, results, custom):
    pass


class Thing:
    def __call__(self, keys, results, custom):
        pass

    def method(self, keys, results, custom):
        pass


def more(keys, results, custom, extra):
    pass


thing = Thing()
given = partial(more, extra=1)
short = lambda keys, results, custom: None
number = 5
"""


@pytest.fixture
def study(shell_in: MakeShell) -> Shell:
    shell = shell_in(keyfields={"number": {"type": "INT", "values": {"start": 0, "stop": 100}}})
    shell.write("several.py", SEVERAL)
    return shell


def ran(shell: Shell, target: str, *words: str) -> int:
    done = shell.run("run", target, "--fill", "--max", "1", "--no-energy", "--quiet", *words)
    assert done.stdout.startswith("1 done"), done.stdout
    return 1


def test_a_file_by_any_path_in_child_processes(study: Shell, tmp_path: Path) -> None:
    for place in (study.folder / "deep", tmp_path / "elsewhere"):
        place.mkdir()
        (place / "01-one.py").write_text(ONE)
        (place / "helper.py").write_text("def twice(number):\n    return 2 * number\n")
    for target in ("deep/01-one.py", "./deep/01-one.py:work", str(tmp_path / "elsewhere" / "01-one.py:work")):
        assert ran(study, target, "--pool", "process")


def test_a_module_and_a_file_within_a_package(study: Shell) -> None:
    study.write("package/__init__.py", "")
    study.write("package/near.py", "base = 3\n")
    study.write("package/inner/__init__.py", "")
    study.write(
        "package/inner/code.py", "from ..near import base\n\ndef work(keys, results, custom):\n    assert base == 3\n"
    )
    for target in ("package.inner.code:work", "package/inner/code.py"):
        assert ran(study, target)


@pytest.mark.parametrize("name", ["work", "in_child", "thing", "thing.method", "given", "short"])
def test_whatever_can_be_called(study: Shell, name: str) -> None:
    assert ran(study, f"several:{name}")


def test_the_installed_command_is_the_same(study: Shell) -> None:
    script = "import sys; sys.path.pop(0); from asyncexp.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "several:in_child", "--fill", "--max", "1", "--no-energy"],
        cwd=study.folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("1 done"), done.stderr


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("several.py:wrok", "did you mean 'work'"),
        ("several:number", "is int, not a function"),
        ("several:Thing", "is a class"),
        ("several.py", "which function? Write several.py:name; there are several.py:work, several.py:in_child"),
        ("alone.py", "takes (keys, results)"),
        ("severl.py:work", "did you mean 'several.py'"),
        ("severl:work", "did you mean 'several'"),
        ("no/such/place.py:work", "no file 'place.py'"),
        ("a-b:work", "no module 'a-b'"),
        ("deep/json.py:work", "has the name of another module"),
        ("two.dots.py:work", "cannot be imported under that name"),
        ("several:more", "takes (keys, results, custom, extra)"),
    ],
)
def test_a_wrong_one_is_a_sentence(study: Shell, named: str, said: str) -> None:
    study.write("deep/json.py", SEVERAL)
    study.write("two.dots.py", SEVERAL)
    study.write("alone.py", "def work(keys, results): ...\n")
    done = study.run("run", named, code=3)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module\n", "No module named 'no_such_module'"),
        ("def broken(:\n", "SyntaxError"),
        ("def f():\n    return 1 / 0\nf()\n", "ZeroDivisionError"),
    ],
)
def test_what_a_module_raises_is_shown_as_python_does(study: Shell, text: str, said: str) -> None:
    study.write("bad.py", text)
    study.write("package/__init__.py", text)
    for target in ("bad.py:work", "package.inner:work"):
        done = study.tried("run", target)
        assert done.returncode == 3
        assert said in done.stderr
        assert "could not be imported" in done.stderr
        assert "asyncexp/cli" not in done.stderr, "its own frames alone"
        assert "importlib" not in done.stderr


def test_a_module_that_ends_the_program_is_told_of(study: Shell) -> None:
    study.write("ends.py", "import sys\nsys.exit(5)\n")
    done = study.run("run", "ends.py:work", code=3)
    assert "ends the program when it is imported" in done.stderr


def test_prints_of_an_import_do_not_spoil_json(study: Shell) -> None:
    study.write(
        "prints.py",
        "import os\nprint('by print')\nos.system('echo by a process')\nasync def work(a, b, c):\n"
        "    os.system('echo once more')\n",
    )
    assert study.json("run", "prints.py:work", "--max", "1", "--fill", "--no-energy")["done"] == 1


def test_the_commit_noted_is_that_of_the_function(study: Shell) -> None:
    place = study.write("deep/code.py", "async def work(a, b, c): ...\n").parent
    commit = ["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "first"]
    for words in (["git", "init", "-q"], ["git", "add", "code.py"], commit):
        subprocess.run(words, cwd=place, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=place, check=True, capture_output=True, text=True).stdout
    ran(study, "deep/code.py:work")
    found = [worker["git_commit"] for worker in study.json("status")["workers"]]
    assert head.strip() in found, found
