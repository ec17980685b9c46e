"""Scripts without a main guard, modules, cells and typed-in functions: `__main__` in a child of the process pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncexp.db.base import Target
from tests.contract.support import numbers
from tests.studies import write_configuration

PROJECT = Path(__file__).resolve().parents[2]
HEAD = """
import asyncio, json, os, sys
from asyncexp import Experimenter

def execute(function, **keywords):
    async def main():
        async with Experimenter("configuration.yml", log_file=None) as experimenter:
            await experimenter.fill_table_from_config()
            summary = await experimenter.execute(function, pool="process", **keywords)
            table = await experimenter.get_table()
            errors = [text for text in table["error"] if text is not None and text == text]
            told = [json.loads(text) for text in table["text"] if text is not None and text == text]
            print(json.dumps({"done": summary.done, "errors": errors, "told": told}))
    asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path, sqlite_target: Target) -> Path:
    """A folder with the configuration of a study of two rows."""
    write_configuration(tmp_path, sqlite_target, keyfields=numbers(2), n_jobs=1)
    return tmp_path


def script(*parts: str) -> str:
    return HEAD + "\n".join(textwrap.dedent(part) for part in parts)


def python(
    folder: Path, *arguments: str, stdin: str | None = None, env: Mapping[str, str] | None = None, **keywords: Any
) -> subprocess.CompletedProcess[str]:
    """Runs Python there, with this project importable."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **(env or {})}
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=stdin,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **keywords,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended


def outcome(ended: subprocess.CompletedProcess[str]) -> list[Any]:
    """What the experiments of a script told, if all went well."""
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["errors"] == []
    assert found["done"] == 2
    told: list[Any] = found["told"]
    return told


MAIN_FACTS = """
import __main__
SIZES = [1, 2, 3]

class Point:
    def __init__(self, x): self.x = x

def helper(x): return x * len(SIZES)

def run(keyfields, result_processor, custom_fields):
    import __main__ as main, pickle
    spec = getattr(main, "__spec__", None)
    facts = {
        "file": getattr(main, "__file__", None), "spec": spec and spec.name, "argv": sys.argv,
        "package": getattr(main, "__package__", None), "name": run.__module__,
        "helped": pickle.loads(pickle.dumps(helper))(2), "point": pickle.loads(pickle.dumps(Point(5))).x,
        "same": sys.modules["__main__"] is main and main.helper is helper, "pid": os.getpid(),
    }
    result_processor.process_results({"text": json.dumps(facts)})

print("the script runs", os.getpid(), flush=True)
execute(run)
"""


def check_facts(ended: subprocess.CompletedProcess[str], **expected: Any) -> None:
    assert ended.stdout.count("the script runs") == 1
    for facts in outcome(ended):
        assert f"the script runs {facts['pid']}" not in ended.stdout
        wanted = {"helped": 6, "point": 5, "same": True, "name": "__main__", **expected}
        assert {name: facts[name] for name in wanted} == wanted


def test_main_of_a_script_without_a_guard_is_in_the_child_what_it_is_in_the_parent(folder: Path) -> None:
    path = folder / "script.py"
    path.write_text(script(MAIN_FACTS))
    ended = python(folder, "script.py", "--flag", "value")
    check_facts(ended, file=str(path), spec=None, argv=["script.py", "--flag", "value"], package=None)


def test_main_run_by_dash_m_keeps_its_spec_and_its_package(folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "beside.py").write_text("LEFT = 'beside'\n")
    path = folder / "package" / "study.py"
    path.write_text(script("from .beside import LEFT", MAIN_FACTS))
    ended = python(folder, "-m", "package.study", "more")
    check_facts(ended, file=str(path), spec="package.study", package="package", argv=[str(path), "more"])


def test_functions_given_on_the_command_line_run(folder: Path) -> None:
    check_facts(python(folder, "-c", script(MAIN_FACTS)), file=None, spec=None, argv=["-c"])


def test_functions_read_from_standard_input_run(folder: Path) -> None:
    check_facts(python(folder, "-", stdin=script(MAIN_FACTS)), spec=None, argv=["-"])


def test_functions_typed_into_a_console_run_and_their_tracebacks_show_the_lines(folder: Path) -> None:
    cells = [
        HEAD,
        "base = 10\n",
        "def helper(x):\n    return x + base\n",
        "def run(keyfields, result_processor, custom_fields):\n"
        "    result_processor.process_results({'text': json.dumps(helper(keyfields['number']))})\n"
        "    if keyfields['number']: raise ValueError('on purpose')  # typed\n",
        "execute(run)\n",
    ]
    # As notebooks do: each cell is compiled under a name that is no file, its lines are in linecache.
    (folder / "console.py").write_text(
        textwrap.dedent(
            f"""
            import linecache, sys, types
            cells = {cells!r}
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            for number, cell in enumerate(cells):
                name = f"<ipython-input-{{number}}-abc>"
                linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
                exec(compile(cell, name, "exec"), main.__dict__)
            """
        )
    )
    ended = python(folder, "console.py")
    found = json.loads(ended.stdout.splitlines()[-1])
    assert (found["done"], found["told"]) == (1, [10, 11])
    [error] = found["errors"]
    assert "ipython-input-3-abc" in error
    assert "raise ValueError('on purpose')  # typed" in error


def test_functions_typed_into_the_interactive_interpreter_run(folder: Path) -> None:
    typed = "\n\n".join(part.strip() for part in HEAD.split("\n\n")) + "\n\n"
    typed += "def run(keyfields, results, custom): results.process_results({'text': '1'})\n\nexecute(run)\n"
    typed = typed.replace("\n\n    ", "\n    ")
    ended = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=typed,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert outcome(ended) == [1, 1]


def test_a_function_of_a_module_beside_the_script_runs_from_any_folder(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "mine.py").write_text(
        "def run(keyfields, results, custom):\n    results.process_results({'text': '\"' + __name__ + '\"'})\n"
    )
    (folder / "code" / "script.py").write_text(script("import mine", "execute(mine.run)"))
    (folder / "pickle.py").write_text("raise RuntimeError('the folder is not to be searched for modules')\n")
    assert outcome(python(folder, "code/script.py")) == ["mine", "mine"]


def test_an_exception_class_of_the_script_is_tried_again(folder: Path) -> None:
    text = script(
        """
        class Shaky(Exception): pass
        class Local(Shaky): pass
        def run(keyfields, result_processor, custom_fields):
            if result_processor.attempt == 1: raise Local("once")
            result_processor.process_results({"text": "1"})
        execute(run, retries=1, retry_on=[Shaky])
        """
    )
    (folder / "script.py").write_text(text)
    assert outcome(python(folder, "script.py")) == [1, 1]


# ------------------------------------------------------------------------------- processes of the experiment's own

POOLS = """
import multiprocessing, concurrent.futures

