"""What a tally says is what a slow recount says, at a cost that does not grow."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from hpo.pruning import Pruner
from hpo.reporting.summary import describe_status
from hpo.step_axis import StepAxis
from hpo.storage import open_storage
from hpo.study import (
    FAILURE,
    SPLIT_ID,
    best_value,
    interrupt,
    known_split,
    load_study,
    num_finished,
    open_study,
    places_taken,
    take_place,
    withdraw,
)
from hpo.tally import (
    CONTINUES,
    DEVICE_SECONDS,
    FOLD_SCORES,
    INTERRUPTED,
    PAUSED,
    REVIVES,
    SAMPLED,
    VIOLATED,
    Tally,
    tally_of,
)
from tests.many_trials import EPOCHS, add_finished_trials, define_six


@pytest.fixture
def storage(storage_url: str) -> Iterator[RDBStorage]:
    """A fresh database, once for each kind."""
    opened = open_storage(storage_url)
    yield opened
    opened.remove_session()
    opened.engine.dispose()


def recount(study: optuna.Study) -> dict[str, object]:
    """Everything a tally knows, from all trials."""
    trials = study.get_trials(deepcopy=False)
    counted = [trial for trial in trials if INTERRUPTED not in trial.user_attrs]
    revivals = [trial for trial in counted if REVIVES in trial.user_attrs]
    taken = [trial.number for trial in counted if trial.state is not TrialState.WAITING and trial not in revivals]
    taken_up = {trial.user_attrs[REVIVES] for trial in revivals if trial.state.is_finished()}
    replaced = sum(trial.state.is_finished() for trial in revivals)
    splits = [trial.user_attrs[SPLIT_ID] for trial in trials if trial.user_attrs.get(SPLIT_ID)]
    told = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    in_turn = sorted(counted, key=lambda trial: (trial.datetime_complete or datetime.max, trial._trial_id))
    ended = [trial for trial in in_turn if trial.state.is_finished() and trial.number not in taken_up]
    first = next((trial for trial in ended if trial.state is TrialState.COMPLETE), None)
    return {
        "taken": [sum(number < end for number in taken) for end in (*range(0, len(trials) + 2, 3), len(trials))],
        "finished": sum(trial.state.is_finished() for trial in counted) - replaced,
        "states": Counter(trial.state for trial in counted) - Counter({TrialState.PRUNED: replaced}),
        "taken up": {trial.user_attrs[REVIVES] for trial in revivals},
        "given up": {
            trial.user_attrs[REVIVES]
            for trial in revivals
            if trial.state.is_finished() and not (trial in told and trial.intermediate_values)
        },
        "has new": any(trial.state is TrialState.RUNNING and trial not in revivals for trial in counted),
        "to revive": sum(trial.state is TrialState.WAITING for trial in trials if REVIVES in trial.user_attrs),
        "interrupted": {trial.number for trial in trials if trial not in counted},
        "running": [trial._trial_id for trial in counted if trial.state is TrialState.RUNNING],
        "best": max((trial.value for trial in trials if trial.state is TrialState.COMPLETE), default=None),
        "reported": sorted(
            str(
                (
                    trial.number,
                    trial.user_attrs.get(CONTINUES, trial.number),
                    trial.user_attrs.get(SAMPLED, {}),
                    sorted(trial.intermediate_values.items()),
                    trial.user_attrs.get(FOLD_SCORES, []),
                    PAUSED in trial.user_attrs,
                )
            )
            for trial in told
            if trial.intermediate_values
        ),
        "split": splits[0] if splits else None,
        "told": [
            (trial._trial_id, trial.value if trial.state is TrialState.COMPLETE or PAUSED in trial.user_attrs else None)
            for trial in ended
            if PAUSED not in trial.user_attrs or (first and ended.index(trial) >= ended.index(first))
        ],
        "device seconds": pytest.approx(sum(trial.user_attrs.get(DEVICE_SECONDS, 0.0) for trial in trials)),
    }


def found(tally: Tally, num_trials: int) -> dict[str, object]:
    """The same, from a tally."""
    return {
        "taken": [tally.places_taken(end) for end in (*range(0, num_trials + 2, 3), num_trials)],
        "finished": tally.num_finished(),
        "states": tally.states(),
        "interrupted": tally.interrupted(),
        "running": tally.running(),
        "best": tally.best_value(),
        "taken up": tally.taken_up(),
        "given up": tally.given_up(),
        "has new": tally.has_new(),
        "to revive": tally.num_to_revive(),
        "reported": sorted(
            str((each.number, each.root, each.params, sorted(each.values.items()), each.fold_scores, each.is_paused))
            for each in tally.reported()
        ),
        "split": tally.first(SPLIT_ID),
        "told": [(told.trial_id, told.value) for told in tally.told()],
        "device seconds": tally.device_seconds(),
    }


def live(study: optuna.Study, rng: random.Random) -> None:
    """One thing that may happen to a trial of the study."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if not running or rng.random() < 0.4:
        study.ask().set_user_attr("hpo:sampled", {})
        return
    chosen = rng.choice(running)
    number, trial = chosen.number, optuna.Trial(study, chosen._trial_id)
    trial.report(rng.random(), len(chosen.intermediate_values) + 1)
    trial.set_user_attr(DEVICE_SECONDS, chosen.user_attrs.get(DEVICE_SECONDS, 0.0) + rng.random())
    match rng.choice(["complete", "pruned", "failed", "interrupted", "withdrawn", "half", "queued", "revived"]):
        case "complete":
            trial.set_user_attr(SPLIT_ID, rng.choice([None, "split"]))
            study.tell(trial, rng.choice([rng.random(), float("inf"), float("-inf")]))
        case "pruned":
            study.tell(trial, state=TrialState.PRUNED)
        case "failed":
            study.tell(trial, state=TrialState.FAIL)
        case "interrupted":
            interrupt(study, number)
        case "withdrawn":
            withdraw(study, number)
        case "half":
            trial.set_user_attr(INTERRUPTED, True)  # its process died in the middle of an interruption
        case "queued":
            study.enqueue_trial({"x": 2.0})
        case "revived":
            trial.set_user_attr(FOLD_SCORES, [0.5, None])
            trial.set_user_attr(PAUSED, True)
            study.tell(trial, state=TrialState.PRUNED)
            root = chosen.user_attrs.get(CONTINUES, number)
            study.enqueue_trial({"x": 3.0}, user_attrs={CONTINUES: root, REVIVES: number})


