"""The command `asyncexp`: which commands there are, in which order."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from asyncexp.cli.command import app

__all__ = ["app"]

HOMES = (
    *("init", "check", "fill", "run"),
    *("status", "workers", "show", "errors", "logs"),
    *("mend", "results", "upkeep"),
)
"""The modules that define commands, in the order of `asyncexp --help`."""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"asyncexp {version('asyncexp')}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", help="The version, and no more.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Runs large tables of experiments: fill a table, run a function for each row, watch, mend, and take the results.

    \b
    A study from its beginning to a plot:
      asyncexp init
      asyncexp check
      asyncexp fill
      asyncexp run experiment.py:run_experiment
      asyncexp status
      asyncexp export results.csv
      asyncexp plot accuracy --by kernel -o plot.png

    Ends with 0 if all went well, 1 if experiments failed or a check found something, 2 for a wrong command line,
    3 for a wrong configuration, 4 if the database cannot be reached or refuses, 130 after Ctrl-C.
    """


for _home in HOMES:
    import_module(f"asyncexp.cli.{_home}")
