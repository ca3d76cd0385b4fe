"""The sweep: ask -> run the folds, side by side with others' -> tell, until the budget is spent.

One thread asks, decides, tells and is heard; jobs run in Slots. Of this process only that thread writes to the study.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import upload_artifact
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState as OptunaState
from sqlalchemy.exc import SQLAlchemyError

from hpo import interruption
from hpo.cross_validation import Folds
from hpo.definition import StudyDefinition
from hpo.devices import detect_hardware
from hpo.errors import DeviceError, StudyNotFoundError
from hpo.events import (
    Event,
    JobFinished,
    JobLabel,
    JobProgress,
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
from hpo.resources import Resources
from hpo.slots import Slots
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
BLAMELESS = (KeyboardInterrupt, OSError, StorageInternalError, SQLAlchemyError, DeviceError)
"""What ends a sweep and is not the fault of the trials that run."""
BY_CHANCE = {FailureKind.NON_FINITE, FailureKind.OOM, FailureKind.SIGNAL, FailureKind.INFRASTRUCTURE}


@dataclass(frozen=True, slots=True)
class Running:
    """A trial that is being evaluated."""

    trial: optuna.Trial
    folds: Folds


class Sweep:
    """One run of ``hpo sweep`` or ``hpo worker``: evaluates trials of `study`, as many at a time as have room."""

    def __init__(self, definition: StudyDefinition, study: optuna.Study, listen: Listener) -> None:
        self._definition, self._study, self._listen = definition, study, listen
        self._started = 0.0
        self._axis = StepAxis(definition.max_epochs)
        maximize = definition.config.objective.direction == "maximize"
        self._pruner = Pruner(study, definition.config.stopping, self._axis, maximize=maximize)
        self._failures: list[Failure | None] = []
        self._memory = MemoryCheck(self._say)
        self._resources = Resources(definition, detect_hardware(), self._say)
        self._slots = Slots(crews_stay=definition.config.resources.processes == "per_trial")
        self._trials: dict[int, Running] = {}
        self._asks = True
        """Whether it still asks for new trials."""
        self.hopeless: Failure | None = None
        """Why the sweep gave up, when it did."""

    def run(self) -> None:
        """Evaluate trials until the budget is spent. On Ctrl-C the running trials are queued again."""
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
                self._listen(Notice(message=f"{done}; hpo sweep with a larger --trials goes on"))
            self._started = time.monotonic()  # opening MLflow takes seconds that belong to no trial
            self._work()
            interrupted = False
        except BaseException as error:
            interruption.hear()
            self._end_jobs()
            if isinstance(error, KeyError) and self._study.study_name not in study_names(self._study._storage):
                raise StudyNotFoundError(f"study '{self._study.study_name}' was deleted while it ran") from error
            self._give_back(error)
            raise
        finally:
            self._listen(SweepFinished(interrupted=interrupted))

    def _work(self) -> None:
        """Start jobs while there is room and a budget, and hear them, until none runs."""
        while True:
            while self._start_job():
                pass
            self._slots.dismiss_idle()
            if not self._slots:
                return
            self._hear(self._slots.hear())

    def _start_job(self) -> bool:
        """Start the next fold of a trial that waits, or of a new trial, or another of one that runs.

        Returns whether to call again: one was started, or a trial was over before it began.
        """
        if not self._resources.has_room:
            return False
        is_fold_first = self._definition.config.resources.parallel_folds == "on"
        running = self._waiting(beside_others=is_fold_first) or self._new_trial() or self._waiting(beside_others=True)
        if running is None or running.folds.is_over:
            return running is not None
        num_devices = self._resources.offer(running.folds.config, self._num_jobs_left())
        if num_devices:
            label = running.folds.next_label
            self._slots.start(running.folds.start(self._resources.take(label, num_devices)))
        return num_devices > 0

    def _waiting(self, *, beside_others: bool) -> Running | None:
        """The first trial with a fold to start: one of which none runs, or any if folds may run side by side."""
        any_will_do = beside_others and self._definition.config.resources.parallel_folds != "off"
        waiting = (each for each in self._trials.values() if each.folds.num_left)
        return next((each for each in waiting if any_will_do or not each.folds.num_running), None)

    def _new_trial(self) -> Running | None:
        """A trial that is told at once, when there is nothing to run, comes back as one that is over."""
        if len(self._trials) >= self._resources.max_trials:
            return None
        self._asks = self._asks and self._goes_on()
        return self._begin_trial() if self._asks else None

    def _num_jobs_left(self) -> int:
        folds = self._definition.job.cross_validation.num_splits
        to_ask = self._total() - places_taken(self._study) if self._asks else 0
        return sum(each.folds.num_left for each in self._trials.values()) + max(0, to_ask) * folds

    def _hear(self, event: Event | None) -> None:
        """Pass on what a job tells, and decide what follows from it."""
        if event is None:
            return
        self._listen(event)
        if not isinstance(event, JobProgress | JobFinished) or event.label.trial is None or event.label.fold is None:
            return
        running = self._trials[event.label.trial]
        if isinstance(event, JobProgress):
            self._resources.hear(event.label, event.record)
            running.folds.hear(event.label.fold, event.record)
            return
        self._resources.give_back(event.label)
        if event.result is not None:
            running.folds.finish(event.label.fold, event.result)
        if event.result is not None and running.folds.is_over:
            self._slots.dismiss_idle()  # while the next trial is asked for
            self._tell(running)

    def _end_jobs(self) -> None:
        """End every job, and hear of it; nothing of it counts."""
        self._slots.cancel()
        while self._slots:
            try:
                event = self._slots.hear()
                if event is not None:
                    self._listen(event)
            except KeyboardInterrupt:
                self._slots.cancel(at_once=True)
            except Exception:  # what broke one often breaks them all
                continue

    def _say(self, text: str) -> None:
        self._listen(Notice(message=text))

    def _goes_on(self) -> bool:
        budget = self._definition.config.budget
        num_taken = places_taken(self._study)
        if self.hopeless is not None or num_taken >= self._total():
            if running := num_taken - num_finished(self._study) - len(self._trials):
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

    def _begin_trial(self) -> Running | None:
        taken = take_place(self._study, self._definition, self._total())
        if taken is None:
            return None  # another process took the last place at the same moment
        trial, params = taken
        running = self._trials[trial.number] = Running(trial, self._folds(trial, params))
        if running.folds.is_over:
            self._tell(running)
        return running

    def _give_back(self, error: BaseException) -> None:
        """No trial stays RUNNING, whatever happened; one that is not to blame (Ctrl-C, a full disk) is queued again."""
        blameless = isinstance(error, BLAMELESS)
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(cause).__name__}: {cause}"
        reason += "; queued again" if blameless else ""
        given_back = running_here(self._study)
        for trial in given_back:
            if blameless:
                interrupt(self._study, trial.number, trial.params)
            else:
                self._study.tell(trial.number, state=OptunaState.FAIL)
        for trial in given_back:
            self._finished(trial.number, TrialState.FAIL, (), reason=reason)

    def _folds(self, trial: optuna.Trial, params: dict[str, Any]) -> Folds:
        """The folds of a new trial; over before they begin when the values do not go together or will not fit."""
        try:
            config, failure = self._definition.trial_config(params), None
        except ConfigError as error:
            config, failure = self._definition.job, Failure(kind=FailureKind.CONFIG, message=str(error))
        self._listen(TrialStarted(number=trial.number, params=params, config=config))
        objective = self._definition.config.objective
        split_id = known_split(self._study, self._definition) or config.cross_validation.split_id
        config = config.with_values({"cross_validation.split_id": split_id})
        folder = trial_folder(self._study, trial.number)
        values: dict[int, float] = {}

        def on_epoch(fold: int, epoch: int, value: float) -> str:
            step = self._axis.step(fold, epoch)
            try:
                if step not in values:  # or it did so in the first attempt of a fold
                    trial.report(value, step)
            except UpdateFinishedTrialError:
                return "it was ended from outside"
            values[step] = value
            return self._pruner.reason_to_stop(values, fold, epoch)

        label = JobLabel(study=self._study.study_name, trial=trial.number)
        folds = Folds(config, folder, label, objective.metric, on_epoch)
        folds.failure = failure
        if failure is None:
            self._keep_config(trial, config, folder)
            folds.stopped = self._too_large(trial, self._resources.placed(config))
        return folds

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

    def _tell(self, running: Running) -> None:
        """A trial is over: tell the study."""
        del self._trials[running.trial.number]
        self._resources.forget(running.trial.number)
        try:
            self._tell_study(running.trial, running.folds)
        except UpdateFinishedTrialError:
            self._finished(running.trial.number, TrialState.FAIL, (), reason="it was ended from outside")

    def _tell_study(self, trial: optuna.Trial, folds: Folds) -> None:
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
