"""What must hold of a study, whatever happened to the processes that made it: the checker of every test of faults."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState

from hpo.fold_ledger import FoldState
from hpo.ledger import SUCCEEDS, LedgerStorage, this_host
from hpo.pruning import axis_of
from hpo.storage import open_storage
from hpo.study import FOLDER
from hpo.tally import CONTINUES, INTERRUPTED, REVIVES, SAMPLED
from training.job_processes import JOB_ID


class History:
    """A study that nobody works at any more, and the traces of its processes on this machine."""

    def __init__(self, url: str, study: str) -> None:
        self._storage: LedgerStorage = open_storage(url, create=False)
        self.study = optuna.load_study(study_name=study, storage=self._storage)
        self.trials = self.study.get_trials(deepcopy=False)
        self.folder = Path(self.study.user_attrs[FOLDER])

    def close(self) -> None:
        """Let go of the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    @property
    def counted(self) -> list[FrozenTrial]:
        """Trials that came to their end, one that was promoted with the last that went on with it."""
        ended = [each for each in self.trials if each.state.is_finished() and INTERRUPTED not in each.user_attrs]
        promoted = {each.user_attrs[REVIVES] for each in ended if REVIVES in each.user_attrs}
        return [each for each in ended if each.number not in promoted]

    def holders(self) -> set[int]:
        """Ids of the processes that evaluate a trial."""
        held = {each.holder.pid for each in self._storage.held(self.study._study_id)}
        self.close()
        return held

    def held_elsewhere(self) -> int | None:
        """Number of a trial that another machine evaluates, or processes that see as little of ours."""
        held = [each.number for each in self._storage.held(self.study._study_id) if each.holder.host != this_host()]
        self.close()
        return held[0] if held else None

    def violations(self, *, num_trials: int, num_folds: int) -> list[str]:
        """What does not hold; empty when all does."""
        return [
            *self._of_states(num_trials),
            *self._of_successors(),
            *self._of_folds(num_folds),
            *self.of_mlflow(),
            *self._of_files(),
            *self._of_processes(),
        ]

    def scores(self) -> list[tuple[Any, ...]]:
        """Parameters, and what each trial came to, in no order that depends on which was first."""
        self.close()
        return sorted(
            (tuple(sorted(trial.user_attrs[SAMPLED].items())), trial.state.name, tuple(trial.values or ()))
            for trial in self.counted
        )

    @property
    def num_complete(self) -> int:
        """Trials that have all folds."""
        return sum(trial.state is TrialState.COMPLETE for trial in self.trials)

    def curves(self) -> dict[tuple[Any, ...], dict[int, float]]:
        """By parameters, the value after each epoch of each fold, by step."""
        self.close()
        verdict = axis_of(self.study).verdict
        found: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
        for trial in self.trials:
            if SAMPLED in trial.user_attrs:
                params = tuple(sorted(trial.user_attrs[SAMPLED].items()))
                found[params] |= {step: value for step, value in trial.intermediate_values.items() if step < verdict}
        return found

    def _of_states(self, num_trials: int) -> Iterator[str]:
        for trial in self.trials:
            if not trial.state.is_finished():
                yield f"trial {trial.number} is {trial.state.name}"
        if len(self.counted) != num_trials:
            yield f"{len(self.counted)} trials count, {num_trials} were asked for"
        for held in self._storage.held(self.study._study_id):
            yield f"trial {held.number} has a lease"

    def _of_successors(self) -> Iterator[str]:
        successors = Counter(trial.user_attrs[SUCCEEDS] for trial in self.trials if SUCCEEDS in trial.user_attrs)
        for number, count in successors.items():
            if count > 1:
                yield f"trial {number} has {count} successors"
        for trial in self.trials:
            was_sampled = SAMPLED in trial.user_attrs
            if INTERRUPTED in trial.user_attrs and was_sampled and trial.number not in successors:
                yield f"trial {trial.number} was interrupted, and none goes on with it"

    def _of_folds(self, num_folds: int) -> Iterator[str]:
        trained: dict[tuple[int, int], set[int]] = defaultdict(set)
        for trial in self.trials:
            root, rows = trial.user_attrs.get(CONTINUES, trial.number), self._storage.folds(trial._trial_id)
            done = [row for row in rows if row.state is FoldState.COMPLETE]
            for row in done:
                trained[root, row.fold].add(row.trained_by)
            if trial.state is TrialState.COMPLETE:
                scores = [row.facts.score for row in done if row.facts]
                if len(scores) != num_folds or fmean(scores) != trial.value:
                    yield f"trial {trial.number} was told {trial.value}, its folds are {scores}"
        for (root, fold), by in trained.items():
            if len(by) > 1:
                yield f"fold {fold} of trial {root} was trained to its end by trials {sorted(by)}"

    def of_mlflow(self) -> Iterator[str]:
        """What does not hold of its runs in MLflow, where that is a SQLite file beside its folder."""
        path = self.folder.parent / "mlflow.db"
        if not path.exists():
            return
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{path}")
        experiment = client.get_experiment_by_name(self.study.study_name)
        runs = [] if experiment is None else client.search_runs([experiment.experiment_id], max_results=50_000)
        seen = Counter((run.data.tags.get("hpo.trial"), run.data.tags.get("hpo.fold")) for run in runs)
        yield from (f"MLflow has {count} runs of {which}" for which, count in seen.items() if count > 1)
        for run in runs:
            if run.info.status == "RUNNING":
                yield f"MLflow shows {run.info.run_name} as RUNNING"
        for trial in self.trials:
            if trial.state is not TrialState.COMPLETE:
                continue
            rows = self._storage.folds(trial._trial_id)
            own = [str(row.fold) for row in rows if row.state is FoldState.COMPLETE and row.trained_by == trial.number]
            for fold in (None, *own):
                if seen[str(trial.number), fold] == 0:
                    yield f"MLflow lacks trial {trial.number}{f' fold {fold}' if fold else ''}"

    def _of_files(self) -> Iterator[str]:
        complete = {f"trial_{trial.number:04d}" for trial in self.trials if trial.state is TrialState.COMPLETE}
        for path in self.folder.rglob(".*.tmp"):
            if path.relative_to(self.folder).parts[0] in complete:
                yield f"{path} was left"

    def _of_processes(self) -> Iterator[str]:
        for process in processes_of(self.folder):
            yield f"process {process.pid} is alive: {' '.join(process.cmdline())}"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Live processes of jobs whose run directory is in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(JOB_ID, "").startswith(f"{folder}{os.sep}"):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
