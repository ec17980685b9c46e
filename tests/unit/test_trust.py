"""Where bytes become objects, and text becomes code: a list, so that no further place comes in unnoticed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncexp

ROOT = Path(asyncexp.__file__).parent
UNPICKLERS = ("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle")
LOADERS = ("load", "loads", "Unpickler", "open", "read_pickle")
EVALUATORS = ("eval", "exec", "compile", "__import__", "literal_eval", "import_module", "run_path", "run_module")
YAML = ("load", "load_all", "full_load", "unsafe_load", "Loader", "FullLoader", "UnsafeLoader", "CLoader")

PLACES = {
    "pools/frames.py: pickle.loads": "messages of a parent and its own children, over a socket pair of their own",
    "pools/child.py: pickle.loads": "the custom section, from the parent over that socket pair",
    "pools/child.py: pickle.Unpickler": "the function, from the parent over that socket pair",
    "pools/process.py: text with pickle.loads": "what a new process is told over that socket pair",
    "config/keywords.py: import_module": "`retry_on` of the configuration, which may name any exception class",
    "__init__.py: import_module": "the public names, of a table of its own",
    "db/__init__.py: import_module": "the backend, of a table of its own",
    "emissions/tracker.py: import_module": "modules of codecarbon, of a list of its own",
    "cli/app.py: import_module": "the commands, of a list of its own",
    "cli/functions.py: import_module": "the function's module, which the command line names",
    "cli/files.py: import_module": "a library that is to write a format, of a table of its own",
}
"""Each place and where what it loads comes from; the database is none of them."""


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, name):
            return f"{_dotted(value)}.{name}"
    return ""


def suspicious(tree: ast.Module) -> Iterator[str]:
    """Names by which bytes are unpickled or text is run, called or not: a class may derive from them."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
            aliases |= {each.asname or each.name: f"{module}{each.name}" for each in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (f"text with {name}" for name in ("pickle.loads", "eval(", "exec(") if name in node.value)
        elif isinstance(node, ast.Name | ast.Attribute):
            name = _dotted(node)
            head, _, tail = name.partition(".")
            name = f"{aliases.get(head, head)}{'.' if tail else ''}{tail}"
            if _is_suspicious(name):
                yield name.removeprefix("importlib.").removeprefix("builtins.")


def _is_suspicious(name: str) -> bool:
    module, _, last = name.rpartition(".")
    if module.partition(".")[0] in UNPICKLERS:
        return last in LOADERS
    if module == "yaml":
        return last in YAML
    return last in ("read_pickle", "unsafe_load") or (last in EVALUATORS and module not in ("re", "OmegaConf"))


def test_nothing_is_unpickled_or_run_but_in_known_places() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {what}"
        for path in ROOT.rglob("*.py")
        for what in suspicious(ast.parse(path.read_text()))
    }
    assert found == set(PLACES)


def test_what_reads_the_database_knows_no_pickle() -> None:
    files = [path for folder in ("store", "db") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 10
    for path in files:
        assert not _imported(ast.parse(path.read_text())) & set(UNPICKLERS), path


def _imported(tree: ast.Module) -> set[str]:
    nodes = list(ast.walk(tree))
    names = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle\npickle.loads(row)", "pickle.loads"),
        ("import pickle as p\np.load(file)", "pickle.load"),
        ("from pickle import loads as read\nread(row)", "pickle.loads"),
        ("import cloudpickle\nlist(map(cloudpickle.loads, rows))", "cloudpickle.loads"),
        ("import pickle\nclass Mine(pickle.Unpickler): ...", "pickle.Unpickler"),
        ("import marshal\nmarshal.loads(row)", "marshal.loads"),
        ("import pandas as pd\npd.read_pickle(file)", "pandas.read_pickle"),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("from yaml import unsafe_load\nunsafe_load(text)", "yaml.unsafe_load"),
        ("eval(text)", "eval"),
        ("import builtins\nbuiltins.exec(text)", "exec"),
        ("from importlib import import_module\nimport_module(text)", "import_module"),
        ("import importlib\nimportlib.import_module(text)", "import_module"),
        ("START = 'import pickle; pickle.loads(x)'", "text with pickle.loads"),
    ],
)
def test_each_way_is_seen(code: str, what: str) -> None:
    assert what in set(suspicious(ast.parse(code)))
