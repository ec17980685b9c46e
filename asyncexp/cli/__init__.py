"""The command line, `asyncexp`: what `Experimenter` does, from a shell."""

from __future__ import annotations


def main() -> None:
    """The entry point of the command."""
    from asyncexp.cli.app import app

    app(prog_name="asyncexp")