class Point:
    def __init__(self, x): self.x = x
    def moved(self): return Point(self.x + 1)

START = Point(1)

def square(x): return x * x
def move(point): return point.moved()
def produce(queue, numbers):
    for number in numbers: queue.put(Point(number))
    queue.put(None)

def by_pool(context):
    with context.Pool(2) as pool: return pool.map(square, [1, 2, 3]) + [p.x for p in pool.map(move, [START])]

def by_executor(context):
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool: return list(pool.map(square, [1, 2, 3]))

def by_queues(context):  # as data loaders do
    queue = context.Queue()
    workers = [context.Process(target=produce, args=(queue, [i, i + 1]), daemon=True) for i in range(2)]
    for worker in workers: worker.start()
    found, ended = [], 0
    while ended < 2:
        point = queue.get(timeout=30)
        if point is None: ended += 1
        else: found.append(point.x)
    for worker in workers: worker.join()
    return sorted(found)

def run(keyfields, result_processor, custom_fields):
    context = multiprocessing.get_context(sys.argv[1])
    found = [by_pool(context), by_executor(context), by_queues(context)]
    result_processor.process_results({"text": json.dumps(found)})
"""
FOUND = [[1, 4, 9, 2], [1, 4, 9], [0, 1, 1, 2]]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_an_experiment_starts_processes_of_its_own(folder: Path, method: str) -> None:
    guarded = "execute(run)" if method == "fork" else "if __name__ == '__main__':\n    execute(run)"
    (folder / "script.py").write_text(script(POOLS, guarded))
    assert outcome(python(folder, "script.py", method)) == [FOUND, FOUND]


def test_an_experiment_of_a_module_run_by_dash_m_spawns(folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "study.py").write_text(script(POOLS, "if __name__ == '__main__':\n    execute(run)"))
    assert outcome(python(folder, "-m", "package.study", "spawn")) == [FOUND, FOUND]


def test_an_experiment_uses_joblib(folder: Path) -> None:
    pytest.importorskip("joblib")
    (folder / "script.py").write_text(
        script(
            """
            import joblib
            def square(x): return x * x
            def run(keyfields, result_processor, custom_fields):
                found = [
                    joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(square)(x) for x in (1, 2, 3))
                    for backend in ("loky", "multiprocessing")
                ]
                result_processor.process_results({"text": json.dumps(found)})
            execute(run)
            """
        )
    )
    assert outcome(python(folder, "script.py")) == [[[1, 4, 9], [1, 4, 9]]] * 2


def test_classes_of_the_script_that_are_reached_through_objects_alone_pickle(folder: Path) -> None:
    (folder / "script.py").write_text(
        script(
            """
            import multiprocessing, dataclasses, enum
            class Color(enum.Enum): RED = 1
            @dataclasses.dataclass
            class Config:
                color: Color
                class Inner: value = 3
                def inner(self): return Config.Inner()
            config = Config(Color.RED)
            def run(keyfields, result_processor, custom_fields):
                with multiprocessing.get_context("fork").Pool(1) as pool:
                    [back] = pool.map(type(config.color), [1]); [inner] = pool.map(Config.inner, [config])
                    assert pool.apply(str, [config]) == str(config)
                result_processor.process_results({"text": json.dumps([back is config.color, inner.value])})
            def other(keyfields, result_processor, custom_fields):
                with multiprocessing.get_context("fork").Pool(1) as pool:
                    assert pool.apply(str, [config]) == str(config)
                result_processor.process_results({"text": "1"})
            execute(other)
            """
        )
    )
    assert outcome(python(folder, "script.py")) == [1, 1]


# ------------------------------------------------------------------------------------------- odd interpreters

PLAIN = """
def run(keyfields, result_processor, custom_fields):
    facts = [sys.flags.dev_mode, sys.flags.optimize, sys.warnoptions, os.getpid()]
    result_processor.process_results({"text": json.dumps(facts)})
