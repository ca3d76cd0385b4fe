"""Whether a fold that was trained again has its recorded score, and what is said when it has not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from hpo.errors import HpoError, MismatchError
from hpo.events import JobLabel
from hpo.fold_statistics import fold_interval
from hpo.reporting.summary import BestTrial
from hpo.train_best import Trained
from hpo.trial import JobStatus, TrialResult
from hpo.verification import agreement
from training.config import JobConfig
from training.run_dir import Outcome, RunDir

OUTCOME = Outcome(
    metrics={"accuracy": 0.8, "loss": 2.0},
    stopped=False,
    epochs=2,
    steps=10,
    train_samples=160,
    eval_samples=2000,
    split_id="same",
    world_size=1,
    device="cpu",
    versions={"torch": "2.13.0"},
)


@pytest.fixture
def trial(tmp_path: Path) -> BestTrial:
    (tmp_path / "fold_0").mkdir()
    return BestTrial(
        study="demo",
        number=3,
        metric="accuracy",
        direction="maximize",
        interval=fold_interval([0.8, 0.9], folds=2),
        fold_scores=[0.8, 0.9],
        params={},
        split_id="same",
        folder=tmp_path,
    )


def compare(trial: BestTrial, recorded: Outcome, repeated: Outcome) -> str:
    for name, outcome in (("fold_0", recorded), ("verify", repeated)):
        (trial.folder / name).mkdir(exist_ok=True)
        RunDir(trial.folder / name).write_result(outcome)
    result = TrialResult(
        status=JobStatus.COMPLETE,
        metrics=repeated.metrics,
        failure=None,
        duration_s=1.0,
        world_size=1,
        run_dir=RunDir(trial.folder / "verify"),
    )
    return agreement(trial, Trained(label=JobLabel(study="demo"), config=JobConfig(), result=result))


def scored(score: float, **changes: object) -> Outcome:
    return replace(OUTCOME, metrics={"accuracy": score, "loss": 2.0}, **changes)  # type: ignore[arg-type]


def test_the_same_score_is_a_match(trial: BestTrial) -> None:
    assert compare(trial, OUTCOME, OUTCOME) == "fold 0 of trial 3 was repeated exactly: accuracy 0.8000"


def test_on_one_cpu_the_last_bit_counts(trial: BestTrial) -> None:
    with pytest.raises(MismatchError) as caught:
        compare(trial, OUTCOME, scored(math.nextafter(0.8, 1.0)))
    text = str(caught.value)
    assert "accuracy 0.8000000000000002, recorded 0.8 in" in text
    assert "(tolerance 0)\nwhat differs: nothing\nnothing else was trained: the record was changed or" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"versions": {"torch": "2.14.0"}}, "torch 2.13.0 -> 2.14.0"),
        ({"device": "cuda:0"}, "device cpu -> cuda:0"),
        ({"world_size": 2}, "ranks 1 -> 2"),
    ],
)
def test_what_ran_otherwise_may_be_off_by_rounding_and_no_more(
    trial: BestTrial, change: dict[str, object], said: str
) -> None:
    assert "within 0.001" in compare(trial, OUTCOME, scored(0.8009, **change))
    with pytest.raises(MismatchError, match=f"what differs: {said}\nnothing else was trained: install the recorded"):
        compare(trial, OUTCOME, scored(0.8011, **change))


def test_one_sample_may_fall_on_the_other_side_where_few_are_scored(trial: BestTrial) -> None:
    few = replace(OUTCOME, eval_samples=50)
    assert "within 0.02" in compare(trial, few, scored(0.82, world_size=2, eval_samples=50))
    with pytest.raises(MismatchError):
        compare(trial, few, scored(0.84, world_size=2, eval_samples=50))


def test_the_tolerance_of_the_record_counts_where_nothing_differs(trial: BestTrial) -> None:
    on_gpu = replace(OUTCOME, device="cuda:0", tolerance=0.01)
    assert "within 0.01" in compare(trial, on_gpu, scored(0.805, device="cuda:0"))
    with pytest.raises(MismatchError, match=r"tolerance 0\.01"):
        compare(trial, on_gpu, scored(0.82, device="cuda:0"))


def test_a_score_that_is_not_finite_is_no_match(trial: BestTrial) -> None:
    with pytest.raises(MismatchError):
        compare(trial, OUTCOME, scored(math.nan, world_size=2))


def test_a_record_that_is_gone_is_named(trial: BestTrial) -> None:
    with pytest.raises(HpoError, match=r"there is no accuracy in .*fold_0/result\.json; bring the record back"):
        compare(trial, replace(OUTCOME, metrics={}), OUTCOME)
