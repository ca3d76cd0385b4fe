"""All that ``hpo doctor`` looks at, by one call: what it finds, mends and prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hpo.doctor.examination import Section, examine, patient
from hpo.doctor.finding import Finding, Level, attempted, mended
from hpo.doctor.text import num_problems, print_findings
from hpo.errors import StudyNotFoundError
from hpo.ledger import LedgerStorage
from tests.unit.hpo.doctor.patients import finish, kill_a_sweep, new_study, worst


@pytest.mark.usefixtures("fast")
def test_all_studies_are_examined_and_fixed_by_one_call(
    sqlite: LedgerStorage, no_leftover_processes: Callable[[], list[psutil.Process]]
) -> None:
    kill_a_sweep(new_study(sqlite), asked=1)
    finish(new_study(sqlite, "sound"), 0.1)

    def examined(study: str | None = None, *, fix: bool = False) -> list[Section]:
        return examine(patient(study, None, None, None), fix=fix)

    found = examined()
    assert [section.title for section in found] == ["environment", "storage", "study demo", "study sound"]
    assert num_problems(found) == 2
    assert {each.fix for each in worst(found[2].findings) if each.repair} == {"hpo doctor --fix"}
    assert num_problems(examined("sound")) == 0
    assert num_problems(examined(fix=True)) == 0
    assert num_problems(examined()) == 0
    with pytest.raises(StudyNotFoundError, match="no study 'nothing'"):
        examined("nothing")
    assert not no_leftover_processes()


@pytest.mark.usefixtures("fast")
def test_a_database_that_does_not_open_leaves_the_rest_to_be_examined(folder: Path) -> None:
    found = examine(patient(None, None, None, "postgresql+psycopg://user@127.0.0.1:1/db"))
    assert [section.title for section in found] == ["environment", "storage"]
    assert num_problems(found) == 1


def test_a_check_that_cannot_look_says_so() -> None:
    def look() -> Iterator[Finding]:
        yield from ()
        raise PermissionError("not for you")

    [found] = attempted("disk", look)
    assert (found.level, found.text) == (Level.NOTE, "cannot be looked at here: not for you")


def test_a_repair_that_fails_leaves_its_problem() -> None:
    def refuse() -> str:
        raise OSError("the disk is full")

    found = mended(Finding(check="x", level=Level.NOTE, text="it is so", repair=refuse))
    assert (found.level, found.text) == (Level.PROBLEM, "it is so; --fix could not: the disk is full")


def test_the_worst_of_each_place_is_printed_last(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding(check="disk", level=Level.PROBLEM, text="is full", fix="du -sh runs/*"),
        Finding(check="port", level=Level.NOTE, text="is\ntaken"),
        Finding(check="python", level=Level.OK, text="3.11"),
    ]
    print_findings([Section(title="environment", findings=findings)], as_json=False)
    assert capsys.readouterr().out == (
        "\nenvironment\n"
        "  ok       python  3.11\n"
        "  note     port    is taken\n"
        "  problem  disk    is full\n"
        "                   du -sh runs/*\n"
        "\n1 problem, 1 note, 1 ok\n"
    )
