"""Mirrors what happens into MLflow: one experiment a study, its runs nested study > trial > fold.

Events change runs in memory; a write brings MLflow to what they are, so that whatever happened in between is written
at once. A run is found by its tags before it is created, unless this process began it in a study that has none like it:
a continued sweep or a repeated event makes no second one. What MLflow does not take never stops a training: it is said
once, and written when MLflow answers again. Only the orchestrator's process writes, from one thread (background.py),
through an MlflowClient: no active run, no global tracking URI.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hpo.background import CATCH_UP_S, LAST_WRITES_S, WRITE_INTERVAL_S, Background
from hpo.criteria import as_tuple, by_metric
from hpo.events import (
    Event,
    JobFinished,
    JobLabel,
    JobProgress,
    JobStarted,
    SweepFinished,
    SweepStarted,
    TrialFinished,
    TrialStarted,
    TrialState,
    is_hurried,
    is_last,
)
from hpo.masking import masked, secrets_of
from hpo.mlflow_runs import RUNNING, Model, Point, Run, Runs
from hpo.trial import JobStatus
from training.config import flatten
from training.run_dir import Event as RecordEvent
from training.run_dir import Record

PAUSE_FACTOR = 10
"""A write that failed after t seconds is followed by a pause of this many t: it costs a tenth of the time."""
VAIN_ROUNDS = 4
"""At the end: a server that fails now and then has taken something meanwhile, one that is away nothing."""
MAX_RECORDS_KEPT = 50_000
"""Records of all jobs kept until MLflow has them; the oldest go first."""
MAX_TRIALS_KEPT = 500
"""Trials kept until MLflow has them; the oldest that ended go first."""
_SECTION = {RecordEvent.TRAIN: "train", RecordEvent.EVALUATE: "eval"}
_OF_TRIAL = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "FINISHED", TrialState.FAIL: "FAILED"}
_OF_JOB = {JobStatus.COMPLETE: "FINISHED", JobStatus.STOPPED: "FINISHED", JobStatus.FAILED: "FAILED"}


def tracking_uri(uri: str | None, root: Path) -> str:
    """That of a study: None is MLFLOW_TRACKING_URI or a SQLite file in `root`."""
    path = f"{root.absolute()}/mlflow.db".replace("%", "%25").replace("?", "%3F")
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path}"


def connect(uri: str | None, root: Path, notice: Callable[[str], None]) -> Background | NoTracker:
    """The tracker of `uri`; None is MLFLOW_TRACKING_URI or a SQLite file in `root`, "off" tracks nothing.

    `notice` is called by the thread that sends events. MLflow is being imported when this returns.
    """
    root = root.absolute()
    uri = tracking_uri(uri, root)
    if uri == "off":
        return NoTracker()
    return Background(partial(MlflowTracker, uri, root / "mlartifacts"), notice)


class NoTracker:
    """Tracks nothing."""

    where = "off"

    def __call__(self, event: Event) -> None:
        """Ignore `event`."""

    def log_model(self, label: JobLabel, model: Model) -> str:
        """Log nothing: there is no URI."""
        return ""


class MlflowTracker:
    """Hears events and writes them to the MLflow at `uri`. It never raises."""

    def __init__(
        self,
        uri: str,
        artifact_root: Path,
        notice: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.where = masked(uri)
        """The tracking URI without credentials."""
        self._secrets = secrets_of(uri)
        self._runs = Runs(uri, artifact_root)
        self._notice, self._clock, self._said = notice, clock, set[str]()
        self._sweep: SweepStarted | None = None
        self._roots: dict[str, Run] = {}
        """Studies and jobs without one that are at work or not written yet, with all that is below them."""
        self._alone: dict[JobLabel, Run] = {}
        """The last job without a study, for its model."""
        self._highest_trial = -1
        self._records: deque[tuple[Run, Record]] = deque(maxlen=MAX_RECORDS_KEPT)
        self._last_writes_s, self._knows_the_past = 0.0, False
        self._paused_until = self._taken_at = -math.inf
        self.num_steps = 0
        """Runs written, and events of the past heard."""

    def open(self) -> None:
        """Import MLflow and open its store; what goes wrong now is said when there is something to write."""
        try:
            _ = self._runs.client
        except Exception:
            return

    def hear(self, event: Event, at: float) -> None:
        """Change what is to be written by `event`, which happened `at` that Unix time."""
        try:
            self._hear(event, at)
        except Exception as error:  # events in an order that nobody foresaw
            self._say_once("unforeseen", f"MLflow ({self.where}) will lack something: {self._reason(error)}")

    def write(self) -> None:
        """Write what MLflow lacks, parents before children, unless it refused something just now.

        At the end of a sweep or a job without one, all is tried until MLflow has taken nothing a few times in a row.
        """
        self._hear_the_past()
        if not self._last_writes_s:
            return self._write(self._clock() + WRITE_INTERVAL_S)
        self._taken_at = self._clock()
        deadline, self._last_writes_s = self._taken_at + self._last_writes_s, 0.0
        vain = 0
        while self.has_unwritten and vain < VAIN_ROUNDS:
            before, self._paused_until = self._num_unwritten, -math.inf
            self._hear_the_past()
            self._write(deadline, to_the_end=True)
            vain = vain + 1 if self._num_unwritten == before else 0

    @property
    def has_unwritten(self) -> bool:
        """Whether MLflow lacks something, or was not asked yet what it lacks."""
        return (self._sweep is not None and not self._knows_the_past) or self._num_unwritten > 0

    @property
    def _num_unwritten(self) -> int:
        return len(self._records) + sum(not run.is_written for run in self._all())

    def log_model(self, label: JobLabel, model: Model) -> str:
        """Log `model` as one of that job (finished or not) and register it.

        Returns ``models:/NAME/VERSION``, or "" when MLflow did not take it, which is said every time.
        """
        try:
            run = self._job(label)
            if not run.id:
                self._runs.write(run)
            uri = self._runs.log_model(run.id, model)
        except Exception as error:
            self._notice(f"the model in {model.folder} is not registered in MLflow: {self._reason(error)}")
            return ""
        self._paused_until = -math.inf
        self._write(self._clock() + LAST_WRITES_S)
        return uri

    def _hear(self, event: Event, at: float) -> None:
        match event:
            case SweepStarted():
                self._start_sweep(event, at)
            case TrialStarted():
                self._start_trial(event, at)
            case JobStarted():
                self._start_job(event, at)
            case JobProgress() if event.record.event in _SECTION:
                if len(self._records) == MAX_RECORDS_KEPT:
                    self._say_once(
                        "records", f"MLflow ({self.where}) does not keep up: it will lack the oldest records"
                    )
                self._records.append((self._job(event.label), event.record))
            case JobFinished():
                self._finish_job(event, at)
            case TrialFinished():
                self._finish_trial(event, at)
            case SweepFinished():
                self._finish_sweep(event, at)
        if is_last(event):
            self._last_writes_s = LAST_WRITES_S if is_hurried(event) else CATCH_UP_S

    def _hear_the_past(self) -> None:
        """Once MLflow can say what it knows of the study: what it lacks of trials whose process was killed."""
        if self._sweep is None or self._knows_the_past or self._clock() < self._paused_until:
            return
        started = self._clock()
        try:
            known = self._runs.trials(self._sweep.study, self._identity("trial"))
            for event, at in self._sweep.told_again(known):
                self._hear(event, at)
                self.num_steps += 1
                if isinstance(event, TrialFinished) and event.number in known:
                    self._study.children[event.number].orphans = self._identity("fold", trial=event.number)
                if len(self._study.children) == MAX_TRIALS_KEPT:  # or the oldest would have to go
                    self._write(self._clock() + WRITE_INTERVAL_S)
            self._knows_the_past = True
        except Exception:  # as any write, it is tried again
            self._paused_until = self._clock() + PAUSE_FACTOR * (self._clock() - started)

    def _write(self, deadline: float, *, to_the_end: bool = False) -> None:
        records = defaultdict[Run, list[Record]](list)
        for run, record in self._records:
            records[run].append(record)
        kept = dict.fromkeys(self._all())
        lacking = [run for run in kept if run in records or not run.is_written]
        for run in sorted(lacking, key=_urgency):
            now = self._clock()
            is_vain = now >= self._taken_at + LAST_WRITES_S if to_the_end else now < self._paused_until
            if is_vain or now >= deadline:
                break
            if self._try(run, [point for record in records[run] for point in _points(record)]):
                del kept[run]
        self._records = deque((each for each in self._records if each[0] in kept), MAX_RECORDS_KEPT)
        self._forget()

    def _try(self, run: Run, points: list[Point]) -> bool:
        started = self._clock()
        try:
            self._runs.write(run, points)
        except Exception as error:  # whatever MLflow, its database or the network raises
            run.failures += 1
            self._paused_until = self._clock() + PAUSE_FACTOR * (self._clock() - started)
            self._say_once(
                "refused",
                f"MLflow ({self.where}) does not take the results: {self._reason(error)}."
                " Training goes on and MLflow is tried again; to do without it, set `mlflow: off`.",
            )
            return False
        self._taken_at = self._clock()
        self.num_steps += 1
        return True

    def _forget(self) -> None:
        # What is over and written; a study as long as it goes on.
        for key, root in list(self._roots.items()):
            for number, trial in list(root.children.items()):
                if trial.is_done:
                    del root.children[number]
            if root.is_done:
                del self._roots[key]

    def _all(self) -> Iterator[Run]:
        for root in self._roots.values():
            yield from root.tree()

    def _say_once(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._notice(text)

    def _reason(self, error: Exception) -> str:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return masked(text)[:500]

    def _start_sweep(self, event: SweepStarted, at: float) -> None:
        self._sweep, self._highest_trial, self._knows_the_past = event, -1, False
        study = Run(
            experiment=event.study,
            name=event.study,
            identity=self._identity("study"),
            started=at,
            tags={"hpo.metric": " ".join(as_tuple(event.metric)), "hpo.direction": " ".join(as_tuple(event.direction))},
            files={"study.yaml": event.definition},
        )
        # One that this process swept before, and of which MLflow may still lack trials.
        if earlier := self._roots.get(event.study_uid):
            study.children, study.metrics = earlier.children, earlier.metrics
            for trial in study.children.values():
                trial.parent = study
        self._roots[event.study_uid] = study

    def _start_trial(self, event: TrialStarted, at: float) -> None:
        run = self._trial(event.number, at)
        if event.number > self._highest_trial:
            run.is_new, self._highest_trial = True, event.number
        else:
            run.begin_again(at)
        run.params, run.files = dict(event.params), {"config.yaml": event.config.model_dump()}
        self._make_room(self._study)

    def _start_job(self, event: JobStarted, at: float) -> None:
        label, config, path = event.label, event.config.model_dump(), str(event.run_dir.path)
        if label.trial is None:
            identity = {"hpo.kind": "job", "hpo.run_dir": path}
            run = Run(experiment=label.study, name=event.run_dir.path.name, identity=identity, started=at)
            self._roots[path] = self._alone[label] = run
        else:
            run = self._fold(label, at)
        run.tags["hpo.run_dir"] = path
        run.params, run.files = dict(flatten(config)), {"config.yaml": config}

    def _finish_job(self, event: JobFinished, at: float) -> None:
        run, result = self._job(event.label), event.result
        if result is None:
            return run.end("KILLED", at)
        run.tags |= {"hpo.status": result.status, "hpo.world_size": str(result.world_size)}
        if result.failure is not None:
            run.tags |= {"hpo.failure_kind": result.failure.kind, "hpo.failure_message": result.failure.message}
        run.end(_OF_JOB[result.status], at)

    def _finish_trial(self, event: TrialFinished, at: float) -> None:
        metric, study = self._known_sweep.metric, self._study
        is_known = event.number in study.children
        run = self._trial(event.number, at)
        if not is_known:  # its process was killed, and with it what should have ended its folds
            run.orphans = self._identity("fold", trial=event.number)
        for fold in run.children.values():
            if fold.status == RUNNING:
                fold.end("KILLED", at)
        scored = [(number, score) for number, score in enumerate(event.fold_scores) if score is not None]
        for number, score in scored:
            run.metrics += [(f"fold_{name}", value, at, number) for name, value in by_metric(metric, score).items()]
        if event.value is not None:
            run.metrics += [(name, value, at, 0) for name, value in by_metric(metric, event.value).items()]
        run.tags |= {"hpo.state": event.state, **({"hpo.reason": event.reason} if event.reason else {})}
        run.end(_OF_TRIAL[event.state], at)
        if event.best_value is not None:
            study.metrics.append((f"best_{metric}", event.best_value, at, event.number))
        if event.front:
            study.metrics.append(("front_size", len(event.front), at, event.number))
        self._make_room(study)

    def _finish_sweep(self, event: SweepFinished, at: float) -> None:
        for run in self._study.tree():
            if run.status == RUNNING:
                run.end("KILLED", at)
        self._study.end("KILLED" if event.interrupted else "FINISHED", at)

    def _make_room(self, study: Run) -> None:
        if len(study.children) > MAX_TRIALS_KEPT:
            over = [number for number, trial in study.children.items() if trial.status != RUNNING]
            for number in over[:1]:
                del study.children[number]
                self._say_once("trials", f"MLflow ({self.where}) does not keep up: it will lack the oldest trials")

    @property
    def _known_sweep(self) -> SweepStarted:
        if self._sweep is None:
            raise LookupError("a trial outside a sweep: SweepStarted must come first")
        return self._sweep

    @property
    def _study(self) -> Run:
        return self._roots[self._known_sweep.study_uid]

    def _identity(self, kind: str, **numbers: int | None) -> dict[str, str]:
        tags = {"kind": kind, "study_uid": self._known_sweep.study_uid, **numbers}
        return {f"hpo.{key}": str(value) for key, value in tags.items()}

    def _trial(self, number: int, at: float) -> Run:
        # A trial can end that never started here: its process was killed, or its configuration was not valid.
        study = self._study
        if number not in study.children:
            study.children[number] = Run(
                experiment=study.experiment,
                name=f"trial {number}",
                identity=self._identity("trial", trial=number),
                started=at,
                parent=study,
                number=number,
            )
        return study.children[number]

    def _fold(self, label: JobLabel, at: float) -> Run:
        """A fold that starts, in a run of its own or once more in that which it had."""
        assert label.trial is not None and label.fold is not None
        trial = self._trial(label.trial, at)
        if label.fold in trial.children:
            trial.children[label.fold].begin_again(at)
        else:
            trial.children[label.fold] = Run(
                experiment=label.study,
                name=str(label),
                identity=self._identity("fold", trial=label.trial, fold=label.fold),
                started=at,
                parent=trial,
                number=label.fold,
                is_new=True,
            )
        return trial.children[label.fold]

    def _job(self, label: JobLabel) -> Run:
        """A job that has started."""
        if label.trial is None or label.fold is None:
            return self._alone[label]
        return self._study.children[label.trial].children[label.fold]


def _urgency(run: Run) -> tuple[int, bool, float, int]:
    """What MLflow refused goes last, so that it holds up no other; trials that it shows as running go first.

    Of the others, what was over first: one trial after the other, each after its folds.
    """
    trial = run.parent if run.depth == 2 else run
    is_shown = trial is not None and trial.depth == 1 and trial.written_status == RUNNING
    return max(each.failures for each in run.tree()), not is_shown, run.ended or run.started, -run.depth


def _points(record: Record) -> Iterator[Point]:
    for name, value in record.values.items():
        yield f"{_SECTION[record.event]}/{name}", value, record.time, record.step
