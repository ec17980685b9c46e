"""`docs/cli.md` is what the commands say of themselves."""

from __future__ import annotations

from docs.cli_page import PAGE, commands, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"


def test_every_command_has_an_example_and_every_option_a_word() -> None:
    for command in commands():
        assert f"asyncexp {command.name}" in command.help, command.name
        for parameter in command.parameters:
            [*_, info] = parameter.annotation.__metadata__
            assert info.help, f"{command.name}: {parameter.name}"
