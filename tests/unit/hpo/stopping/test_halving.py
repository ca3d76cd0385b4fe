"""Successive halving: who goes on, who cannot any more, and whose checkpoints go."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import pytest

from hpo.checkpoint_room import checkpoint_bytes, forget_checkpoints, make_room
from hpo.stopping.field import Field, Runner
from hpo.stopping.halving import FIRST, GROWTH, Halving, epoch_halving, fold_halving

HALVING = Halving(rungs=((0.5, 0, 0), (1, 0, 0), (1, 1, 1)), places=(0.4, 0.16))
"""Half of the first of three folds, all of it, and all of them."""
EPOCHS = 4


def field_of(*levels: Sequence[float], is_paused: bool = True) -> Field:
    """Trials with these scores of their first folds, a fold that is half done as well as one; numbered from 10."""
    field = Field(num_folds=3, max_epochs=EPOCHS)
    for root, scores in enumerate(levels):
        add(field, root, scores, is_paused=is_paused)
    return field


def add(field: Field, root: int, scores: Sequence[float], *, is_paused: bool = True, half: bool = False) -> None:
    """A trial that has so many folds; with one score, or `half`, half of the last."""
    curves = np.full((3, EPOCHS), np.nan)
    for fold, score in enumerate(scores):
        curves[fold] = score
    if len(scores) == 1 and not half:
        curves[0, EPOCHS // 2 :] = np.nan
    runner = Runner(
        number=10 + root,
        root=root,
        curves=curves,
        finals=curves[:, -1].copy(),
        num_epochs=EPOCHS,
        is_paused=is_paused and bool(np.isnan(curves).any()),
    )
    field.add([runner])


def go_on(field: Field, runner: Runner, rung: int) -> None:
    """The trial is trained up to the rung, to what it scored before."""
    curves = np.full((3, EPOCHS), np.nan)
    for fold, until in enumerate(HALVING.until(rung, EPOCHS)):
        curves[fold, :until] = runner.curves[0, 0]
    is_paused = bool(np.isnan(curves).any())
    field.add(
        [
            Runner(
                number=runner.number + 1000,
                root=runner.root,
                curves=curves,
                finals=curves[:, -1].copy(),
                num_epochs=EPOCHS,
                is_paused=is_paused,
            )
        ]
    )


def promotable(field: Field, aside: Container[int] = (), *, is_end: bool = False) -> tuple[Runner, int] | None:
    """The one that goes on first."""
    return next(iter(HALVING.promotions(field, aside, is_end=is_end)), None)


def climb(field: Field, *, is_end: bool) -> dict[int, int]:
    """Promote until nobody is; the rung that each root came to."""
    came_to: dict[int, int] = {}
    while found := promotable(field, is_end=is_end):
        runner, rung = found
        assert runner.root not in came_to or rung == came_to[runner.root] + 1
        came_to[runner.root] = rung
        go_on(field, runner, rung)
    return came_to


@pytest.mark.parametrize(
    ("num_folds", "whole"),
    [
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (4, [1, 2, 4]),
        (5, [1, 2, 4, 5]),
        (8, [1, 2, 4, 8]),
        (10, [1, 2, 4, 8, 10]),
    ],
)
def test_rungs_are_half_a_fold_one_two_four_and_all(num_folds: int, whole: list[int]) -> None:
    rungs = fold_halving(num_folds, 2, 0.4).rungs
    assert fold_halving(num_folds, 1, 0.4).rungs == rungs[1:], "one epoch has no half"
    assert rungs[0] == (0.5,) + (0.0,) * (num_folds - 1)
    assert [sum(rung) for rung in rungs[1:]] == whole
    assert all(set(rung) <= {0.0, 1.0} and sorted(rung, reverse=True) == [*rung] for rung in rungs[1:])


@pytest.mark.parametrize(
    ("lowest", "eta", "epochs", "expected"),
    [
        (1, 3, 9, [1, 3, 9]),
        (2, 2, 9, [2, 4, 8, 9]),
        (1, 10, 2, [1, 2]),
        (7, 2, 50, [7, 14, 28, 50]),
    ],
)
def test_rungs_of_epochs_grow_by_eta_and_end_with_the_whole_training(
    lowest: int, eta: int, epochs: int, expected: list[int]
) -> None:
    halving = epoch_halving(lowest, eta, epochs, 2)
    assert [halving.until(rung, epochs) for rung in range(len(halving.rungs))] == [(each, each) for each in expected]


def test_of_half_a_fold_an_eighth_more_go_on() -> None:
    assert fold_halving(5, 8, 0.4).places == pytest.approx((0.45, 0.16, 0.064, 0.0256))
    assert fold_halving(5, 1, 0.4).places == pytest.approx((0.4, 0.16, 0.064)), "whole folds only"
    assert fold_halving(5, 8, 0.95).places[0] == 1.0, "no more than there are"
    assert fold_halving(1, 1, 0.4).places == (), "of one fold by one epoch everyone has all"
    assert epoch_halving(1, 3, 9, 5).places == pytest.approx((1 / 3, 1 / 9))


@pytest.mark.parametrize(("epochs", "half"), [(1, 1), (2, 1), (3, 2), (5, 3), (8, 4), (9, 5)])
def test_half_a_fold_is_a_whole_number_of_epochs_and_at_least_one(epochs: int, half: int) -> None:
    assert HALVING.until(0, epochs) == (half, 0, 0)
    assert HALVING.until(2, epochs) == (epochs, epochs, epochs)


def test_nobody_goes_on_before_the_first_places_are_given_away() -> None:
    field = field_of(*[[score / 100] for score in range(FIRST - 1)])
    assert climb(field, is_end=False) == {}
    add(field, FIRST - 1, [0.5])
    assert climb(field, is_end=False) == {9: 2, 8: 2, 7: 1, 6: 1}, "of ten, four go on and two of these to the end"


def test_who_comes_later_waits_until_there_are_so_many_times_as_many() -> None:
    field = field_of(*[[score / 100] for score in range(FIRST)])
    climb(field, is_end=False)
    for root in range(FIRST, GROWTH * FIRST - 1):
        add(field, root, [0.5 + root / 100])
        assert promotable(field) is None, root
    add(field, GROWTH * FIRST - 1, [0.1])
    came_to = climb(field, is_end=False)
    assert sum(rung >= 1 for rung in came_to.values()) == 16
    assert {root for root, rung in came_to.items() if rung == 2} == {*range(32, 39)}


def test_at_the_end_all_count_however_few_they_are() -> None:
    assert climb(field_of([0.3], [0.5], [0.4]), is_end=True) == {1: 2, 2: 1}
    assert climb(field_of([0.3]), is_end=True) == {0: 2}
    assert climb(Field(num_folds=3, max_epochs=EPOCHS), is_end=True) == {}


def test_the_lowest_rung_goes_first() -> None:
    """Else the first to come to a rung would take a place of one that is better and still to come."""
    field = field_of([0.3], [0.4])
    add(field, 2, [0.5], half=True)
    assert promotable(field, is_end=True) is not None
    order = []
    while found := promotable(field, is_end=True):
        order.append(found[1])
        go_on(field, *found)
    assert order == sorted(order)


def test_a_trial_that_is_being_promoted_is_left_out_and_keeps_its_place() -> None:
    field = field_of([0.3], [0.5], [0.4])
    first = promotable(field, is_end=True)
    assert first is not None and first[0].number == 11
    assert [runner.number for runner, _ in HALVING.promotions(field, is_end=True)] == [11, 12]
    second = promotable(field, {11}, is_end=True)
    assert second is not None and second[0].number == 12
    assert promotable(field, {11, 12}, is_end=True) is None


def test_what_was_stopped_for_good_does_not_go_on_and_takes_no_place() -> None:
    field = field_of([0.3], [0.4])
    add(field, 2, [0.9], is_paused=False)
    assert climb(field, is_end=True) == {1: 2}


def test_where_one_that_went_on_has_failed_the_next_best_takes_its_place() -> None:
    """Else a study could end without a complete trial."""
    field = field_of(*[[score / 100] for score in range(FIRST)])
    while found := promotable(field):
        runner, rung = found
        if rung == 2 and runner.root == 9:
            break
        go_on(field, runner, rung)
    assert promotable(field, {runner.number}) is not None
    field.give_up({runner.number})
    came_to = climb(field, is_end=False)
    assert came_to == {5: 1, 8: 2, 7: 2}
    assert field.incumbent is not None and field.incumbent.root == 8


def test_nobody_goes_on_from_a_rung_before_all_who_are_to_have_come_to_it() -> None:
    """However many run side by side: else the first to be back would climb, whoever it is."""
    field = field_of(*[[score / 100] for score in range(FIRST)])
    under_way: list[tuple[Runner, int]] = []
    while found := promotable(field, {runner.number for runner, _ in under_way}):
        under_way.append(found)
    assert [runner.root for runner, _ in under_way] == [9, 8, 7, 6]
    for runner, rung in under_way[:0:-1]:
        go_on(field, runner, rung)
        assert promotable(field, {runner.number for runner, _ in under_way}) is None
    go_on(field, *under_way[0])
    found = promotable(field)
    assert found is not None and (found[0].root, found[1]) == (9, 2)


def test_what_violates_a_constraint_goes_on_only_where_a_place_is_left() -> None:
    """Half a fold may violate what a whole one keeps, such as a least accuracy."""
    field = field_of([0.3])
    curves = np.full((3, EPOCHS), np.nan)
    curves[0, :2] = 0.9
    infeasible = Runner(
        number=99, root=99, curves=curves, finals=curves[:, -1].copy(), num_epochs=4, is_paused=True, is_feasible=False
    )
    field.add([infeasible])
    assert climb(field, is_end=True) == {0: 2}
    alone = Field(num_folds=3, max_epochs=EPOCHS)
    alone.add([infeasible])
    assert climb(alone, is_end=True) == {99: 2}


def test_trials_of_different_epochs_are_compared_at_the_same_share() -> None:
    field = Field(num_folds=3, max_epochs=8)
    for root, (epochs, value) in enumerate([(8, 0.3), (4, 0.5)]):
        curves = np.full((3, 8), np.nan)
        curves[0, : epochs // 2] = value
        finals = np.full(3, np.nan)
        field.add([Runner(number=root, root=root, curves=curves, finals=finals, num_epochs=epochs, is_paused=True)])
    assert list(field.means(HALVING.rungs[0])) == [0.3, 0.5]
    found = promotable(field, is_end=True)
    assert found is not None and found[0].number == 1


def test_a_trial_of_which_one_fold_is_behind_has_not_reached_the_rung() -> None:
    by_epochs = epoch_halving(1, 2, EPOCHS, 3)
    field = Field(num_folds=3, max_epochs=EPOCHS)
    curves = np.full((3, EPOCHS), np.nan)
    curves[:2, 0] = 0.5
    finals = np.full(3, np.nan)
    field.add([Runner(number=0, root=0, curves=curves, finals=finals, num_epochs=EPOCHS, is_paused=True)])
    assert np.isnan(field.means(by_epochs.rungs[0])).all()
    assert by_epochs.promotions(field, is_end=True) == []


def test_who_cannot_be_promoted_whatever_the_rest_scores_is_hopeless() -> None:
    """Of ten trials four can be promoted, so the fifth of those so far never will be."""
    field = field_of([0.5], [0.9], [0.6], [0.4], [0.7], [0.3])
    assert [runner.root for runner in HALVING.hopeless(field, 10)] == [3, 5]
    assert [*HALVING.hopeless(field, 100)] == []
    assert [runner.root for runner in HALVING.waiting(field)] == [5, 3, 0, 2, 4, 1], "the worst first"


def test_what_promotions_would_still_take_is_what_they_take() -> None:
    """Ten trials have half of a fold of four epochs: four go on by two epochs, two of these by eight."""
    field = field_of(*[[score / 100] for score in range(FIRST)])
    assert HALVING.epochs_to_climb(field, EPOCHS) == 4 * 2 + 2 * 8
    expected = HALVING.epochs_to_climb(field, EPOCHS)
    before = int((~np.isnan(field.curves)).sum())
    climb(field, is_end=True)
    assert int((~np.isnan(field.curves)).sum()) - before == expected
    assert HALVING.epochs_to_climb(field, EPOCHS) == 0
    assert HALVING.share(FIRST, EPOCHS) == int((~np.isnan(field.curves)).sum()) / field.curves.size


def test_what_promotions_will_take_when_more_trials_have_come() -> None:
    field = field_of(*[[score / 100] for score in range(FIRST)])
    assert HALVING.epochs_to_climb(field, EPOCHS, 2 * FIRST) == 8 * 2 + 4 * 8
    climb(field, is_end=True)
    assert HALVING.epochs_to_climb(field, EPOCHS, 2 * FIRST) == 4 * 2 + 2 * 8


def test_for_trials_that_were_given_up_no_time_is_kept() -> None:
    field = field_of([0.3], [0.4])
    field.give_up({10, 11})
    assert promotable(field, is_end=True) is None
    assert HALVING.epochs_to_climb(field, EPOCHS) == 0


def test_someone_comes_to_the_end_however_few_may_go_on() -> None:
    halving = fold_halving(30, 8, 0.03)
    assert [halving.share(1, 8), halving.share(2, 8)] == [1.0, pytest.approx(0.5 + 0.5 / 60)]


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
