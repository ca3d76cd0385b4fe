"""The trials that a sweep evaluates: made ready, judged while they run, and told to the study. Used by one thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.artifacts import upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState as OptunaState

from hpo.checkpoint_room import forget_checkpoints, make_room
from hpo.console import counted, number
from hpo.criteria import Score
from hpo.cross_validation import Folds
from hpo.definition import StudyDefinition
from hpo.events import JobLabel, Listener, Notice, TrialFinished, TrialStarted, TrialState
from hpo.fold_ledger import FoldRow, FoldState
from hpo.front import FrontRace
from hpo.job import Job
from hpo.ledger import SUCCEEDS, ledger_of
from hpo.memory_check import CONSTRAINT, MemoryCheck
from hpo.policy import Action, Policy, Tried, Verdict
from hpo.pruning import Promotion, Pruner, is_audited
from hpo.resources import Resources
from hpo.sampling import step_axis
from hpo.spending import budget_of
from hpo.stopping.halving import Halving, epoch_halving, fold_halving
from hpo.storage import artifact_store
from hpo.study import (
    FAILURE,
    REASON,
    SPLIT_ID,
    best_value,
    folder_name,
    folder_of,
    folds_before,
    inherit_folds,
    known_split,
    num_finished,
    revive,
    trial_folder,
)
from hpo.tally import (
    AUDIT,
    CONTINUES,
    ESTIMATE,
    FOLD_SCORES,
    MICRO_BATCH,
    PAUSED,
    RETRIES,
    UNTIL,
    VIOLATED,
    tally_of,
)
from hpo.trial import JobStatus, TrialResult
from training.config import JobConfig
from training.errors import ConfigError, Failure, FailureKind
from training.run_dir import RunDir

ENDED_FROM_OUTSIDE = "it was ended from outside"
"""Why a trial is stopped that others have told, or that has lost its lease."""


class Judge(Protocol):
    """Decides when a trial is stopped: a Pruner, or with several objectives a FrontRace. A runner is one's own."""

    def to_beat(self, runner: Any) -> Score | None:
        """What stops `runner`: the value of the best trial, or of the one that dominates it; None without one."""

    def new_runner(self, number: int, root: int, num_epochs: int) -> Any:
        """A trial that has not scored anything yet."""

    def hear(self, runner: Any, fold: int, epoch: int, value: Any) -> str:
        """`runner` reports a `value`. Why it is stopped now; "" when it goes on."""

    def estimate(self, runner: Any) -> Score | None:
        """What a trial that was stopped is told as; None when it has reported nothing."""

    def note(self, runner: Any, fold: int, epoch: int, value: Any) -> None:
        """`runner` has reported a `value`."""

    def judge_taken_over(self, runner: Any) -> str:
        """Why a trial is stopped that goes on where another was; "" when it goes on."""

    def until(self, num_epochs: int, *, num_folds: int = 1) -> tuple[int, ...]:
        """Epochs of each fold after which a new trial is paused that is to begin so many folds; all of them where none
        is paused."""

    def promotions(self, *, is_end: bool) -> list[Promotion]:
        """The paused trials that go on now."""

    def epochs_to_climb(self, total: int = 0) -> int:
        """Epochs, over all folds, that promotions would take if no other trial came, or as many as make `total`."""

    def hopeless(self, total: int) -> list[int]:
        """Numbers of the trials paused at a rung that no result of `total` trials could promote any more."""

    def waiting(self) -> list[int]:
        """Numbers of the trials paused at a rung, the least promising first."""


@dataclass(frozen=True, slots=True)
class Running:
    """A trial that is being evaluated."""

    trial: optuna.Trial
    folds: Folds
    runner: Any
    """Its scores, to the rules that stop it."""
    rows: dict[int, FoldRow] = field(default_factory=dict)
    """What the study's database knows of its folds, and of those of the trials that it goes on with."""

    @property
    def tried(self) -> Tried:
        """What was tried of it, to the policy that decides about its failure."""
        return Tried(retries=self.trial.user_attrs.get(RETRIES, 0), micro_batch=self.folds.micro_batch)


