"""`init`: a project that runs."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from asyncexp.cli import output
from asyncexp.cli.codes import Refused
from asyncexp.cli.command import command
from asyncexp.cli.files import write_files
from asyncexp.cli.place import Place

PANEL = "Begin"
TEMPLATES = Path(__file__).with_name("templates")
CONFIGURATION = "config/experiment_configuration.yml"
SCHEMA = "config/experiment_configuration.schema.json"
WHAT_FOR = {
    CONFIGURATION: "parameters, results, database",
    "experiment.py": "what runs for each experiment",
    "README.md": "the commands in their order",
    ".gitignore": "what stays out of git",
    SCHEMA: "by which editors check it",
}
NEXT = (
    ("asyncexp check", "is everything in place?"),
    ("asyncexp fill", "a row for each combination"),
    ("asyncexp run experiment.py:run_experiment", "run what is left to run"),
    ("asyncexp status", "how it stands"),
    ("asyncexp export results.csv", "the whole table"),
)


class Template(StrEnum):
    minimal = "minimal"
    sklearn = "sklearn"
    asynchronous = "async"


@command(PANEL, without=("config", "credentials", "table", "database"))
def init(
    place: Place,
    folder: Annotated[Path, typer.Argument(help="Where; it is made if it is missing.")] = Path(),
    template: Annotated[
        Template,
        typer.Option(
            "--template",
            "-t",
            help="minimal: plain Python, pi by darts. sklearn: a grid of support vector machines. "
            "async: many calls of a service at once.",
        ),
    ] = Template.minimal,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """A new project that runs: configuration, function, README. Overwrites nothing, but with --force.

    \b
    Examples:
      asyncexp init
      asyncexp init my_study --template sklearn
    """
    files = _files(template.value)
    there = [name for name in files if (folder / name).exists()]
    if there and not force:
        raise Refused(
            f"{', '.join(there)} exists in {folder.absolute()}: nothing was written. Name another folder, "
            "or overwrite with --force"
        )
    write_files(folder, files)
    _told(place, folder, template, list(files))


def _files(template: str) -> dict[str, str]:
    """Name -> content of what a template makes, in the order in which it is told."""
    from asyncexp.config import editors

    found = {name: TEMPLATES / template / name for name in (CONFIGURATION, "experiment.py", "README.md")}
    found[".gitignore"] = TEMPLATES / "gitignore"
    return {**{name: path.read_text("utf-8") for name, path in found.items()}, SCHEMA: editors.text()}


def _told(place: Place, folder: Path, template: Template, files: list[str]) -> None:
    from rich.text import Text

    if place.json:
        output.write_json({"folder": folder.absolute(), "template": template, "files": files})
        return
    output.say(output.mark(True), f"A project from the template {template.value}, in {folder.absolute()}:\n")
    output.grid(("", ""), [(f"  {name}", Text(WHAT_FOR[name], "bright_black")) for name in files])
    if template is Template.sklearn and find_spec("sklearn") is None:
        output.say("\nIt needs scikit-learn, which is not installed: pip install scikit-learn")
    steps = [] if folder.absolute() == Path.cwd() else [(f"  cd {folder}", "")]
    steps += [(f"  {line}", f"# {meaning}") for line, meaning in NEXT]
    output.say("\nWhat to do next:\n")
    output.grid(("", ""), [(line, Text(meaning, "bright_black")) for line, meaning in steps])
