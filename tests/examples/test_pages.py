"""What the pages for those who come from PyExperimenter say: each row of their tables has its test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from asyncexp.db.base import Target
from asyncexp.sync import PyExperimenter, ResultProcessor
from tests.examples.test_examples import ROOT, as_the_readme_says, block, run, statuses
from tests.studies import write_configuration, write_credentials

MENDED = {
    "rows run twice": ["test_several_processes_share_500_rows_and_every_row_runs_exactly_once"],
    "`max_experiments` above": ["test_max_experiments_counts_what_a_call_starts"],
    "`attach` is refused": [
        "test_an_experiment_that_does_not_run_is_not_joined_and_the_message_says_what_it_does",
        "test_from_a_multiprocessing_child",
        "test_the_predecessor_cannot_run_the_others",
    ],
    "a missing `n_jobs`": ["test_what_is_left_out_has_the_documented_default"],
    "`use_ssh_tunnel` in the file": [
        "test_the_older_spelling_of_use_ssh_tunnel",
        "test_experiments_run_through_a_tunnel_and_it_ends_with_the_experimenter",
    ],
    "`stepsize`, `CUSTOM`": ["test_one_thing_wrong", "test_the_case_of_section_names_does_not_count"],
    "ranges of fractions": ["test_a_range_excludes_its_stop"],
    "NUMERIC on MySQL": ["test_results_come_back_as_they_were_sent"],
    "another order of keys": [
        "test_rows_go_by_name_whatever_the_order_of_their_keys",
        "test_the_same_list_twice_adds_nothing",
        "test_values_are_the_same_if_their_column_says_so",
    ],
    "dicts of the caller": [
        "test_callers_rows_are_left_as_they_are",
        "test_what_the_caller_gives_is_never_changed_nor_kept",
    ],
    "`reset` takes two": [
        "test_a_reset_that_fails_half_way_changes_nothing",
        "test_reset_makes_the_rows_anew_under_new_ids_and_removes_all_that_was_theirs",
        "test_reset_of_several_statuses_and_of_all",
    ],
    "`add_experiment_and_execute`": ["test_a_new_row_is_added_claimed_and_run"],
    "the grid comes": ["test_the_grid_is_filled_in_product_order_and_ids_follow_it"],
    "CodeCarbon 3": ["test_every_experiment_has_a_row_with_its_energy_and_what_codecarbon_says"],
    "`table_name=` leaves": ["test_log_tables_follow_another_table_name"],
    "an `async def`": [
        "test_whatever_gives_a_coroutine_runs_as_a_task",
        "test_an_async_function_runs_as_a_task_in_this_process",
    ],
    "KeyboardInterrupt": ["test_a_signal_stops_gracefully_and_the_handlers_come_back"],
    "so does `kill -9`": [
        "test_a_worker_killed_on_this_machine_gives_its_rows_back_at_once",
        "test_a_worker_killed_elsewhere_is_waited_for_until_its_lease_and_two_intervals_are_over",
    ],
    "a million rows": ["test_200_000_rows_in_flat_memory"],
    "dates of `get_table`": ["test_dtypes_are_those_of_the_columns_with_values_without_and_with_no_row"],
    "an error does not say": ["test_an_unknown_field_names_the_nearest_and_nothing_of_the_call_is_written"],
    "a credentials file": ["test_a_secret_that_others_can_read_is_refused"],
    "CodeCarbon writes": [
        "test_nothing_is_left_no_thread_no_file_no_line",
        "test_the_file_of_codecarbon_has_a_row_for_each_if_that_is_asked_for",
    ],
    "one exception ends": [
        "test_twenty_first_failures_alike_stop_the_call",
        "test_errors_alike_do_not_stop_a_call_unless_that_is_asked_for",
    ],
    "a typo in a metric": [
        "test_a_new_resultfield_is_null_in_old_rows_and_takes_values_from_then_on",
        "test_reset_by_keyfields_and_by_ids",
        "test_delete_removes_the_rows_and_all_that_was_theirs",
    ],
    "CodeCarbon asks": [
        "test_nothing_leaves_the_machine_whatever_else_the_settings_and_codecarbons_own_files_say",
        "test_without_a_country_emissions_are_null",
    ],
    "`groupby(": ["test_the_page_from_top_to_bottom"],
    "rows of an interrupted run": [
        "test_a_cancelled_call_puts_the_row_back_without_results_and_hides_its_lines",
        "test_a_lost_attempt_goes_back_where_it_began_with_what_was_there_then",
    ],
    "`yes`, `012`": ["test_one_thing_wrong"],
}
"""Beginnings of rows, in the page's order, and the tests of what they say is here."""

