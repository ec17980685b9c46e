"""Writes `docs/cli.md` from the commands themselves: `python -m docs.cli_page`; a test holds it to be up to date."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from typer.models import ArgumentInfo, OptionInfo

from asyncexp.cli.app import HOMES, app

PAGE = Path(__file__).parent / "cli.md"
SCREENS = PAGE.parent / "screens"
SHARED = "Where"
"""The panel of the options that all commands have: told once."""
INTRODUCTION = """\
# The command line

Everything that `Experimenter` does, from a shell. This page is written by `make docs` from the commands themselves.

{about}

## Options of all commands

{shared}

The environment counts as it does in Python (`ASYNCEXP_*`, `DATABASE_URL`, …, see [configuration](configuration.md)).
Results go to standard output, all else to standard error. On a pipe, with `NO_COLOR` or on a terminal that cannot do
more, there are no colours and nothing is painted over. `asyncexp --install-completion` teaches the shell to complete
commands and options.

## Exit codes

| code | meaning |
|---|---|
| 0 | what was asked for is done, and all went well |
| 1 | not all went well: experiments failed, a check found something, `show` names what is not there, you said no |
| 2 | the command line is wrong |
| 3 | the configuration, the credentials, the function or a value for `execute` are wrong |
| 4 | the database cannot be reached or refuses, its tables are not there or not what the configuration says |
| 130, 143 | stopped by Ctrl-C (SIGINT), by SIGTERM; what watches (`status --watch`, `logs --follow`) ends with 0 |
| 141 | whoever read the output has gone |

In JSON numbers beyond 2^53, such as the IDs of workers, are texts, for `jq` and others would round them.


"""


@dataclass(frozen=True)
class Command:
    """A command as its function declares it."""

    name: str
    panel: str
    help: str
    parameters: tuple[inspect.Parameter, ...]

    def infos(self, kind: type[Any], *, shared: bool = False) -> Iterator[tuple[inspect.Parameter, Any]]:
        """Parameters that are options or arguments, those that all commands share or the command's own."""
        for each in self.parameters:
            info = get_args(each.annotation)[1]
            if isinstance(info, kind) and (getattr(info, "rich_help_panel", None) == SHARED) == shared:
                yield each, info


def commands() -> list[Command]:
    """In the order of `asyncexp --help`."""
    return [_command(each) for each in sorted(app.registered_commands, key=_home)]


def _home(info: Any) -> int:
    """Somebody may have imported a module of commands before the application, and they would come first."""
    return HOMES.index(info.callback.__module__.rpartition(".")[2])


def _command(info: Any) -> Command:
    function = info.callback
    name = info.name or function.__name__.replace("_", "-")
    parameters = tuple(inspect.signature(function).parameters.values())
    return Command(name, info.rich_help_panel, inspect.getdoc(function) or "", parameters)


def page() -> str:
    """The whole page."""
    found = commands()
    assert app.registered_callback is not None, "the options that stand before a command"
    about = _prose(inspect.getdoc(app.registered_callback.callback) or "")
    options = max((list(each.infos(OptionInfo, shared=True)) for each in found), key=len)  # some have not all
    shared = "\n".join(_options(options))
    parts = [INTRODUCTION.format(about=about, shared=shared)]
    panel = None
    for command in found:
        if command.panel != panel:
            panel = command.panel
            parts.append(f"## {panel}\n\n")
        parts.append("\n".join(_section(command)) + "\n")
    return "".join(parts).rstrip() + "\n"


def _section(command: Command) -> Iterator[str]:
    arguments = list(command.infos(ArgumentInfo))
    yield f"### `{' '.join(['asyncexp', command.name, *(_metavar(*each) for each in arguments)])}`"
    yield ""
    yield _prose(command.help)
    yield ""
    if (SCREENS / f"{command.name}.svg").exists():
        yield f"![asyncexp {command.name}](screens/{command.name}.svg)"
        yield ""
    lines = [f"- `{_metavar(*each)}`: {_words(each[1].help)}" for each in arguments]
    lines += _options(command.infos(OptionInfo))
    yield from [*lines, ""] if lines else []


def _metavar(parameter: inspect.Parameter, info: Any) -> str:
    shown = (info.metavar or parameter.name.upper()).strip("[]")
    shown = info.metavar if info.metavar and "[" in info.metavar else shown
    return shown if parameter.default is parameter.empty or shown.startswith("[") else f"[{shown}]"


def _options(options: Iterable[tuple[inspect.Parameter, Any]]) -> Iterator[str]:
    for parameter, info in options:
        yield f"- `{', '.join(_flags(parameter, info))}`{_default(parameter)}: {_words(info.help)}"


def _flags(parameter: inspect.Parameter, info: Any) -> list[str]:
    # Within `Annotated` the first name stands where a default would.
    declared = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
    names = declared or [f"--{parameter.name.replace('_', '-')}"]
    names.sort(key=lambda name: not name.startswith("--"))
    if parameter.default is True:
        names.append(f"--no-{names[0].removeprefix('--')}")
    value = _kind(parameter, info)
    return [f"{names[0]}{value}", *names[1:]]


def _kind(parameter: inspect.Parameter, info: Any) -> str:
    kinds = {each for each in _plain(get_args(parameter.annotation)[0]) if each is not type(None)}
    if kinds == {bool}:
        return ""
    choices = [member.value for kind in kinds if issubclass(kind, Enum) for member in kind]
    return " " + ("|".join(choices) or info.metavar or next(iter(kinds)).__name__.upper())


def _plain(kind: Any) -> Iterator[Any]:
    """The classes that a type is made of."""
    if parts := get_args(kind):
        for part in parts:
            yield from _plain(part)
    else:
        yield kind


def _default(parameter: inspect.Parameter) -> str:
    value = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    shown = isinstance(value, int | float | str) and not isinstance(value, bool)
    return f" (default {value})" if shown else ""


def _words(text: str | None) -> str:
    return " ".join((text or "").split())


def _prose(text: str) -> str:
    """Help as Markdown: a block behind `\\b` is kept as it is, below its first line."""
    return "\n\n".join(_block(block) for block in re.split(r"\n[ \t]*\n", text))


def _block(block: str) -> str:
    if not block.startswith("\b"):
        return block
    first, *rest = block.lstrip("\b").strip("\n").split("\n")
    return "\n".join([first, "", "```sh", *textwrap.dedent("\n".join(rest)).split("\n"), "```"])


if __name__ == "__main__":
    PAGE.write_text(page())