"""


@pytest.mark.parametrize("flags", [["-W", "error"], ["-X", "dev", "-W", "error"], ["-O"], ["-I"], ["-P", "-s"]])
def test_the_interpreters_flags_are_the_childs(folder: Path, flags: Sequence[str]) -> None:
    (folder / "script.py").write_text(
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        + script(PLAIN, "execute(run)", "print(json.dumps(dict(done=2, errors=[], told=[")
        + "[sys.flags.dev_mode, sys.flags.optimize, sys.warnoptions, 0]] * 2)))"
    )
    ended = python(folder, *flags, "script.py")
    mine = json.loads(ended.stdout.splitlines()[-1])["told"]
    theirs = json.loads(ended.stdout.splitlines()[-2])["told"]
    assert [facts[:3] for facts in theirs] == [facts[:3] for facts in mine]


def test_a_relative_entry_of_the_path_means_the_same_folder(folder: Path) -> None:
    (folder / "lib").mkdir()
    (folder / "lib" / "mine.py").write_text(
        "def run(keyfields, results, custom): results.process_results({'text': '1'})"
    )
    (folder / "script.py").write_text(script("sys.path.append('lib')", "import mine", "execute(mine.run)"))
    assert outcome(python(folder, "script.py")) == [1, 1]


def test_a_folder_that_was_deleted_does_not_matter(folder: Path) -> None:
    (folder / "gone").mkdir()
    leave = "            os.chdir('gone'); os.rmdir(os.getcwd())\n"
    text = script(PLAIN, "execute(run)").replace("            summary =", leave + "            summary =")
    (folder / "script.py").write_text(text)
    assert len(outcome(python(folder, "script.py"))) == 2


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1], [0, 1, 2]])
def test_standard_streams_that_are_closed_from_the_start_do_not_matter(folder: Path, closed: Sequence[int]) -> None:
    told = "open('told', 'w').write(json.dumps({'done': summary.done, 'errors': errors, 'told': told}))"
    text = script(
        PLAIN.replace("facts = [", "print('hello'); print('there', file=sys.stderr); facts = ["), "execute(run)"
    )
    lines = [line.replace(line.strip(), told) if "print(json.dumps" in line else line for line in text.splitlines()]
    (folder / "script.py").write_text("\n".join(lines))
    closing = " ".join(f"{number}>&-" for number in closed)
    command = ["/bin/sh", "-c", f"exec {sys.executable} script.py {closing}"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads((folder / "told").read_text())
    assert (found["done"], found["errors"]) == (2, [])
    if 1 not in closed:
        assert ended.stdout.count("hello") == 2
    if 2 not in closed:
        assert ended.stderr.count("there") == 2


def test_output_that_is_none_or_speaks_ascii_does_not_matter(folder: Path) -> None:
    talk = PLAIN.replace("facts = [", "print('größer 🐍'); facts = [")
    path = folder / "script.py"
    path.write_text(script(talk, "execute(run, n_jobs=1)"))
    ended = python(folder, "script.py", env={"PYTHONIOENCODING": "ascii"})
    assert ended.stdout.count(r"gr\xf6\xdfer \U0001f40d") == 2
    path.write_text(script(talk, "kept = sys.stdout; sys.stdout = sys.stderr = None", "execute(run)"))
    assert python(folder, "script.py").stdout == ""


def test_variables_set_by_the_script_are_in_the_childs_environment(folder: Path) -> None:
    run = "def run(k, results, c): results.process_results({'text': json.dumps(os.environ.get('SET_LATE'))})"
    (folder / "script.py").write_text(script(run, "os.environ['SET_LATE'] = 'yes'", "execute(run)"))
    assert outcome(python(folder, "script.py")) == ["yes", "yes"]


def test_what_only_linux_has_is_not_needed_to_run_and_bury_children(folder: Path) -> None:
    """A stand-in for other systems: their `os` has neither of these."""
    (folder / "sitecustomize.py").write_text(
        "import os\nfor name in ('waitid', 'pidfd_open', 'pipe2'):\n    delattr(os, name)\n"
    )
    text = """
    import signal
    def run(keys, results, custom):
        assert not hasattr(os, "waitid")
        if keys["number"] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        results.process_results({"text": json.dumps("ran")})

    execute(run)
    """
    (folder / "script.py").write_text(script(text))
    path = {"PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT)])}
    found = json.loads(python(folder, "script.py", env=path).stdout.splitlines()[-1])
    assert (found["done"], found["told"]) == (1, ["ran"])
    assert ["killed by SIGKILL" in text for text in found["errors"]] == [True]