class Trials:
    """Those of one study that this process evaluates."""

    def __init__(
        self,
        definition: StudyDefinition,
        study: optuna.Study,
        listen: Listener,
        resources: Resources,
    ) -> None:
        self._definition, self._study, self._listen, self._resources = definition, study, listen, resources
        self._axis = step_axis(definition)
        self._judge = self._new_judge()
        self._memory = MemoryCheck(self._say)
        self._policy = Policy(definition.config.recovery)

    def _new_judge(self) -> Judge:
        config, halving = self._definition.config, halving_of(self._definition)
        if len(config.objectives) > 1:
            return FrontRace(self._study, config.stopping, self._axis.num_folds)
        return Pruner(
            self._study,
            config.stopping,
            self._axis,
            maximize=config.objectives[0].direction == "maximize",
            halving=halving,
            seed=config.sampler.seed,
            target=config.budget.target,
        )

    def begin(self, trial: optuna.Trial, params: dict[str, Any]) -> Running:
        """A new trial; over before it begins when the values do not go together or will not fit."""
        try:
            config, failure = self._definition.trial_config(params), None
        except ConfigError as error:
            config, failure = self._definition.job, Failure(kind=FailureKind.CONFIG, message=str(error))
        self._listen(TrialStarted(number=trial.number, params=params, config=config))
        split_id = known_split(self._study, self._definition) or config.cross_validation.split_id
        smaller = _in_parts_of(trial.user_attrs.get(MICRO_BATCH))
        config = config.with_values({"cross_validation.split_id": split_id, **smaller})
        folder, begun = trial_folder(self._study, trial), trial.user_attrs.get(CONTINUES)
        root = trial.number if begun is None else begun
        runner = self._judge.new_runner(trial.number, root, config.training.epochs)

        def on_epoch(fold: int, epoch: int, value: Score) -> str:
            try:
                if not isinstance(value, tuple) and not runner.has(fold, epoch):  # or it did so in a first attempt
                    trial.report(value, self._axis.step(fold, epoch))
                return self._audited(trial, runner, self._judge.hear(runner, fold, epoch, value))
            except UpdateFinishedTrialError:
                return ENDED_FROM_OUTSIDE

        label = JobLabel(study=self._study.study_name, trial=trial.number)
        until = self._judge.until(config.training.epochs, num_folds=2 if self._resources.is_to_measure else 1)
        if self._definition.config.halves:  # else a rule that has gone since asked for the pause
            until = trial.user_attrs.get(UNTIL) or until
        goes_on_after = self._policy.goes_on_after
        folds = Folds(
            config, folder, label, self._definition.criteria, on_epoch, until=until, goes_on_after=goes_on_after
        )
        folds.failure = failure
        if failure is None:
            self._keep_config(trial, config, folder)
            folds.stopped = self._too_large(trial, self._resources.placed(config))
        running = Running(trial, folds, runner)
        if not folds.is_over and begun is not None:
            self._take_over(running, begun)
        return running

    def _take_over(self, running: Running, begun: int) -> None:
        """Go on where the trial before was; the first of them is numbered `begun`."""
        trial, folds, runner = running.trial, running.folds, running.runner
        inherit_folds(self._study, trial)
        known = folds_before(self._study, trial)
        running.rows.update(known)
        for fold, epoch, value in folds.take_over({fold: row.facts for fold, row in known.items() if row.facts}):
            if not isinstance(value, tuple):  # Optuna takes none of several objectives
                trial.report(value, self._axis.step(fold, epoch))
            self._judge.note(runner, fold, epoch, value)
        for fold in folds.ended:
            running.rows.setdefault(fold, _row(running, fold, trained_by=begun))
            self._keep_fold(running, fold, FoldState.COMPLETE)
        self._say(f"trial {trial.number} goes on where trial {trial.user_attrs.get(SUCCEEDS, begun)} was: {folds}")
        if not folds.is_over:
            folds.stopped = self._audited(running.trial, runner, self._judge.judge_taken_over(runner))

    def fold_began(self, running: Running, job: Job) -> None:
        """A fold is about to be trained."""
        fold = job.label.fold
        assert fold is not None
        running.rows[fold] = _row(running, fold, trained_by=running.trial.number)
        self._keep_fold(running, fold, FoldState.RUNNING)

    def fold_ended(self, running: Running, fold: int, result: TrialResult) -> None:
        """A fold was trained."""
        ended = {JobStatus.STOPPED: FoldState.STOPPED, JobStatus.FAILED: FoldState.FAILED}
        self._keep_fold(running, fold, ended.get(result.status, FoldState.COMPLETE))

    def _keep_fold(self, running: Running, fold: int, state: FoldState) -> None:
        facts = running.folds.facts(fold)
        if state is FoldState.COMPLETE and facts is None:  # it ended without a score
            state = FoldState.FAILED
        row = replace(running.rows[fold], state=state, facts=facts)
        running.rows[fold] = row
        if not ledger_of(self._study).write_fold(running.trial._trial_id, row):
            running.folds.stopped = ENDED_FROM_OUTSIDE

    @property
    def first_epochs(self) -> int:
        """Epochs that a fold of a new trial trains, at most."""
        return self._judge.until(self._definition.max_epochs)[0]

    @property
    def first_jobs(self) -> int:
        """Folds of a new trial before it is paused."""
        return sum(map(bool, self._judge.until(self._definition.max_epochs)))

    def epochs_to_climb(self, total: int = 0) -> int:
        """Epochs, over all folds, that promotions would take if no other trial came, or as many as make `total`."""
        return self._judge.epochs_to_climb(total)

    def promote(self, *, is_end: bool = False, audits: bool = True) -> bool:
        """Queue a paused trial that goes on to the next rung, or the audited ones.

        Returns whether one waits, of whatever process.
        """
        while (found := next(iter(self._judge.promotions(is_end=is_end)), None)) and (audits or found.to_beat is None):
            audit = {} if found.to_beat is None else {AUDIT: {"reason": "left behind", "to_beat": found.to_beat}}
            if revive(self._study, found.number, **{UNTIL: list(found.until), **audit}):
                why = "runs on for the audit:" if audit else "is promoted, to"
                self._say(f"trial {found.number} {why} {so_far(found.until, found.num_epochs)}")
            if not audit:  # of these, all at once
                break
        return tally_of(self._study).num_to_revive() > 0

    def jobs_to_promote(self, *, is_end: bool) -> int:
        """Folds that paused trials may train now, and one of each that is queued for it."""
        may_go_on = sum(each.num_jobs for each in self._judge.promotions(is_end=is_end))
        return may_go_on + tally_of(self._study).num_to_revive()

    @property
    def may_go_on(self) -> bool:
        """Whether a trial is paused."""
        return bool(self._judge.waiting())

    @property
    def is_one_to_go_on(self) -> bool:
        """Whether a paused trial is to go on."""
        return self.jobs_to_promote(is_end=True) > 0

    def tell(self, running: Running, verdict: Verdict | None = None) -> None:
        """A trial is over: tell the study what came of it. The `verdict` is on its failure."""
        trial, folds = running.trial, running.folds
        for fold in folds.ended:
            folds.run_dir(fold).tidy()
        try:
            trial.set_user_attr(FOLD_SCORES, list(folds.scores))
            trial.set_user_attr(SPLIT_ID, folds.split_id)
            if folds.failure is not None:
                self._tell_failure(trial, folds.failure, folds, verdict)
            elif folds.stopped:
                self._tell_stop(running, folds.stopped)
            elif folds.is_paused:
                trial.set_user_attr(PAUSED, True)
                self._tell_stop(running, f"paused after {so_far(folds.until, folds.config.training.epochs)}")
                self._forget_checkpoints()
            else:
                reason = self._keep_violations(trial, folds)
                self._study.tell(trial, folds.mean)
                self.finished(trial.number, TrialState.COMPLETE, folds.scores, value=folds.mean, reason=reason)
        except UpdateFinishedTrialError:
            self.finished(trial.number, TrialState.FAIL, reason=ENDED_FROM_OUTSIDE)

    def finished(self, number: int, state: TrialState, scores: tuple[Score | None, ...] = (), **details: Any) -> None:
        """Say that a trial was told."""
        details |= {"best_value": best_value(self._study), "num_finished": num_finished(self._study)}
        details |= {"front": tuple(tally_of(self._study).front())}
        self._listen(TrialFinished(number=number, state=state, fold_scores=scores, **{"value": None, **details}))

    def _tell_failure(
        self, trial: optuna.Trial, failure: Failure, folds: Folds, verdict: Verdict | None = None
    ) -> None:
        trial.set_user_attr(FAILURE, {**asdict(failure), "fold": folds.failed_fold})
        added = f"; {verdict.reason}" if verdict and verdict.reason else ""
        reason, state = f"{failure.kind}: {failure.message}{added}", TrialState.FAIL
        if verdict is not None and verdict.action is Action.INFEASIBLE:
            state, reason = TrialState.PRUNED, f"{reason}; told as infeasible"
            trial.set_constraint(failure.kind, 1.0)
            trial.set_user_attr(VIOLATED, {str(failure.kind): 1.0})
            trial.set_user_attr(REASON, reason)
            # Not by study.tell, which takes the last reported value for that of a stopped trial.
            self._study._storage.set_trial_state_values(trial._trial_id, OptunaState.PRUNED)
        else:
            self._study.tell(trial, state=OptunaState.FAIL)
        details = {"reason": reason, "failure": failure, "failed_fold": folds.failed_fold}
        self.finished(trial.number, state, folds.scores, **details)

    def _tell_stop(self, running: Running, reason: str) -> None:
        trial, folds = running.trial, running.folds
        estimate = self._judge.estimate(running.runner)
        if isinstance(estimate, tuple):
            trial.set_user_attr(ESTIMATE, list(estimate))
        elif estimate is not None:
            trial.report(estimate, self._axis.verdict)  # Optuna tells a stopped trial as its last reported value
        self._keep_violations(trial, folds)
        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=OptunaState.PRUNED)
        self.finished(trial.number, TrialState.PRUNED, folds.scores, reason=reason)

    def _forget_checkpoints(self) -> None:
        """Those of paused trials that cannot be promoted any more, and of the worst above ``disk``."""
        folder, config = folder_of(self._study), self._definition.config
        for each in self._judge.hopeless(budget_of(self._definition).total):
            forget_checkpoints(folder / folder_name(each))
        if limit := config.fidelity.disk if config.fidelity else config.stopping.disk:
            make_room([folder / folder_name(each) for each in self._judge.waiting()], limit)

    def _keep_violations(self, trial: optuna.Trial, folds: Folds) -> str:
        """Tell the sampler how far the trial keeps each constraint. Which it violates, for people; "" for none."""
        for name, violation in folds.violations.items():
            trial.set_constraint(name, violation)
        violated = {name: violation for name, violation in folds.violations.items() if violation > 0.0}
        if violated:
            trial.set_user_attr(VIOLATED, violated)
        return ", ".join(f"violates {name} by {number(violation)}" for name, violation in violated.items())

    def _audited(self, trial: optuna.Trial, runner: Any, reason: str) -> str:
        """`reason`, unless the trial is of those that run on to see how often the rules are wrong."""
        config = self._definition.config
        if not reason or not is_audited(runner.root, config.stopping.audit, seed=config.sampler.seed):
            return reason
        if (to_beat := self._judge.to_beat(runner)) is None:
            return reason
        if AUDIT not in trial.user_attrs:
            trial.set_user_attr(AUDIT, {"reason": reason, "to_beat": to_beat})
            self._say(f"trial {trial.number} would be stopped ({reason}), but runs on for the audit")
        return ""

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
        kept = RunDir(folder)
        kept.write_config(config)
        store = artifact_store(self._definition.root)
        upload_artifact(artifact_store=store, file_path=str(kept.config), study_or_trial=trial)

    def _say(self, text: str) -> None:
        self._listen(Notice(message=text))