@pytest.mark.parametrize("seed", range(3))
def test_a_tally_agrees_with_a_slow_recount_whatever_happens(storage: RDBStorage, storage_url: str, seed: int) -> None:
    study, rng = optuna.create_study(study_name="demo", storage=storage, direction="maximize"), random.Random(seed)
    optuna.create_study(study_name="beside", storage=storage).enqueue_trial({})
    elsewhere = open_storage(storage_url)
    theirs = optuna.load_study(study_name="demo", storage=elsewhere)
    for _ in range(60):
        live(rng.choice([study, theirs]), rng)
        if rng.random() < 0.5:
            expected = recount(study)
            assert found(tally_of(study), len(study.trials)) == expected
    assert found(Tally(theirs), len(study.trials)) == recount(study)
    elsewhere.remove_session()
    elsewhere.engine.dispose()


def test_a_trial_that_violates_a_constraint_is_never_the_best(storage: RDBStorage) -> None:
    study = optuna.create_study(study_name="demo", storage=storage, direction="minimize")
    for value, violation in ((3.0, -1.0), (1.0, 0.5), (2.0, 0.0)):
        trial = study.ask()
        trial.set_constraint("memory", violation)
        study.tell(trial, value)
    assert (best_value(study), study.best_value) == (2.0, 2.0)


def test_what_violates_a_constraint_is_no_improvement_that_others_would_have_to_beat(storage: RDBStorage) -> None:
    study = optuna.create_study(study_name="demo", storage=storage, direction="maximize")
    for value, violation in ((0.9, 1.0), (0.5, -1.0)):
        attributes = {VIOLATED: {"parameters.at_most": violation}} if violation > 0 else {}
        study.add_trial(create_trial(value=value, user_attrs=attributes, constraints={"parameters.at_most": violation}))
    assert [told.value for told in tally_of(study).told()] == [None, 0.5]


def test_a_study_that_is_in_no_database_has_no_tally() -> None:
    with pytest.raises(TypeError, match="a tally needs a study in a database, not in InMemoryStorage"):
        tally_of(optuna.create_study())


# The cost


def counted(storage: RDBStorage, act: Callable[[], object]) -> int:
    """SQL statements that `act` takes."""
    statements: list[str] = []

    def count(connection: object, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", count)
    act()
    sqlalchemy.event.remove(storage.engine, "before_cursor_execute", count)
    return len(statements)


def test_a_trial_takes_as_many_statements_after_500_others_as_after_50(storage: RDBStorage, tmp_path: Path) -> None:
    definition = define_six(tmp_path)
    study = open_study(definition, storage)
    pruner = Pruner(study, definition.config.stopping, StepAxis(EPOCHS, 1), maximize=True)

    def run_trial() -> None:
        assert places_taken(study) < 10_000
        taken = take_place(study, definition, 10_000)
        assert taken is not None
        runner = pruner.new_runner(taken[0].number, taken[0].number, EPOCHS)
        for epoch in range(1, EPOCHS + 1):
            taken[0].report(0.5, epoch)
            pruner.hear(runner, 0, epoch, 0.5)
        taken[0].set_user_attr(SPLIT_ID, known_split(study, definition))
        study.tell(taken[0], 0.5)
        best_value(study), num_finished(study)
        tally_of(study).told(), tally_of(study).device_seconds()

    costs = []
    for count in (50, 450):
        add_finished_trials(study, definition, count)
        run_trial()  # reads what is new
        costs.append(counted(storage, run_trial))
    assert costs[0] == costs[1] > 0
    assert places_taken(study) == num_finished(study) == 504


def test_a_status_takes_as_many_statements_for_500_trials_as_for_50(storage: RDBStorage, tmp_path: Path) -> None:
    costs = []
    for count in (50, 500):
        definition = define_six(tmp_path, study=f"of-{count}")
        add_finished_trials(open_study(definition, storage), definition, count)
        failure = {FAILURE: {"kind": "oom", "message": "too large"}}
        opened = load_study(f"of-{count}", storage)
        opened.add_trial(create_trial(state=TrialState.FAIL, user_attrs=failure))
        costs.append(counted(storage, lambda opened=opened: describe_status(opened)))
        assert sum(describe_status(opened).trials.values()) == count + 1
    assert costs[0] == costs[1] > 0
