"""The function that a command line names: found, imported, and looked at."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from asyncexp.cli.codes import CONFIGURATION, Refused
from asyncexp.errors import InvalidConfigError, unknown

if TYPE_CHECKING:
    from types import TracebackType

_OWN = str(Path(__file__).parents[1])


def loaded(target: str) -> Callable[..., Any]:
    """The function named; what its module raises when it is imported is shown as Python does.

    Raises:
        Refused: it cannot be imported.
        InvalidConfigError: there is no such thing, or it cannot be called as an experiment.
    """
    from asyncexp import provenance
    from asyncexp.pools.base import check_function

    sys.argv = [target.partition(":")[0]]  # options of this command are none of the module's
    try:
        function = named(target)
    except (InvalidConfigError, KeyboardInterrupt):
        raise
    except SystemExit as left:
        raise Refused(
            f"{sys.argv[0]} ends the program when it is imported ({left!r}): put what runs there under "
            '`if __name__ == "__main__":`',
            CONFIGURATION,
        ) from None
    except BaseException as failure:
        _show(failure)
        raise Refused(f"{sys.argv[0]} could not be imported", CONFIGURATION) from failure
    check_function(target, function, "keyfields", "result_processor", "custom_fields")
    provenance.code_of(function)
    return function


def _show(failure: BaseException) -> None:
    """Prints a traceback from the user's own frames on."""
    trace = failure.__traceback__
    while trace is not None and _is_ours(trace):
        trace = trace.tb_next
    traceback.print_exception(failure.with_traceback(trace))


def _is_ours(trace: TracebackType) -> bool:
    name = trace.tb_frame.f_code.co_filename
    return name.startswith((_OWN, "<frozen importlib")) or f"{os.sep}importlib{os.sep}" in name


def named(target: str) -> Callable[..., Any]:
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
    if len(found) == 1:  # if it cannot be called as an experiment, that is told
        return next(iter(found.values()))
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
