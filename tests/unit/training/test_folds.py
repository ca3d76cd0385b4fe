"""Folds cover every sample once, keep classes and groups as asked, and never touch the test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.config import CrossValidationConfig
from training.data import TEST, PreparedData, split
from training.errors import DataError
from training.folds import assign_folds

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.choice(3, size=300, p=[0.6, 0.3, 0.1])
GROUPS = RANDOM.integers(0, 30, size=300)


def folds(**changes: object) -> np.ndarray:
    return assign_folds(LABELS, GROUPS, CrossValidationConfig.model_validate(changes), num_samples=300)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("grouped", [True, False])
def test_every_sample_is_in_one_fold_or_in_the_test_split(stratified: bool, grouped: bool) -> None:
    [assigned] = folds(folds=5, stratified=stratified, grouped=grouped)
    counts = {fold: int((assigned == fold).sum()) for fold in range(TEST, 5)}
    assert sum(counts.values()) == 300
    assert 40 <= counts[TEST] <= 80
    assert all(count > 30 for count in counts.values())


def test_stratified_folds_keep_the_proportions_of_the_classes() -> None:
    [assigned] = folds(folds=5, stratified=True)
    for fold in range(TEST, 5):
        shares = np.bincount(LABELS[assigned == fold], minlength=3) / (assigned == fold).sum()
        assert shares == pytest.approx(np.bincount(LABELS) / 300, abs=0.03)


def test_grouped_folds_split_no_group() -> None:
    [assigned] = folds(folds=4, grouped=True)
    assert all(len(set(assigned[group == GROUPS])) == 1 for group in range(30))


def test_repeats_shuffle_anew_but_share_the_test_split() -> None:
    first, second = folds(folds=5, repeats=2)
    assert ((first == TEST) == (second == TEST)).all()
    assert (first != second).any()


def test_the_seed_decides() -> None:
    assert (folds(seed=1) == folds(seed=1)).all()
    assert (folds(seed=1) != folds(seed=2)).any()


def test_classes_or_groups_that_are_too_few_are_refused_with_the_numbers() -> None:
    rare = np.array([0] * 295 + [1] * 5)
    with pytest.raises(DataError, match="rarest class has 4 samples.*what the test split leaves.*stratified: false"):
        assign_folds(rare, None, CrossValidationConfig(), num_samples=300)
    with pytest.raises(DataError, match="3 groups are too few"):
        assign_folds(LABELS, np.arange(300) % 3, CrossValidationConfig(grouped=True), num_samples=300)


def test_what_the_test_split_leaves_must_be_enough_for_the_folds() -> None:
    rare = np.array([0] * 290 + [1] * 11)  # eight of them are left, for ten folds
    with pytest.raises(DataError, match="rarest class has 8 samples, too few for 10 folds"):
        assign_folds(rare, None, CrossValidationConfig(folds=10), num_samples=301)
    with pytest.raises(DataError, match="4 groups are too few for 5 folds of what"):
        assign_folds(LABELS, np.arange(300) % 6, CrossValidationConfig(grouped=True, stratified=False), num_samples=300)
    with pytest.raises(DataError, match="4 samples are too few for a test split"):
        assign_folds(None, None, CrossValidationConfig(), num_samples=4)


def test_a_recorded_split_refuses_other_samples_or_classes() -> None:
    recorded = CrossValidationConfig(
        split_id=split(PreparedData(arrays={"labels": LABELS}), CrossValidationConfig()).id
    )
    assert split(PreparedData(arrays={"labels": LABELS}), recorded).id == recorded.split_id
    for changed in (LABELS[:-1], np.concatenate([LABELS[1:], LABELS[:1]])):
        with pytest.raises(DataError, match="the data have changed"):
            split(PreparedData(arrays={"labels": changed}), recorded)


def test_folds_of_data_that_are_kept_nowhere_are_computed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (100, 200):
        found = split(PreparedData(arrays={"labels": LABELS[:number]}), CrossValidationConfig(fold=0))
        assert len(found.train) + len(found.scored) == 0.8 * number
    assert not list(tmp_path.iterdir())


def test_a_fold_is_trained_on_the_others_and_the_final_job_on_all_but_the_test_split(tmp_path: Path) -> None:
    data = PreparedData(arrays={"labels": LABELS}, folder=tmp_path)
    scored = []
    for fold in range(5):
        chosen = split(data, CrossValidationConfig(fold=fold))
        assert not set(chosen.train) & set(chosen.scored)
        scored.append(chosen.scored)
    final = split(data, CrossValidationConfig())
    assert sorted(np.concatenate(scored)) == sorted(final.train)
    assert sorted([*final.train, *final.scored]) == list(range(300))
    assert len(list(tmp_path.glob("folds-*.npy"))) == 1  # computed once, whichever fold asks
