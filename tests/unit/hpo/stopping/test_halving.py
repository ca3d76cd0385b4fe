"""Successive halving over whole trials: who goes on, who cannot any more, and whose checkpoints go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpo.checkpoint_room import checkpoint_bytes, forget_checkpoints, make_room
from hpo.stopping.field import Field, Runner
from hpo.stopping.halving import Halving, rungs

HALVING = Halving(rungs=(1, 3, 9), eta=3)


def field_of(*trials: list[float]) -> Field:
    """Trials of two folds, alike in both, with these values after 1, 2, ... of 9 epochs; numbered from 10."""
    field = Field(num_folds=2, max_epochs=9)
    for root, values in enumerate(trials):
        curve = np.array(values + [np.nan] * (9 - len(values)))
        runner = Runner(
            number=10 + root, root=root, curves=np.stack([curve] * 2), finals=np.full(2, curve[-1]), num_epochs=9
        )
        field.add([runner])
    return field


@pytest.mark.parametrize(
    ("lowest", "eta", "epochs", "expected"),
    [(1, 3, 9, (1, 3, 9)), (2, 2, 9, (2, 4, 8, 9)), (1, 10, 2, (1, 2)), (3, 3, 9, (3, 9))],
)
def test_rungs_grow_by_eta_and_end_with_the_whole_training(
    lowest: int, eta: int, epochs: int, expected: tuple[int, ...]
) -> None:
    assert rungs(lowest, eta, epochs) == expected
    assert Halving(rungs=expected, eta=eta).next_rung(lowest) == expected[1]


def test_of_those_that_reached_a_rung_one_in_eta_goes_on() -> None:
    assert HALVING.promotable(field_of([0.5], [0.6]), is_end=False) is None, "two are too few"
    assert HALVING.promotable(field_of([0.5], [0.7], [0.6]), is_end=False) == (11, 1)
    assert HALVING.promotable(field_of([0.5], [0.7, 0.7, 0.7], [0.6]), is_end=False) is None, "it has gone on"


def test_a_trial_that_is_being_promoted_is_left_out() -> None:
    six = field_of([0.5], [0.7], [0.6], [0.1], [0.2], [0.3])
    assert HALVING.promotable(six, {11}, is_end=False) == (12, 1)
    assert HALVING.promotable(six, {11, 12}, is_end=False) is None


def test_the_highest_rung_goes_first() -> None:
    first, second = [0.5] * 3, [0.6] * 3
    field = field_of(first, second, [0.7] * 3, [0.9], [0.1], [0.2])
    assert HALVING.promotable(field, is_end=False) == (12, 3)


def test_at_the_end_the_best_of_each_rung_goes_on_however_few_there_are() -> None:
    field = field_of([0.5], [0.6] * 3)
    assert HALVING.promotable(field, is_end=False) is None
    assert HALVING.promotable(field, is_end=True) == (11, 3)
    assert HALVING.promotable(field_of([0.5], [0.6] * 9), is_end=True) is None, "one was trained to its end"


def test_a_trial_of_which_one_fold_is_behind_has_not_reached_the_rung() -> None:
    field = field_of([0.5], [0.6], [0.7])
    field.curves[2, 1, 0] = np.nan
    assert HALVING.promotable(field, is_end=False) is None


def test_who_cannot_be_promoted_whatever_the_rest_scores_is_hopeless() -> None:
    """Of nine trials three can be promoted, so the fourth of those so far never will be."""
    field = field_of([0.5], [0.9], [0.6], [0.4], [0.7])
    assert list(HALVING.hopeless(field, 9)) == [0, 3]
    assert list(HALVING.hopeless(field, 90)) == []
    assert list(HALVING.waiting(field)) == [3, 0, 2, 4, 1], "the worst first"


def leave_checkpoint(trial: Path, fold: int, size: int) -> None:
    folder = trial / f"fold_{fold}" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "epoch_0001.pt").write_bytes(bytes(size))
    (trial / f"fold_{fold}" / "metrics.jsonl").write_text("kept")


def test_room_is_made_by_the_first_trials_until_the_rest_fits(tmp_path: Path) -> None:
    trials = [tmp_path / f"trial_{number:04d}" for number in range(3)]
    for trial in trials:
        for fold in range(2):
            leave_checkpoint(trial, fold, 100)
    make_room(trials, 600)
    assert [checkpoint_bytes(trial) for trial in trials] == [200, 200, 200]
    make_room(trials, 250)
    assert [checkpoint_bytes(trial) for trial in trials] == [0, 0, 200]
    forget_checkpoints(trials[2])
    assert checkpoint_bytes(trials[2]) == 0
    assert (trials[2] / "fold_1" / "metrics.jsonl").read_text() == "kept"
