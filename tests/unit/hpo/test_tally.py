"""What a tally says is what a slow recount says, at a cost that does not grow."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from hpo.pruning import Pruner, StepAxis
from hpo.report import describe_status
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
from hpo.tally import INTERRUPTED, Tally, tally_of
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
    taken = [trial.number for trial in counted if trial.state is not TrialState.WAITING]
    splits = [trial.user_attrs[SPLIT_ID] for trial in trials if trial.user_attrs.get(SPLIT_ID)]
    told = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    return {
        "taken": [sum(number < end for number in taken) for end in (*range(0, len(trials) + 2, 3), len(trials))],
        "finished": sum(trial.state.is_finished() for trial in counted),
        "states": Counter(trial.state for trial in counted),
        "interrupted": {trial.number for trial in trials if trial not in counted},
        "running": [trial._trial_id for trial in counted if trial.state is TrialState.RUNNING],
        "best": max((trial.value for trial in trials if trial.state is TrialState.COMPLETE), default=None),
        "curves": sorted(str(sorted(trial.intermediate_values.items())) for trial in told if trial.intermediate_values),
        "split": splits[0] if splits else None,
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
        "curves": sorted(str(sorted(curve.items())) for curve in tally.curves()),
        "split": tally.first(SPLIT_ID),
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
    match rng.choice(["complete", "pruned", "failed", "interrupted", "withdrawn", "half", "queued"]):
        case "complete":
            trial.set_user_attr(SPLIT_ID, rng.choice([None, "split"]))
            study.tell(trial, rng.choice([rng.random(), float("inf"), float("-inf")]))
        case "pruned":
            study.tell(trial, state=TrialState.PRUNED)
        case "failed":
            study.tell(trial, state=TrialState.FAIL)
        case "interrupted":
            interrupt(study, number, {"x": 1.0})
        case "withdrawn":
            withdraw(study, number)
        case "half":
            trial.set_user_attr(INTERRUPTED, True)  # its process died in the middle of an interruption
        case "queued":
            study.enqueue_trial({"x": 2.0})


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
    pruner = Pruner(study, definition.config.stopping, StepAxis(EPOCHS), maximize=True)

    def run_trial() -> None:
        assert places_taken(study) < 10_000
        taken = take_place(study, definition, 10_000)
        assert taken is not None
        values: dict[int, float] = {}
        for epoch in range(1, EPOCHS + 1):
            values[epoch] = 0.5
            taken[0].report(0.5, epoch)
            pruner.reason_to_stop(values, 0, epoch)
        taken[0].set_user_attr(SPLIT_ID, known_split(study, definition))
        study.tell(taken[0], 0.5)
        best_value(study), num_finished(study)

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
