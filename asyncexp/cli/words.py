"""Words of the command line that stand for something else: conditions, IDs, functions."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from asyncexp.errors import InvalidConfigError, ParameterCombinationError, unknown

if TYPE_CHECKING:
    from asyncexp.schema import Column

MOST_IDS = 1_000_000
_RANGE = re.compile(r"(\d+)-(\d+)")
_TEXTS = ("VARCHAR", "TEXT", "LONGTEXT")


def where(texts: Iterable[str], columns: Sequence[Column]) -> dict[str, Any]:
    """`name=value` pairs as a condition; the same name again means any of its values, `null` means NULL.

    Raises:
        ParameterCombinationError: no such column, or no such form; the nearest name is told.
    """
    known = {column.name: column for column in columns}
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ParameterCombinationError(f"--where {text!r}: write it as column=value, such as kernel=rbf")
        if name.strip() not in known:
            raise ParameterCombinationError(unknown("--where: no column", name.strip(), known))
        found.setdefault(name.strip(), []).append(_value(value, known[name.strip()]))
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def _value(text: str, column: Column) -> Any:
    """A word as the column's type has it: of a text column as it stands, else what YAML makes of it."""
    import yaml

    if text.strip().lower() == "null":
        return None
    if getattr(column.type, "name", "") in _TEXTS:
        return _unquoted(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, list | dict) and getattr(column.type, "name", "") != "JSON" else value


def _unquoted(text: str) -> str:
    """Quotes make a text of the word `null`, too."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def ids(texts: Iterable[str] | None) -> list[int] | None:
    """`7 12 20-30` as numbers; None if there are none.

    Raises:
        ParameterCombinationError: something is neither a number nor a range.
    """
    found = list(dict.fromkeys(number for text in texts or () for part in text.split(",") for number in _ids(part)))
    return found or None


def _ids(text: str) -> Iterator[int]:
    if match := _RANGE.fullmatch(text.strip()):
        first, last = map(int, match.groups())
        if not first <= last < first + MOST_IDS:
            raise ParameterCombinationError(f"{text!r}: a range goes upwards, over at most {MOST_IDS:,} IDs")
        yield from range(first, last + 1)
    elif text.strip().isdecimal():
        yield int(text)
    elif text.strip():
        raise ParameterCombinationError(f"{text!r} is no ID: write numbers, or ranges such as 20-30")


# ---------------------------------------------------------------------------------------- functions


def function(target: str) -> Callable[..., Any]:
    """What `package.module:function` or `path/file.py:function` names; the module is imported for it.

    Where the file has only one function that can be an experiment's, its name may be left out.

    Raises:
        InvalidConfigError: there is no such file, module or function; the nearest is named.
        BaseException: what the module raises when it is imported.
    """
    place, _, name = target.partition(":")
    module = _from_file(Path(place)) if place.endswith(".py") or "/" in place else _from_name(place)
    if not name:
        return _only_one(module, place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InvalidConfigError(unknown(f"{place} has no function", name, sorted(_own_functions(module))))
        found = getattr(found, part)
    if inspect.isclass(found):
        raise InvalidConfigError(f"{target} is a class: name a function, or an object that can be called")
    if not callable(found):
        raise InvalidConfigError(f"{target} is {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _from_name(name: str) -> ModuleType:
    _search_in(Path.cwd())
    if not all(part.isidentifier() for part in name.split(".")):
        raise InvalidConfigError(_no_module(name))
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{name}.".startswith(f"{missing.name}."):
            raise  # a package above it imports what is not there
        found = None
    if found is None:
        raise InvalidConfigError(_no_module(name))
    return importlib.import_module(name)


def _no_module(name: str) -> str:
    near = unknown("no module", name, sorted(path.stem for path in Path.cwd().glob("*.py")))
    return f"{near} (looked for in {Path.cwd()} and where Python looks)"


def _from_file(path: Path) -> ModuleType:
    """Under its own name, with its folder where modules are looked for: as its child processes find it.

    Within a package, under its name there.
    """
    path = path.expanduser().absolute()
    if not path.is_file():
        near = unknown("no file", path.name, sorted(each.name for each in path.parent.glob("*.py")))
        raise InvalidConfigError(f"{near} (in {path.parent})")
    if "." in path.stem or path.suffix != ".py":
        raise InvalidConfigError(f"{path.name} cannot be imported under that name: rename it, to a name.py")
    folder, names = path.parent, [path.stem]
    _search_in(folder)
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    _search_in(folder)
    module = importlib.import_module(".".join(names))
    if module.__file__ is None or not path.samefile(module.__file__):
        raise InvalidConfigError(
            f"{path.name} has the name of another module, {module.__file__ or 'built into Python'}: rename the file"
        )
    return module


def _search_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _only_one(module: ModuleType, place: str) -> Callable[..., Any]:
    found = _own_functions(module)
    able = {name: each for name, each in found.items() if _takes_three(each)}
    if len(able) == 1:
        return next(iter(able.values()))
    names = ", ".join(f"{place}:{name}" for name in able or found) or "none"
    raise InvalidConfigError(f"{place}: which function? Write {place}:name; there are {names}")


def _own_functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    return {
        name: each
        for name, each in vars(module).items()
        if inspect.isfunction(each) and each.__module__ == module.__name__ and not name.startswith("_")
    }


def _takes_three(found: Callable[..., Any]) -> bool:
    try:
        inspect.signature(found).bind(None, None, None)
    except TypeError:
        return False
    return True
