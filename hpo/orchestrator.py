"""The sweep: ask -> run the folds, side by side with others' -> tell, until the budget is spent.

One thread asks, decides, tells and is heard; jobs run in Slots. Of this process only that thread writes to the study.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState as OptunaState
from sqlalchemy.exc import SQLAlchemyError

from hpo import interruption
from hpo.budget import Spent
from hpo.deadline import Clock, Deadline
from hpo.definition import StudyDefinition
from hpo.devices import detect_hardware
from hpo.errors import DeviceError, StudyNotFoundError
from hpo.events import (
    Event,
    JobFinished,
    JobProgress,
    Listener,
    Notice,
    SweepFinished,
    SweepStarted,
    TrialState,
)
from hpo.ledger import LEASE_S, ledger_of
from hpo.resources import Resources
from hpo.slots import Slots
from hpo.spending import Meter, budget_of, fold_times, spent
from hpo.study import (
    UID,
    best_value,
    interrupt,
    num_finished,
    places_taken,
    recover,
    running_here,
    study_names,
    take_place,
)
from hpo.tally import RETRIES, REVIVES, tally_of
from hpo.trial import JobStatus
from hpo.trials import ENDED_FROM_OUTSIDE, Running, Trials
from hpo.watchdog import Watchdog
from training.errors import Failure, FailureKind

ATTEND_S = 5.0
"""How often a sweep says that it lives, and looks whether others do."""
HOPELESS_AFTER = 3
"""A sweep ends when this many first trials all fail in the same way, for a reason that no hyperparameter explains."""
BLAMELESS = (
    KeyboardInterrupt,
    OSError,
    StorageInternalError,
    SQLAlchemyError,
    DeviceError,
    UpdateFinishedTrialError,
)
"""What ends a sweep and is not the fault of the trials that run."""
MORE_TRIALS = "hpo sweep with a larger --trials goes on"
BY_CHANCE = {
    FailureKind.NON_FINITE,
    FailureKind.OOM,
    FailureKind.SIGNAL,
    FailureKind.INFRASTRUCTURE,
    FailureKind.HANG,
    FailureKind.TIMEOUT,
}


class Sweep:
    """One run of ``hpo sweep`` or ``hpo worker``: evaluates trials of `study`, as many at a time as have room."""

    def __init__(
        self,
        definition: StudyDefinition,
        study: optuna.Study,
        listen: Listener,
        *,
        clock: Clock = time.monotonic,
        began: float | None = None,
    ) -> None:
        """`began` is when the command did, by `clock`; the deadline counts from there."""
        self._definition, self._study, self._listen, self._clock = definition, study, listen, clock
        self._started = 0.0
        self._last_look = self._last_renewal = clock()
        self._budget, self._meter = budget_of(definition), Meter(clock)
        self._deadline = self._deadline_from(clock() if began is None else began)
        self._failures: list[Failure | None] = []
        self._watchdog = Watchdog(definition.config.recovery, clock)
        self._resources = Resources(definition, detect_hardware(), self._say)
        self._slots = Slots(crews_stay=definition.config.resources.processes == "per_trial")
        self._trials = Trials(definition, study, listen, self._resources.placed)
        self._running: dict[int, Running] = {}
        """By number."""
        self._asks = True
        """Whether it still asks for new trials."""
        self._looks = True
        """Whether it still takes up stopped ones."""
        self.hopeless: Failure | None = None
        """Why the sweep gave up, when it did."""
        self.parked: list[int] = []
        """Trials that did not end before the deadline and are queued again."""

    @property
    def num_told(self) -> int:
        """Trials that came to their end here: complete, stopped or failed."""
        return len(self._failures)

    def run(self) -> None:
        """Evaluate trials until the budget is spent. On Ctrl-C the running trials are queued again."""
        interrupted = True
        try:
            self._listen(self._opening())
            self._recover()
            if places_taken(self._study) >= self._budget.total:
                done = f"the study has the {self._budget.total} trials that were asked for"
                go_on = "paused ones that may still win go on" if self._trials.has_second_look else MORE_TRIALS
                self._say(f"{done}; {go_on}")
            self._started = self._clock()  # opening MLflow takes seconds that belong to no trial
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
        """Start jobs while there is room and a budget, and hear them, until none runs or the deadline has passed."""
        while True:
            while self._start_job():
                self._attend()
            self._slots.dismiss_idle()
            if not self._slots:
                break
            self._hear(self._slots.hear(min(self._deadline.wait_s, ATTEND_S)))
            self._attend()
            if self._deadline.is_over:  # one that was asked to stop did not, or waits for devices
                self._end_jobs()
                break
            for label in self._deadline.late():
                if label.trial is not None and label.fold is not None:
                    self._running[label.trial].folds.park(label.fold)
        self._close()

    def _attend(self) -> None:
        """Now and then: hold our trials for longer, let go of those that others have, and queue what nobody holds."""
        silent = self._clock() - self._last_look
        if silent < ATTEND_S:
            return
        self._last_look = self._clock()
        try:
            self._renew()
        except (SQLAlchemyError, StorageInternalError) as error:
            if self._clock() - self._last_renewal > LEASE_S:
                raise
            return self._say(f"the study's database does not answer, trying again: {str(error).splitlines()[0]}")
        if silent > 2 * ATTEND_S:  # busy or suspended: what was told meanwhile is still to be heard
            return
        self._recover()
        for label, failure in self._watchdog.overdue(self._slots.waiting()).items():
            if label.trial is not None and label.fold is not None:
                self._running[label.trial].folds.fail(label.fold, failure)
                self._call_off(label.trial)

    def _renew(self) -> None:
        ours = {running.trial._trial_id: number for number, running in self._running.items()}
        for lost in ours.keys() - ledger_of(self._study).renew(ours):
            self._running[ours[lost]].folds.stopped = ENDED_FROM_OUTSIDE  # and it may go on elsewhere
            self._call_off(ours[lost])
        self._last_renewal = self._clock()

    def _is_lost(self, running: Running) -> bool:
        trial_id = running.trial._trial_id
        return trial_id not in ledger_of(self._study).renew([trial_id])

    def _call_off(self, number: int) -> None:
        """Nothing of this trial is to run any more."""
        self._slots.cancel(number)
        if self._running[number].folds.is_over:
            self._tell(self._running[number])

    def _recover(self) -> None:
        """Queue the trials again that nobody evaluates any more."""
        for number in recover(self._study):
            self._asks = True
            self._trials.finished(number, TrialState.FAIL, reason="its process ended; queued again")

    def _close(self) -> None:
        """No job runs any more: say what is left of the trials, and of the budget."""
        for running in [*self._running.values()]:  # their other folds would not have ended in time
            if running.folds.stopped or running.folds.failure:
                self._tell(running)
            else:
                self._park(running)
        if self.parked:
            trials = f"trial{'s' * (len(self.parked) > 1)} {', '.join(map(str, self.parked))}"
            at = f"budget.deadline of {self._definition.config.budget.deadline:g} s"
            self._say(f"{at}: {trials} parked and queued again; the same command continues the study")
        if self._budget.config.device_hours is not None and (above := self._budget.overrun(self._spent())):
            self._say(above)

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
        if not self._has_time(running):  # a new one that goes on with another, and has more to train than is known
            return False
        num_devices = self._resources.offer(running.folds.config, self._num_jobs_left())
        if num_devices:
            label = running.folds.next_label
            self._deadline.start(label, running.folds.next_epochs)
            self._watchdog.start(label)
            self._slots.start(running.folds.start(self._resources.take(label, num_devices)))
        return num_devices > 0

    def _waiting(self, *, beside_others: bool) -> Running | None:
        """The first trial with a fold to start: one of which none runs, or any if folds may run side by side."""
        any_will_do = beside_others and self._definition.config.resources.parallel_folds != "off"
        waiting = (each for each in self._running.values() if each.folds.num_left and self._has_time(each))
        return next((each for each in waiting if any_will_do or not each.folds.num_running), None)

    def _has_time(self, running: Running) -> bool:
        return self._deadline.fits(running.trial.number, len(running.folds.next_epochs))

    def _new_trial(self) -> Running | None:
        """A trial that is told at once, when there is nothing to run, comes back as one that is over."""
        if len(self._running) >= self._resources.max_trials:
            return None
        self._asks = self._asks and self._goes_on()
        if self._asks:
            self._trials.promote()  # it goes first
        return self._begin_trial() if self._asks or self._takes_up_another() else None

    def _num_jobs_left(self) -> int:
        folds = self._definition.job.cross_validation.num_splits
        to_ask = self._budget.total - places_taken(self._study) if self._asks else 0
        return sum(each.folds.num_left for each in self._running.values()) + max(0, to_ask) * folds

    def _hear(self, event: Event | None) -> None:
        """Pass on what a job tells, and decide what follows from it."""
        if event is None:
            return
        self._listen(event)
        if not isinstance(event, JobProgress | JobFinished) or event.label.trial is None or event.label.fold is None:
            return
        running = self._running[event.label.trial]
        if isinstance(event, JobProgress):
            self._meter.hear(event)
            self._deadline.hear(event.label, event.record)
            self._watchdog.hear(event.label)
            self._resources.hear(event.label, event.record)
            running.folds.hear(event.label.fold, event.record)
            return
        self._resources.give_back(event.label)
        self._watchdog.finish(event.label)
        self._account(event)
        if event.result is not None and event.result.failure and self._is_lost(running):  # what failed, others have
            running.folds.stopped = ENDED_FROM_OUTSIDE
        is_called_off = event.result is None or running.folds.stopped == ENDED_FROM_OUTSIDE
        if event.result is not None and not is_called_off:
            running.folds.finish(event.label.fold, event.result)
        elif running.folds.stopped or running.folds.failure:  # else what ended the job is about to be raised
            running.folds.drop(event.label.fold)
        if running.folds.is_over:
            self._slots.dismiss_idle()  # while the next trial is asked for
            self._tell(running)

    def _account(self, event: JobFinished) -> None:
        """Write down what a fold took; how long folds take is learned from those that were trained as a whole."""
        running = None if event.label.trial is None else self._running.get(event.label.trial)
        is_complete = event.result is not None and event.result.status is JobStatus.COMPLETE
        is_whole = is_complete and running is not None and event.label.fold not in running.folds.begun
        self._deadline.finish(event.label, event.usage.seconds if event.usage and is_whole else None)
        if running is not None:
            self._meter.write(running.trial, event, is_whole=is_whole)

    def _end_jobs(self) -> None:
        """End every job, and hear of it; nothing of it counts."""
        self._slots.cancel()
        while self._slots:
            try:
                event = self._slots.hear()
                if event is not None:
                    self._listen(event)
                if isinstance(event, JobFinished):
                    self._account(event)
            except KeyboardInterrupt:
                self._slots.cancel(at_once=True)
            except Exception:  # what broke one often breaks them all
                continue

    def _say(self, text: str) -> None:
        self._listen(Notice(message=text))

    def _goes_on(self) -> bool:
        """Whether another trial may begin; says why not."""
        reason = self._reason_to_end()
        if reason == "" and self.hopeless is None and self._num_elsewhere > 0:
            self._recover()
            reason = self._reason_to_end()
        if reason == "" and (running := self._num_elsewhere) > 0:
            reason = f"the last {running} of {self._budget.total} trials run in other processes"
        if reason:
            self._say(reason)
        return reason is None

    def _reason_to_end(self) -> str | None:
        return "" if self.hopeless is not None else self._budget.reason_to_end(self._spent())

    @property
    def _num_elsewhere(self) -> int:
        """Trials that other processes evaluate, those left out that take up a stopped one."""
        here = sum(REVIVES not in each.trial.user_attrs for each in self._running.values())
        return places_taken(self._study) - num_finished(self._study) - here

    def _spent(self) -> Spent:
        """By the study and its other processes, and by the jobs that run here."""
        so_far, seconds = spent(self._study, self._definition), self._clock() - self._started
        is_queued = tally_of(self._study).states()[OptunaState.WAITING] > 0  # and may have little left to train
        has_time = self._deadline.fits(None, 1 if is_queued else self._trials.first_epochs)
        device_s = so_far.device_s + self._meter.running_s
        return replace(so_far, device_s=device_s, seconds=seconds, has_time=has_time)

    def _takes_up_another(self) -> bool:
        """Whether a stopped trial is worth a second look, now that all new ones have had their turn."""
        if self.hopeless is not None or self.parked or not self._looks:
            return False
        # It takes no new place, and pauses are no lack of progress.
        reason = self._budget.reason_to_end(replace(self._spent(), trials=0, streak=0))
        if reason is None:
            return self._trials.second_look()
        self._looks = False
        if self._trials.has_second_look:
            self._say(f"{reason}; paused trials that may still win wait for it")
        return False

    def _deadline_from(self, began: float) -> Deadline:
        if (wanted := self._definition.config.budget.deadline) is None:
            return Deadline(math.inf, (), self._clock)
        known = [time.seconds / time.epochs for time in fold_times(self._study, self._definition)]
        return Deadline(began + wanted, known, self._clock)

    def _opening(self) -> SweepStarted:
        config = self._definition.config
        return SweepStarted(
            study=config.study,
            study_uid=self._study.user_attrs[UID],
            metric=self._definition.criteria.metric,
            direction=self._definition.criteria.direction,
            num_splits=self._definition.job.cross_validation.num_splits,
            finished_trials=num_finished(self._study),
            total_trials=self._budget.total,
            best_value=best_value(self._study),
            definition=self._definition.identity(),
        )

    def _begin_trial(self) -> Running | None:
        taken = take_place(self._study, self._definition, self._budget.total)
        if taken is None:
            return None  # another process took the last place at the same moment
        trial, params = taken
        try:
            running = self._trials.begin(trial, params)
        except UpdateFinishedTrialError:  # its lease expired meanwhile, and others have it
            self._trials.finished(trial.number, TrialState.FAIL, reason=ENDED_FROM_OUTSIDE)
            return None
        self._running[trial.number] = running
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
        for number in given_back:
            if blameless:
                interrupt(self._study, number)
            else:
                self._study.tell(number, state=OptunaState.FAIL, skip_if_finished=True)
        for number in given_back:
            self._trials.finished(number, TrialState.FAIL, reason=reason)

    def _tell(self, running: Running) -> None:
        """A trial is over: tell the study, or queue what is left of it."""
        if running.folds.is_parked:
            return self._park(running)
        if self._is_to_be_retried(running):
            return self._retry(running)
        self._forget(running)
        self._trials.tell(running)
        self._failures.append(running.folds.failure)
        self.hopeless = hopeless(self._failures)

    def _is_to_be_retried(self, running: Running) -> bool:
        failure, retries = running.folds.failure, running.trial.user_attrs.get(RETRIES, 0)
        is_passing = failure is not None and failure.kind.is_passing
        return is_passing and retries < self._definition.config.recovery.max_retries

    def _retry(self, running: Running) -> None:
        """Queue it again, as after Ctrl-C."""
        retries, failure = running.trial.user_attrs.get(RETRIES, 0) + 1, running.folds.failure
        of_all = f"{retries} of {self._definition.config.recovery.max_retries} retries"
        why = "" if failure is None else f"{failure.kind}: {failure.message}"
        self._queue_again(running, f"{why}; queued again ({of_all})", **{RETRIES: retries})
        self._asks = True

    def _queue_again(self, running: Running, reason: str, **attributes: Any) -> bool:
        """End a trial that another one is to go on with. False where it was ended from outside."""
        self._forget(running)
        is_ours = interrupt(self._study, running.trial.number, **attributes)
        reason = reason if is_ours else ENDED_FROM_OUTSIDE
        self._trials.finished(running.trial.number, TrialState.FAIL, reason=reason)
        return is_ours

    def _forget(self, running: Running) -> None:
        number = running.trial.number
        del self._running[number]
        self._resources.forget(number)
        self._watchdog.forget(number)

    def _park(self, running: Running) -> None:
        """What would not end before the deadline is queued again, as after Ctrl-C."""
        if self._queue_again(running, "parked before the deadline; queued again"):
            self.parked.append(running.trial.number)


def hopeless(failures: list[Failure | None]) -> Failure | None:
    """The common failure of the first trials of a sweep, when they all failed alike; else None."""
    first = [failure for failure in failures[:HOPELESS_AFTER] if failure and failure.kind not in BY_CHANCE]
    # Numbers may differ: sizes, process ids, addresses.
    alike = {(failure.kind, re.sub(r"\d+", "", failure.message)) for failure in first}
    return first[-1] if len(first) == HOPELESS_AFTER and len(alike) == 1 else None
