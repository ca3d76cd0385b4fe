"""What a search will still take, by studies without a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hpo.deadline import Deadline
from hpo.ledger import LedgerStorage
from hpo.outlook import Outlook
from hpo.resources import Resources
from hpo.spending import Meter
from hpo.study import ask, open_study
from hpo.study_config import BudgetConfig
from hpo.tally import AUDIT, REVIVES
from hpo.trials import Running, Trials
from tests.unit.hpo.study.definitions import define

EPOCH_S, FIRST, FIRST_JOBS = 2.0, 4, 1


def outlook_of(known: list[float], *, climb: dict[int, int], asked: int = 3, at: float = 1e9) -> Outlook:
    """Of a study of ten trials of which `asked` have a place; `climb` is what promotions take, by the trials there."""
    defined = define()
    definition = replace(defined, config=defined.config.model_copy(update={"budget": BudgetConfig(trials=10)}))
    study = open_study(definition, LedgerStorage("sqlite://"))
    for _ in range(asked):
        ask(study, definition)
    trials = SimpleNamespace(first_epochs=FIRST, first_jobs=FIRST_JOBS, epochs_to_climb=lambda total=0: climb[total])
    resources, deadline = cast(Resources, SimpleNamespace(max_trials=2)), Deadline(at, known, lambda: 0.0)
    return Outlook(definition, study, cast(Trials, trials), resources, deadline, Meter(lambda: 0.0))


def running(epochs_left: int, **attributes: Any) -> Running:
    folds = SimpleNamespace(epochs_left=epochs_left, is_over=epochs_left == 0)
    return cast(Running, SimpleNamespace(trial=SimpleNamespace(user_attrs=attributes), folds=folds))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_new_trials_those_that_run_and_all_promotions_are_to_come() -> None:
    outlook = outlook_of([EPOCH_S], climb={10: 50})
    left = outlook.job_seconds_left([running(3), running(0)], asks=True)
    assert left == EPOCH_S * (7 * FIRST + 3 + 50)


def test_where_none_is_asked_for_any_more_those_that_are_there_go_on() -> None:
    outlook = outlook_of([EPOCH_S], climb={3: 20})
    assert outlook.job_seconds_left([running(3)], asks=False) == EPOCH_S * (3 + 20)


def test_a_promoted_trial_is_one_of_the_climb_and_an_audited_one_is_not() -> None:
    outlook = outlook_of([EPOCH_S], climb={3: 20})
    promoted, audited = running(5, **{REVIVES: 0}), running(7, **{REVIVES: 1, AUDIT: {}})
    assert outlook.job_seconds_left([promoted, audited], asks=False) == EPOCH_S * (20 + 7)


def test_nothing_is_known_before_the_first_job_has_ended() -> None:
    assert outlook_of([], climb={10: 50}).job_seconds_left([running(3)], asks=True) is None
    assert outlook_of([], climb={0: 50}).spent_and_due(5.0).climb_s == 0.0


def test_promotions_are_paid_for_before_another_trial_begins() -> None:
    spent = outlook_of([EPOCH_S], climb={0: 50}).spent_and_due(5.0)
    assert (spent.seconds, spent.climb_s, spent.climb_device_s) == (5.0, 50.0, 100.0), "two side by side"
    assert spent.has_time
    late = outlook_of([EPOCH_S], climb={0: 50}, at=60.0).spent_and_due(5.0)
    assert not late.has_time, "8 s of a new trial, 50 s of promotions and 5 s to end are more than a minute"
    assert outlook_of([EPOCH_S], climb={0: 50}, at=70.0).spent_and_due(5.0).has_time
