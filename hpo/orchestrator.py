"""The sweep: ask -> evaluate the folds -> tell, until the budget is spent. Only this process writes to the study."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import upload_artifact
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState as OptunaState

from hpo.cross_validation import FoldScores, evaluate_folds
from hpo.definition import StudyDefinition
from hpo.errors import StudyNotFoundError
from hpo.events import (
    JobLabel,
    Listener,
    Notice,
    SweepFinished,
    SweepStarted,
    TrialFinished,
    TrialStarted,
    TrialState,
)
from hpo.memory_check import CONSTRAINT, MemoryCheck
from hpo.pruning import Pruner, StepAxis
from hpo.storage import artifact_store
from hpo.study import (
    FAILURE,
    FOLD_SCORES,
    SPLIT_ID,
    UID,
    best_value,
    grid_size,
    interrupt,
    known_split,
    num_finished,
    places_taken,
    recover,
    running_elsewhere,
    running_here,
    study_names,
    take_place,
    trial_folder,
)
from training.config import JobConfig, dump_yaml
from training.errors import ConfigError, Failure, FailureKind
from training.run_dir import write_atomically

HOPELESS_AFTER = 3
"""A sweep ends when this many first trials all fail in the same way, for a reason that no hyperparameter explains."""
BY_CHANCE = {FailureKind.NON_FINITE, FailureKind.OOM, FailureKind.SIGNAL, FailureKind.INFRASTRUCTURE}


class Sweep:
    """One run of ``hpo sweep``: evaluates trials of `study` one after the other."""

    def __init__(self, definition: StudyDefinition, study: optuna.Study, listen: Listener) -> None:
        self._definition, self._study, self._listen = definition, study, listen
        self._started = 0.0
        self._axis = StepAxis(definition.max_epochs)
        maximize = definition.config.objective.direction == "maximize"
        self._pruner = Pruner(study, definition.config.stopping, self._axis, maximize=maximize)
        self._failures: list[Failure | None] = []
        self._memory = MemoryCheck(lambda text: listen(Notice(message=text)))
        self.hopeless: Failure | None = None
        """Why the sweep gave up, when it did."""

    def run(self) -> None:
        """Evaluate trials until the budget is spent. On Ctrl-C the running trial is told and queued, then it raises."""
        recovered = recover(self._study)
        for number, host in running_elsewhere(self._study).items():
            self._listen(
                Notice(
                    message=f"trial {number} runs on {host}; if that machine is gone, end it: optuna tell --state fail"
                    f" --trial-number {number} --study-name {self._study.study_name} --storage URL"
                )
            )
        interrupted = True
        try:
            self._listen(self._opening())
            for number in recovered:
                self._finished(number, TrialState.FAIL, (), reason="its process ended; queued again")
            if places_taken(self._study) >= self._total():
                done = f"the study has the {self._total()} trials that were asked for"
                self._listen(Notice(message=f"{done}; a larger --trials goes on"))
            self._started = time.monotonic()  # opening MLflow takes seconds that belong to no trial
            while self._goes_on():
                self._run_trial()
            interrupted = False
        except BaseException as error:
            if isinstance(error, KeyError) and self._study.study_name not in study_names(self._study._storage):
                raise StudyNotFoundError(f"study '{self._study.study_name}' was deleted while it ran") from error
            self._give_back(error)
            raise
        finally:
            self._listen(SweepFinished(interrupted=interrupted))

    def _goes_on(self) -> bool:
        budget = self._definition.config.budget
        num_taken = places_taken(self._study)
        if self.hopeless is not None or num_taken >= self._total():
            if running := num_taken - num_finished(self._study):
                self._listen(Notice(message=f"the last {running} of {self._total()} trials run in other processes"))
            return False
        if budget.timeout is not None and time.monotonic() - self._started >= budget.timeout:
            self._listen(
                Notice(message=f"budget.timeout of {budget.timeout:g} s is over; the same command continues the study")
            )
            return False
        return True

    def _total(self) -> int:
        points = grid_size(self._definition)
        trials = self._definition.config.budget.trials
        return trials if points is None else min(trials, points)

    def _opening(self) -> SweepStarted:
        config = self._definition.config
        return SweepStarted(
            study=config.study,
            study_uid=self._study.user_attrs[UID],
            metric=config.objective.metric,
            direction=config.objective.direction,
            num_splits=self._definition.job.cross_validation.num_splits,
            finished_trials=num_finished(self._study),
            total_trials=self._total(),
            best_value=best_value(self._study),
            definition=self._definition.identity(),
        )

    def _run_trial(self) -> None:
        taken = take_place(self._study, self._definition, self._total())
        if taken is None:
            return  # another process took the last place at the same moment
        trial, params = taken
        try:
            self._tell(trial, self._evaluate(trial, params))
        except UpdateFinishedTrialError:
            self._finished(trial.number, TrialState.FAIL, (), reason="it was ended from outside")

    def _give_back(self, error: BaseException) -> None:
        """No trial stays RUNNING, whatever happened; one that is not to blame (Ctrl-C, a full disk) is queued again."""
        blameless = isinstance(error, (KeyboardInterrupt, OSError, StorageInternalError))
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        for trial in running_here(self._study):
            if blameless:
                interrupt(self._study, trial.number, trial.params)
                reason += "; queued again"
            else:
                self._study.tell(trial.number, state=OptunaState.FAIL)
            self._finished(trial.number, TrialState.FAIL, (), reason=reason)

    def _evaluate(self, trial: optuna.Trial, params: dict[str, Any]) -> FoldScores:
        try:
            config = self._definition.trial_config(params)
        except ConfigError as error:
            self._listen(TrialStarted(number=trial.number, params=params, config=self._definition.job))
            return FoldScores(scores=(), failure=Failure(kind=FailureKind.CONFIG, message=str(error)))
        self._listen(TrialStarted(number=trial.number, params=params, config=config))
        objective = self._definition.config.objective
        split_id = known_split(self._study, self._definition) or config.cross_validation.split_id
        config = config.with_values({"cross_validation.split_id": split_id})
        folder = trial_folder(self._study, trial.number)
        self._keep_config(trial, config, folder)
        if too_large := self._too_large(trial, config):
            return FoldScores(scores=(), stopped=too_large, split_id=split_id)
        values: dict[int, float] = {}

        def on_epoch(fold: int, epoch: int, value: float) -> str:
            step = self._axis.step(fold, epoch)
            values[step] = value
            trial.report(value, step)
            return self._pruner.reason_to_stop(values, fold, epoch)

        label = JobLabel(study=self._study.study_name, trial=trial.number)
        return evaluate_folds(config, folder, label, objective.metric, on_epoch, self._listen)

    def _too_large(self, trial: optuna.Trial, config: JobConfig) -> str:
        """Why `config` will not fit its devices; the sampler learns it as a violated constraint."""
        found = self._memory.overshoot(config)
        if found is None:
            return ""
        trial.set_constraint(CONSTRAINT, found[0])
        return found[1] if found[0] > 0 else ""

    def _keep_config(self, trial: optuna.Trial, config: JobConfig, folder: Path) -> None:
        """The resolved configuration beside the folds, and as an artifact that optuna-dashboard shows."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.yaml"
        write_atomically(path, dump_yaml(config.model_dump()).encode())
        upload_artifact(artifact_store=artifact_store(self._definition.root), file_path=str(path), study_or_trial=trial)

    def _tell(self, trial: optuna.Trial, folds: FoldScores) -> None:
        trial.set_user_attr(FOLD_SCORES, list(folds.scores))
        trial.set_user_attr(SPLIT_ID, folds.split_id)
        self._failures.append(folds.failure)
        if folds.failure is not None:
            trial.set_user_attr(FAILURE, asdict(folds.failure))
            self._study.tell(trial, state=OptunaState.FAIL)
            reason = f"{folds.failure.kind}: {folds.failure.message}"
            self._finished(trial.number, TrialState.FAIL, folds.scores, reason=reason)
            self.hopeless = hopeless(self._failures)
        elif folds.stopped:
            self._study.tell(trial, state=OptunaState.PRUNED)
            self._finished(trial.number, TrialState.PRUNED, folds.scores, reason=folds.stopped)
        else:
            self._study.tell(trial, folds.mean)
            self._finished(trial.number, TrialState.COMPLETE, folds.scores, value=folds.mean)

    def _finished(self, number: int, state: TrialState, scores: tuple[float, ...], **details: Any) -> None:
        details |= {"best_value": best_value(self._study), "num_finished": num_finished(self._study)}
        self._listen(TrialFinished(number=number, state=state, fold_scores=scores, **{"value": None, **details}))


def hopeless(failures: list[Failure | None]) -> Failure | None:
    """The common failure of the first trials of a sweep, when they all failed alike; else None."""
    first = [failure for failure in failures[:HOPELESS_AFTER] if failure and failure.kind not in BY_CHANCE]
    # Numbers may differ: sizes, process ids, addresses.
    alike = {(failure.kind, re.sub(r"\d+", "", failure.message)) for failure in first}
    return first[-1] if len(first) == HOPELESS_AFTER and len(alike) == 1 else None