REFUSED = {
    "a credentials file": ["test_a_secret_that_others_can_read_is_refused", "test_the_clients_files_are_guarded_too"],
    "an unknown key": ["test_one_thing_wrong", "test_a_key_twice_is_told_with_both_places"],
    "`yes`, `012`": ["test_one_thing_wrong"],
    "names that begin": ["test_one_thing_wrong"],
    "a row with a missing": [
        "test_a_bad_row_names_index_and_field_and_earlier_batches_stay",
        "test_a_row_that_cannot_be_stored_adds_nothing",
        "test_nan_is_refused_in_a_keyfield",
    ],
    "an unknown result": [
        "test_an_unknown_field_names_the_nearest_and_nothing_of_the_call_is_written",
        "test_what_cannot_be_stored_raises_in_the_caller_and_nothing_of_the_call_is_written",
        "test_a_bad_line_raises_at_once_and_nothing_of_the_call_is_written",
    ],
    "`attach` to": ["test_an_experiment_that_does_not_run_is_not_joined_and_the_message_says_what_it_does"],
    "`add_experiment_and_execute`": ["test_a_row_that_exists_otherwise_is_an_error_that_says_its_status"],
    "`reset_experiments()`": ["test_no_filter_at_all_is_an_error_and_so_is_an_unknown_one"],
    "a function that": ["test_a_function_that_takes_other_arguments_is_refused_before_a_row_is_claimed"],
    "filling, executing": ["test_a_table_of_the_predecessor_is_told_as_one_and_left_alone"],
    "a table of another": ["test_another_structure_is_an_error_that_names_the_difference_and_the_way_out"],
    "SQLite on": ["test_sqlite_on_a_network_file_system_is_refused"],
    "`experimenter.config`": ["test_inner_parts_of_the_predecessor_are_not_there"],
    "an SSH server": ["test_an_unknown_host_key_is_refused_and_the_command_told_mends_it"],
}


def table(title: str) -> list[list[str]]:
    """The cells of the rows of the table under a title of the page."""
    page = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def missing(tests: list[str]) -> list[str]:
    """Those that are not among the tests."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return [test for test in tests if not re.search(rf"^(async )?def {test}\(", sources, re.MULTILINE)]


def test_every_row_of_the_mended_table_that_is_here_has_its_test() -> None:
    rows = table("What was mended")
    assert len(rows) == len(MENDED)
    for (was, _, state), (beginning, tests) in zip(rows, MENDED.items(), strict=True):
        assert was.startswith(beginning)
        assert bool(tests) == state.startswith("here")
        assert not missing(tests)


def test_every_row_of_what_is_refused_has_its_test() -> None:
    rows = table("What is refused now, and why")
    assert len(rows) == len(REFUSED)
    for (what, _), (beginning, tests) in zip(rows, REFUSED.items(), strict=True):
        assert what.startswith(beginning)
        assert not missing(tests)


def test_every_test_that_the_guarantees_name_is_there() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 20
    assert not missing(named)


def test_inner_parts_of_the_predecessor_are_not_there(sqlite_target: Target, tmp_path: Path) -> None:
    experimenter = PyExperimenter(write_configuration(tmp_path, sqlite_target), log_file=None)
    assert not {"config", "db_connector"} & {*dir(experimenter)}
    assert experimenter.configuration.database.table.name == "experiments"


def test_log_tables_follow_another_table_name(target: Target, tmp_path: Path) -> None:
    path, credentials = write_configuration(tmp_path, target, n_jobs=1), write_credentials(tmp_path, target)

    def note(_: dict[str, object], results: ResultProcessor, __: object) -> None:
        results.process_logs({"steps": {"step": 1, "note": "there"}})

    with (
        PyExperimenter(path, credentials, log_file=None) as first,
        PyExperimenter(path, credentials, None, "others", log_file=None) as second,
    ):
        first.fill_table_from_config()
        second.fill_table_from_config()
        second.execute(note)
        assert len(first.get_logtable("steps")) == 0
        assert len(second.get_logtable("steps")) == 10
        first.delete_table()
        assert len(second.get_logtable("steps")) == 10


STUDY = {
    "n_jobs": 2,
    "Database": {
        "provider": "sqlite",
        "database": "study",
        "table": {
            "name": "runs",
            "keyfields": {"seed": {"type": "INT", "values": [1, 2, 3]}},
            "resultfields": {"total": "INT"},
        },
        "logtables": {"parts": {"part": "INT", "found": "INT"}},
    },
}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_readmes_attach(tmp_path: Path, n_jobs: int) -> None:
    (tmp_path / "config").mkdir()
    configuration = yaml.safe_dump({"PY_EXPERIMENTER": STUDY | {"n_jobs": n_jobs}})
    (tmp_path / "config" / "experiment_configuration.yml").write_text(configuration)
    lines = 'print("lines", len(experimenter.get_logtable("parts")))\n'
    (tmp_path / "run.py").write_text(block("starmap") + lines)
    out, _ = run(tmp_path, tmp_path)
    assert "lines 24" in out
    assert statuses(tmp_path / "study.db", "runs") == {"done": 3}


def test_the_readmes_lines_without_asyncio(tmp_path: Path) -> None:
    as_the_readme_says(tmp_path)
    function = (
        'def estimate_pi(keyfields, results, _):\n    results.process_results({"estimate": keyfields["seed"] / 4})\n'
    )
    (tmp_path / "run.py").write_text(function + block("execute(estimate_pi, max"))
    out, _ = run(tmp_path, tmp_path)
    assert "4.75" in out
    assert statuses(tmp_path / "study.db", "pi") == {"done": 60}
