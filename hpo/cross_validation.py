"""The folds of one trial: which to run next, what each said, and what they come to."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.criteria import Criteria, Score, mean_score, not_reported
from hpo.events import JobLabel
from hpo.fold_ledger import Facts
from hpo.job import Job
from hpo.search_space import VOLATILE
from hpo.trial import JobStatus, TrialResult
from training.config import JobConfig, flatten
from training.errors import Failure, FailureKind, TrainingError
from training.run_dir import Event, Record, RunDir

PARTS_OF_A_BATCH = ("training.max_micro_batch_size", "training.accumulate_grad_batches")
OnEpoch = Callable[[int, int, Any], str]
"""Hears (fold, finished epochs, Score); returns why the trial is to stop, or "" to let it go on."""


class Folds:
    """The folds of one trial, in order or several at a time, until all are scored, one fails or it is stopped.

    The same `config` gives the same folds in every trial. Used by one thread.
    """

    def __init__(  # noqa: PLR0913 - what a trial is
        self,
        config: JobConfig,
        folder: Path,
        label: JobLabel,
        criteria: Criteria,
        on_epoch: OnEpoch,
        *,
        until: Sequence[int] | None = None,
        goes_on_after: Callable[[Failure], bool] = lambda failure: False,
    ) -> None:
        """Each fold is paused after its part of `until`, in epochs, and not begun for 0; None trains all to their end.

        `goes_on_after` says whether another trial may go on with one that failed so.
        """
        self.config, self._folder, self._label = config, folder, label
        self._criteria, self._on_epoch = criteria, on_epoch
        self._num_splits = config.cross_validation.num_splits
        epochs = config.training.epochs
        self.until = (epochs,) * self._num_splits if until is None else tuple(until)
        """Epochs of each fold."""
        self._to_start = [fold for fold, epochs in enumerate(self.until) if epochs]
        self._running: dict[int, RunDir] = {}
        self._scores: dict[int, Score] = {}
        self._metrics: dict[int, Mapping[str, float]] = {}
        """Of the last evaluation of each fold."""
        self.begun: set[int] = set()
        """Folds that another trial began, and that go on from its checkpoint."""
        self._parked: set[int] = set()
        self._goes_on_after = goes_on_after
        self._reached: dict[int, int] = {}
        """Epochs that were scored, by fold."""
        self._next: dict[int, range] = {}
        """Epochs that the newest job of each fold is to train."""
        self.split_id = config.cross_validation.split_id
        """Identity of the samples and folds, once a fold was trained."""
        self.failure: Failure | None = None
        self.micro_batch: int | None = None
        """Of each rank of the job that ran out of memory, where a smaller one would give the same training."""
        self.failed_fold: int | None = None
        """The fold whose failure it is; None where the trial failed before its first one."""
        self.stopped = ""
        """Why the trial was stopped."""

    @property
    def scores(self) -> tuple[Score | None, ...]:
        """By fold; None for one that did not run to its end."""
        return tuple(self._scores.get(fold) for fold in range(self._num_splits))

    @property
    def mean(self) -> Score:
        """The trial's value, when all folds ran to their end."""
        return mean_score([self._scores[fold] for fold in range(self._num_splits)])

    @property
    def violations(self) -> dict[str, float]:
        """Of each constraint by its name, by what its folds have reported; nothing before the first evaluation."""
        return self._criteria.violations([*self._metrics.values()]) if self._metrics else {}

    @property
    def num_running(self) -> int:
        """Folds that run now."""
        return len(self._running)

    @property
    def num_left(self) -> int:
        """Folds to start."""
        return 0 if self.failure or self.stopped or self._parked else len(self._to_start)

    @property
    def is_parked(self) -> bool:
        """Whether the rest of it is for another sweep."""
        return bool(self._parked) and not self.failure and not self.stopped

    @property
    def is_paused(self) -> bool:
        """Whether every fold has come as far as it was to, and not all of them to their end."""
        return (
            all(self._reached.get(fold, 0) >= epochs for fold, epochs in enumerate(self.until))
            and len(self._scores) < self._num_splits
            and not self.failure
            and not self.stopped
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing is to start."""
        return not self.num_running and not self.num_left

    @property
    def next_label(self) -> JobLabel:
        """Of the fold that `start` would give."""
        return JobLabel(study=self._label.study, trial=self._label.trial, fold=self._to_start[0])

    def start(self, changes: Mapping[str, Any]) -> Job:
        """The next fold as a job, its configuration with `changes`, which say where it runs."""
        self._next[self._to_start[0]] = self.next_epochs
        label, fold = self.next_label, self._to_start.pop(0)
        own = {"cross_validation.fold": fold, "cross_validation.split_id": self.split_id, "output.save_model": False}
        own["output.pause_after"] = self.until[fold] if self.until[fold] < self.config.training.epochs else None
        run_dir = self._running[fold] = self.run_dir(fold)
        config, resume = self.config.with_values({**own, **changes}), fold in self.begun
        return Job(label=label, config=config, run_dir=run_dir, resume=resume)

    def take_over(self, known: Mapping[int, Facts]) -> list[tuple[int, int, Score]]:
        """Go on where the trial was that left these run directories; call it before the first fold starts.

        Folds that ended count with their scores: those that are `known` to have, whatever has become of their run
        directory. Those that have a checkpoint go on from it. A run directory that is damaged, or of another
        configuration, is trained anew. Returns the values it need not hear again.
        """
        values: list[tuple[int, int, Score]] = []
        for fold, until in enumerate(self.until):
            found = _left_behind(self.run_dir(fold), self.config, self._criteria)
            if fold in known and known[fold].computed == self._computed:
                found = _of(known[fold], found)
            if found is None:
                continue
            self._metrics |= {fold: found.metrics} if found.metrics else {}
            values += [(fold, epoch, value) for epoch, value in found.values.items()]
            self._reached[fold] = found.epoch
            if found.score is not None:
                self._scores[fold], self.split_id = found.score, found.split_id
            elif found.epoch < until or until == self.config.training.epochs:  # or it lacks only its result
                self.begun.add(fold)
                continue
            if until:
                self._to_start.remove(fold)
        return values

    def __str__(self) -> str:
        return f"{len(self._scores)} of {self._num_splits} folds are done, {len(self.begun)} begun"

    @property
    def epochs_left(self) -> int:
        """Over all folds, until it is paused or ends."""
        return sum(max(0, until - self._reached.get(fold, 0)) for fold, until in enumerate(self.until))

    @property
    def next_epochs(self) -> range:
        """The epochs that the fold which `start` would give is to train, counted from 0."""
        fold = self._to_start[0]
        return range(self._reached[fold] if fold in self.begun else 0, self.until[fold])

    def run_dir(self, fold: int) -> RunDir:
        """Where a fold is trained."""
        return RunDir(self._folder / f"fold_{fold}")

    def hear(self, fold: int, record: Record) -> None:
        """A fold tells something; it may be the reason to stop the trial."""
        is_scored, reason = record.event is Event.EVALUATE and self._criteria.unusable(record.values) is None, ""
        if is_scored:  # heard in any case: the fold may yet run to its end
            self._metrics[fold], self._reached[fold] = record.values, record.epoch
            reason = self._on_epoch(fold, record.epoch, self._criteria.score(record.values))
        if self.failure or self.stopped:
            self._ask_to_stop()  # again: one that had only just begun to start has not heard it
        elif fold in self._parked:
            self.park(fold)
        else:
            self._stop(reason)

    def finish(self, fold: int, result: TrialResult) -> None:
        """A fold has ended."""
        del self._running[fold]
        if failure := result.failure or _unusable(self._criteria, result, self.split_id, self.until[fold]):
            self.fail(fold, failure)
        if self.failure:
            self.micro_batch = self.micro_batch or _micro_batch(self.config, result)
            return self._ask_to_stop()
        self.split_id = result.split_id
        if result.status is JobStatus.COMPLETE:
            self._scores[fold], self._metrics[fold] = self._criteria.score(result.metrics), result.metrics
            self._parked.discard(fold)
        if len(self._scores) == self._num_splits:
            self.stopped = ""  # it was over before it heard of it
        elif result.status is JobStatus.STOPPED and fold not in self._parked and not self._is_at_rung(fold):
            self._stop(f"fold {fold} was asked to stop")

    def fail(self, fold: int, failure: Failure) -> None:
        """A fold has failed; the first failure is that of the trial."""
        if self.failure is None:
            self.failure, self.failed_fold = failure, fold

    def drop(self, fold: int) -> None:
        """A fold was called off."""
        del self._running[fold]

    def share_trained(self, fold: int, result: TrialResult) -> float | None:
        """Of a fold's epochs, the part that its job has trained; None where it did not train all that it was to, or
        went on for so little (less than half) that its start would count for too much."""
        is_paused = result.status is JobStatus.STOPPED and self._is_at_rung(fold)
        is_through, trained = is_paused or result.status is JobStatus.COMPLETE, self._next[fold]
        share = len(trained) / self.config.training.epochs
        return share if is_through and (share >= 0.5 or trained.start == 0) else None

    def _is_at_rung(self, fold: int) -> bool:
        return self._reached.get(fold, 0) >= self.until[fold] < self.config.training.epochs

    def park_all(self) -> None:
        """Ask all that run to leave so."""
        for fold in [*self._running]:
            self.park(fold)

    def park(self, fold: int) -> None:
        """Ask a fold that runs to leave with a checkpoint to go on from. Others finish, and no more are started."""
        self._parked.add(fold)
        with contextlib.suppress(FileNotFoundError):  # not there yet
            self._running[fold].request_stop(keeps_checkpoint=True)

    def _stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        if self.stopped:
            self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        goes_on = self.failure is not None and self._goes_on_after(self.failure)
        for run_dir in self._running.values():
            with contextlib.suppress(FileNotFoundError):  # not there yet
                run_dir.request_stop(keeps_checkpoint=goes_on)

    @property
    def ended(self) -> list[int]:
        """Folds that ran to their end."""
        return sorted(self._scores)

    def facts(self, fold: int) -> Facts | None:
        """What is known of a fold that ran to its end; None of another."""
        if fold not in self._scores:
            return None
        epochs, metrics = self.config.training.epochs, self._metrics[fold]
        return Facts(
            score=self._scores[fold], metrics=metrics, epochs=epochs, split_id=self.split_id, computed=self._computed
        )

    @property
    def _computed(self) -> str:
        text = json.dumps(_computes(self.config), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class _LeftBehind:
    """What an earlier attempt at a fold left in its run directory."""

    values: Mapping[int, Score]
    """By finished epochs: of the objectives, as far as the fold need not be trained again."""
    metrics: Mapping[str, float]
    """Of the last of these; empty without any."""
    epoch: int
    """Epochs that need not be trained again."""
    score: Score | None
    """Of a fold that ended."""
    split_id: str | None


def _left_behind(run_dir: RunDir, config: JobConfig, criteria: Criteria) -> _LeftBehind | None:
    """What can be taken over of the fold in `run_dir`; None when there is nothing, or nothing to rely on."""
    try:
        recorded, outcome, records = run_dir.load_config(), run_dir.load_result(), run_dir.records()
    except (TrainingError, OSError):
        return None
    if _computes(recorded) != _computes(config):
        return None
    over = outcome if outcome is not None and not outcome.stopped else None
    last = config.training.epochs if over else run_dir.last_epoch()
    if criteria.unusable(over.metrics) if over else not run_dir.has_checkpoint():
        return None
    scored = [record for record in records if record.event is Event.EVALUATE and record.epoch <= last]
    usable = {record.epoch: record.values for record in scored if criteria.unusable(record.values) is None}
    return _LeftBehind(
        values={epoch: criteria.score(metrics) for epoch, metrics in usable.items()},
        metrics=over.metrics if over else next(reversed(usable.values()), {}),
        epoch=last,
        score=criteria.score(over.metrics) if over else None,
        split_id=outcome.split_id if outcome else None,
    )


def _of(facts: Facts, found: _LeftBehind | None) -> _LeftBehind:
    """Of a fold that is known to have ended; the values of its epochs are those that were `found`."""
    values = {**(found.values if found else {}), facts.epochs: facts.score}
    metrics, split_id = facts.metrics, facts.split_id
    return _LeftBehind(values=values, metrics=metrics, epoch=facts.epochs, score=facts.score, split_id=split_id)


def _computes(config: JobConfig) -> dict[str, Any]:
    """What a job of `config` computes, whichever its fold and wherever it runs.

    In how many parts a rank takes its share of a batch changes the rounding and what dropout draws, as the number of
    ranks does.
    """
    aside = (*VOLATILE, *PARTS_OF_A_BATCH, "cross_validation.fold", "cross_validation.split_id")
    return {key: value for key, value in flatten(config.model_dump()) if not key.startswith(aside)}


def _micro_batch(config: JobConfig, result: TrialResult) -> int | None:
    if result.failure is None or result.failure.kind is not FailureKind.OOM or config.gradient_cache.enabled is False:
        return None  # without the cache, samples of a contrastive loss are compared within a micro-batch
    return config.batch_plan(result.world_size).micro_batch_size


def _unusable(criteria: Criteria, result: TrialResult, split_id: str | None, until: int) -> Failure | None:
    """Why the score of a job that did not fail, and was to be paused after `until` epochs, cannot be used."""
    if split_id not in (None, result.split_id):
        return Failure(kind=FailureKind.DATA, message="the data changed between two folds of this trial")
    if result.status is JobStatus.STOPPED and result.paused_at != until:  # perhaps before it scored anything
        return None
    metric = criteria.unusable(result.metrics)
    if metric is None:
        return None
    if metric in result.metrics:
        return Failure(kind=FailureKind.NON_FINITE, message=f"{metric} is {result.metrics[metric]}")
    is_objective = any(each.metric == metric for each in criteria.objectives)
    key = "objective.metric" if is_objective else "constraints"
    return Failure(kind=FailureKind.CONFIG, message=not_reported(metric, result.metrics, key=key))