def _row(running: Running, fold: int, trained_by: int) -> FoldRow:
    """Of a fold that begins, once more where it was begun before."""
    before = running.rows.get(fold)
    return FoldRow(
        fold=fold,
        state=FoldState.RUNNING,
        attempt=1 if before is None else before.attempt + 1,
        trained_by=trained_by,
        run_dir=str(running.folds.run_dir(fold).path),
    )


def _in_parts_of(micro_batch: int | None) -> dict[str, Any]:
    """Changes to a configuration so that no rank works on more samples at a time. The global batch stays."""
    if micro_batch is None:
        return {}
    return {"training.max_micro_batch_size": micro_batch, "training.accumulate_grad_batches": "auto"}


def halving_of(definition: StudyDefinition) -> Halving | None:
    """The rungs of a study: of ``fidelity``, else of folds; None where another rule stops its trials."""
    config, num_folds = definition.config, definition.job.cross_validation.num_splits
    if config.fidelity is not None:
        epochs = config.fidelity.epochs
        return epoch_halving(epochs.min, epochs.eta, definition.job.training.epochs, num_folds)
    return fold_halving(num_folds, definition.max_epochs, config.stopping.keep) if config.halves else None


def so_far(until: Sequence[int], epochs: int) -> str:
    """In words, epochs of each fold: `2 folds`, `4 epochs of the first fold`, `3 of 9 epochs`."""
    if all(0 < each < epochs for each in until):
        return f"{until[0]} of {epochs} epochs"
    whole = sum(each == epochs for each in until)
    return counted(whole, "fold") if whole else f"{until[0]} of {epochs} epochs of the first fold"
