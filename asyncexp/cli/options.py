"""Options and arguments that several commands have: with the same name, help and completion in each."""

from __future__ import annotations

from typing import Annotated

import typer

from asyncexp.cli import complete

WHICH = "Which"
"""The heading of the options that choose rows."""

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Only these experiments: numbers and ranges, 7 20-30.")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="COLUMN=VALUE",
        help="Only rows with this value; again for others, null for NULL.",
        autocompletion=complete.where,
        rich_help_panel=WHICH,
    ),
]
Statuses = Annotated[
    list[str] | None,
    typer.Option(
        "--status",
        metavar="STATUS",
        help="Only rows of this status; again for others.",
        autocompletion=complete.statuses,
        rich_help_panel=WHICH,
    ),
]
AllAttempts = Annotated[
    bool,
    typer.Option(
        "--all-attempts",
        help="Also log lines and energy of attempts that were lost, released or retried.",
        rich_help_panel=WHICH,
    ),
]
Full = Annotated[bool, typer.Option("--full", help="In full on a terminal, too.")]
FUNCTION = "module:function, or file.py:function (file.py if it has only one)."
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be added.")]
CreateDatabase = Annotated[
    bool, typer.Option("--create-database", help="Make the database on the server, too, if it is missing.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
