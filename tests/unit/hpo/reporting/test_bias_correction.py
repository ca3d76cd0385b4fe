"""The corrected score: the choice is repeated on resamples and judged on what they leave out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from hpo.reporting.bias_correction import bootstrap, correct
from tests.unit.hpo.reporting.told import complete, keep, study_in
from training.predictions import CHECKSUMS, Predictions, Rows

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, 90)


def guesses(share: float) -> Rows:
    """Of a classifier that knows that share of the labels and guesses the others."""
    known = RANDOM.random(len(LABELS)) < share
    predicted = np.where(known, LABELS, RANDOM.integers(0, 3, len(LABELS)))
    return {"labels": LABELS.astype(np.int16), "predicted": predicted.astype(np.int16)}


def whole(rows: Rows) -> Predictions:
    return Predictions(samples=np.arange(len(next(iter(rows.values())))), rows=rows)


def test_it_is_the_algorithm_of_the_paper_step_by_step() -> None:
    trials = [guesses(0.5) for _ in range(5)]
    found = bootstrap([[whole(rows)] for rows in trials], "balanced_accuracy", maximize=True, resamples=50, seed=3)
    random, expected = np.random.default_rng(3), []
    for drawn in random.integers(0, 90, (50, 90)):
        outside = np.setdiff1d(np.arange(90), drawn)
        inner = [balanced_accuracy_score(rows["labels"][drawn], rows["predicted"][drawn]) for rows in trials]
        best = trials[int(np.argmax(inner))]
        expected.append(balanced_accuracy_score(best["labels"][outside], best["predicted"][outside]))
    assert found == pytest.approx(expected)


def test_many_coin_flips_are_no_better_than_one() -> None:
    trials = [{"accuracy": RANDOM.random(200) < 0.5} for _ in range(100)]
    naive = max(rows["accuracy"].mean() for rows in trials)
    found = bootstrap([[whole(rows)] for rows in trials], "accuracy", maximize=True)
    assert naive > 0.57
    # The winner of a resample was chosen on samples that say nothing of the others.
    assert found.mean() == pytest.approx(0.5, abs=0.035)


def test_a_winner_that_always_wins_needs_no_correction() -> None:
    trials = [guesses(0.9), guesses(0.1)]
    found = bootstrap([[whole(rows)] for rows in trials], "accuracy", maximize=True)
    assert found.mean() == pytest.approx((trials[0]["labels"] == trials[0]["predicted"]).mean(), abs=0.005)


def test_a_loss_is_minimized_and_repeats_are_averaged() -> None:
    good, bad = {"loss": np.full(40, 1.0)}, {"loss": np.full(40, 2.0)}
    found = bootstrap([[whole(bad), whole(bad)], [whole(bad), whole(good)]], "loss", maximize=False, resamples=20)
    assert found.tolist() == [1.5] * 20


def test_many_samples_are_looked_at_a_few_resamples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [[whole(guesses(0.5))] for _ in range(3)]
    expected = bootstrap(trials, "accuracy", maximize=True, resamples=20)
    monkeypatch.setattr("hpo.reporting.bias_correction.MAX_CELLS", 300)
    assert bootstrap(trials, "accuracy", maximize=True, resamples=20).tolist() == expected.tolist()


# Of a study


def test_a_study_is_corrected_from_the_folds_on_disk(tmp_path: Path) -> None:
    study = study_in(tmp_path, complete(0.7, 0.7), complete(0.6, 0.6), complete(0.5, 0.5))
    trials = [guesses(0.6), guesses(0.4)]
    for number, rows in enumerate(trials):
        keep(study, number, rows)
    found, expected = correct(study), bootstrap([[whole(rows)] for rows in trials], "accuracy", maximize=True)
    assert found.value == pytest.approx(expected.mean())
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.naive == 0.7
    assert (found.num_trials, found.num_without, found.num_samples) == (2, 1, 90)


def test_with_fewer_than_two_trials_there_is_a_sentence_instead(tmp_path: Path) -> None:
    study = study_in(tmp_path, complete(0.7, 0.7), complete(0.6, 0.6), metric="r2")
    keep(study, 0, {"r2": np.ones(8)})
    keep(study, 1, {"loss": np.ones(8)})  # from which r2 does not follow
    found = correct(study)
    assert found.value is None
    assert "fewer than two completed trials kept predictions" in found.note
    assert found.num_trials == 1


def test_without_the_winners_predictions_nothing_is_corrected(tmp_path: Path) -> None:
    study = study_in(tmp_path, complete(0.7, 0.7), complete(0.6, 0.6), complete(0.5, 0.5))
    keep(study, 1, guesses(0.6))
    keep(study, 2, guesses(0.5))
    found = correct(study)
    assert (found.value, found.note) == (None, "not corrected: the predictions of the winner are gone or damaged")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def other_samples(file: Path) -> None:
    file.with_name(CHECKSUMS).unlink()
    np.save(file.with_name("samples.npy"), np.arange(1000, 1045))


def text(file: Path) -> None:
    file.with_name(CHECKSUMS).unlink()
    np.save(file, np.full(45, "dog"))


def other_values(file: Path) -> None:
    np.save(file, np.roll(np.load(file), 1))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (empty, "trial_0001/fold_1/predictions are damaged"),
        (Path.unlink, "trial_0001/fold_1/predictions are damaged (predicted.npy is missing)"),
        (lambda file: shutil.rmtree(file.parent), "there are no predictions in {}/trial_0001/fold_1/predictions"),
        (other_samples, "trial_0001 are not of the samples of the others"),
        (text, "trial_0001 are damaged"),
        (other_values, "trial_0001/fold_1/predictions are damaged (the checksum of predicted.npy is another)"),
    ],
)
def test_a_trial_with_a_damaged_fold_is_left_out_and_the_place_is_named(
    tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    study = study_in(tmp_path, complete(0.7, 0.7), complete(0.6, 0.6), complete(0.5, 0.5), metric="f1_macro")
    for number in range(3):
        keep(study, number, guesses(0.5))
    damage(tmp_path / "trial_0001" / "fold_1" / "predictions" / "predicted.npy")
    found = correct(study)
    assert found.value is not None
    assert (found.num_trials, found.num_without) == (2, 1)
    [told] = found.damaged
    assert told.startswith("trial 1: ")
    assert named.format(tmp_path) in told
