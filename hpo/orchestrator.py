"""The sweep: ask -> run the folds, side by side with others' -> tell, until the budget is spent.

One thread asks, decides, tells and is heard; jobs run in Slots. Of this process only that thread writes to the study.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState as OptunaState
from sqlalchemy.exc import SQLAlchemyError

from hpo import interruption
from hpo.console import counted
from hpo.deadline import Clock, Deadline
from hpo.definition import StudyDefinition
from hpo.devices import detect_hardware
from hpo.errors import DeviceError, DiskFullError, StudyNotFoundError
from hpo.events import (
    Estimate,
    Event,
    JobFinished,
    JobProgress,
    Listener,
    Notice,
    SweepFinished,
    TrialState,
)
from hpo.ledger import ledger_of
from hpo.outlook import Outlook
from hpo.past import opening
from hpo.patience import OUTAGE_S
from hpo.policy import FROM_OUTSIDE, Action, Delays, Policy, Verdict, hopeless
from hpo.resources import Resources
from hpo.silence import SILENCE_S, Silence
from hpo.slots import Slots
from hpo.spending import Meter, budget_of, fold_times
from hpo.study import (
    interrupt,
    num_finished,
    places_taken,
    recover,
    running_here,
    study_names,
    take_place,
)
from hpo.tally import NOT_BEFORE, REVIVES, tally_of
from hpo.trials import ENDED_FROM_OUTSIDE, Running, Trials
from hpo.watchdog import Watchdog
from training.errors import Failure, FailureKind

ATTEND_S = 5.0
"""How often a sweep says that it lives, and looks whether others do."""
LOOK_S = 1.0
"""Between two looks for a paused trial that goes on; there may be thousands of records in between."""
LAST_OUTAGE_S = 5.0
"""How long a sweep waits at its end for a database that is away."""
BLAMELESS = (
    KeyboardInterrupt,
    OSError,
    StorageInternalError,
    SQLAlchemyError,
    DeviceError,
    DiskFullError,
    UpdateFinishedTrialError,
)
"""What ends a sweep and is not the fault of the trials that run."""
MORE_TRIALS = "hpo sweep with a larger --trials goes on"


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
        self._patience = ledger_of(study).patience
        self._patience.say = self._say
        self._last_look = clock()
        self._budget, self._meter = budget_of(definition), Meter(clock)
        self._deadline = self._deadline_from(clock() if began is None else began)
        self._failures: list[Failure | None] = []
        self._watchdog = Watchdog(definition.config.recovery, clock)
        self._resources = Resources(definition, detect_hardware(), self._say, study)
        self._slots = Slots(crews_stay=definition.config.resources.processes == "per_trial")
        self._trials = Trials(definition, study, listen, self._resources)
        self._outlook = Outlook(definition, study, self._trials, self._resources, self._deadline, self._meter)
        self._silence = Silence()
        self._policy, self._delays = Policy(definition.config.recovery), Delays(clock)
        self._running: dict[int, Running] = {}
        """By number."""
        self._asks = True
        """Whether it still asks for new trials."""
        self._looks, self._next_look = True, -math.inf
        """Whether it still takes up paused ones, and when again, if no trial of ours ends before."""
        self._has_said_that_it_waits = self._is_preempted = False
        """Whether it was told to leave."""
        self.hopeless: Failure | None = None
        """Why the sweep gave up, when it did."""
        self.gave_up = "the first trials all failed in the same way"
        """The same in words."""
        self.parked: list[int] = []
        """Trials that did not end before the deadline and are queued again."""

    @property
    def num_told(self) -> int:
        """Trials that came to their end here: complete, stopped or failed."""
        return len(self._failures)

    def run(self) -> None:
        """Evaluate trials until the budget is spent. On Ctrl-C the running trials are queued again."""
        interrupted, self._patience.lasts_s = True, OUTAGE_S
        try:
            self._listen(opening(self._definition, self._study))
            self._recover_first()
            if (taken := places_taken(self._study)) >= self._budget.total:
                done = f"the study has {counted(taken, 'trial')} ({self._budget.total} asked for)"
                go_on = "paused ones that may still win go on" if self._trials.is_one_to_go_on else MORE_TRIALS
                self._say(f"{done}; {go_on}")
            self._started = self._clock()  # opening MLflow takes seconds that belong to no trial
            with interruption.listening():
                self._work()
            if self._is_preempted:
                raise interruption.Preempted
            interrupted = False
        except BaseException as error:
            interruption.hear()
            self._patience.lasts_s = LAST_OUTAGE_S
            self._end_jobs()
            if isinstance(error, KeyError) and self._study.study_name not in study_names(self._study._storage):
                said = f"study '{self._study.study_name}' was deleted while it ran"
                raise StudyNotFoundError(f"{said}; hpo sweep begins it anew, its run directories stay") from error
            self._give_back(error)
            raise
        finally:
            self._patience.lasts_s = LAST_OUTAGE_S
            is_hurried = interrupted or math.isfinite(self._deadline.at)
            self._listen(SweepFinished(interrupted=interrupted, hurried=is_hurried))

    def _work(self) -> None:
        """Start jobs while there is room and a budget, and hear them, until none runs or the deadline has passed."""
        while True:
            while self._start_job():
                self._attend()
            self._slots.dismiss_idle()
            if not self._slots and (not self._delays or self._is_preempted) and not self._waits_for_others():
                break
            self._hear(self._slots.hear(min(self._deadline.wait_s, ATTEND_S, self._delays.wait_s())))
            if interruption.take_notice():
                self._leave_soon()
            self._attend()
            if self._deadline.is_over:  # one that was asked to stop did not, or waits for devices
                self._end_jobs()
                break
            for label in self._deadline.late():
                if label.trial is not None and label.fold is not None:
                    self._running[label.trial].folds.park(label.fold)
        self._close()

    def _leave_soon(self) -> None:
        """We were told to leave: every fold leaves with a checkpoint, in the time there is, and none begins."""
        notice_s = self._definition.config.recovery.preemption_notice
        self._say(f"told to leave: folds have {notice_s:g} s to keep a checkpoint (a second signal ends them at once)")
        self._is_preempted = True
        self._deadline.at = min(self._deadline.at, self._clock() + notice_s)
        for running in self._running.values():
            running.folds.park_all()

    def _attend(self) -> None:
        """Now and then: hold our trials for longer, let go of those that others have, and queue what nobody holds."""
        before = self._last_look
        if self._clock() - before < ATTEND_S:
            return
        self._renew()
        self._last_look = self._clock()
        if self._last_look - before > 2 * ATTEND_S:  # busy, suspended or without a database: much is still to be heard
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
        max_losses = self._definition.config.recovery.max_retries
        lost = recover(self._study, self._running, max_losses=max_losses, lost_of=self._silence.lost)
        for number, reason in lost.items():
            self._asks = True
            self._trials.finished(number, TrialState.FAIL, reason=reason)

    def _recover_first(self) -> None:
        """Before any trial is asked for: those of sweeps that are gone, or seem to be."""
        self._recover()
        if self._silence.doubtful:
            numbers = ", ".join(map(str, self._silence.doubtful))
            self._say(f"no sign of life of whoever evaluates trial {numbers}; waiting {SILENCE_S:g} s for one")
        while self._silence.doubtful:
            time.sleep(1.0)
            self._recover()

    def _close(self) -> None:
        """No job runs any more: say what is left of the trials, and of the budget."""
        for running in [*self._running.values()]:  # their other folds would not have ended in time
            if running.folds.stopped or running.folds.failure:
                self._tell(running)
            else:
                self._park(running)
        if self.parked:
            trials = f"trial{'s' * (len(self.parked) > 1)} {', '.join(map(str, self.parked))}"
            limit = self._definition.config.budget.deadline
            at = "told to leave" if self._is_preempted else f"budget.deadline of {limit:g} s"
            self._say(f"{at}: {trials} parked and queued again; the same command continues the study")
        if self._budget.config.device_hours is not None:
            above = self._budget.overrun(self._outlook.spent(self._seconds))
            if above:
                self._say(above)

    def _start_job(self) -> bool:
        """Start the next fold of a trial that waits, or of a new trial, or another of one that runs.

        Returns whether to call again: one was started, or a trial was over before it began.
        """
        if self._is_preempted or not self._resources.has_room:
            return False
        self._delays.wake(self._resources.max_trials - self._num_active)
        is_fold_first = self._definition.config.resources.parallel_folds == "on"
        running = self._waiting(beside_others=is_fold_first) or self._new_trial() or self._waiting(beside_others=True)
        if running is None or running.folds.is_over or running.trial.number in self._delays:
            return running is not None
        if not self._has_time(running):  # a new one that goes on with another, and has more to train than is known
            return False
        label = running.folds.next_label
        num_devices = self._resources.offer(running.folds.config, self._num_jobs_left(), fold=label.fold)
        if num_devices:
            self._deadline.start(label, running.folds.next_epochs)
            self._watchdog.start(label)
            job = running.folds.start(self._resources.take(label, num_devices))
            self._trials.fold_began(running, job)
            self._slots.start(job)
        return num_devices > 0

    def _waiting(self, *, beside_others: bool) -> Running | None:
        """The first trial with a fold to start: one of which none runs, or any if folds may run side by side."""
        any_will_do = beside_others and self._definition.config.resources.parallel_folds != "off"
        awake = (each for each in self._running.values() if each.trial.number not in self._delays)
        waiting = (each for each in awake if each.folds.num_left and self._has_time(each))
        return next((each for each in waiting if any_will_do or not each.folds.num_running), None)

    def _has_time(self, running: Running) -> bool:
        return self._deadline.fits(running.trial.number, len(running.folds.next_epochs))

    def _new_trial(self) -> Running | None:
        """A trial that is told at once, when there is nothing to run, comes back as one that is over."""
        if self._num_active >= self._resources.max_trials:
            return None
        self._asks = self._asks and self._goes_on()
        if self._asks:
            self._trials.promote()  # it goes first
        return self._begin_trial() if self._asks or self._takes_up_another() else None

    @property
    def _num_active(self) -> int:
        """Trials that run, those that wait to be tried again left out."""
        return len(self._running) - len(self._delays)

    def _num_jobs_left(self) -> int:
        to_ask = max(0, self._budget.total - places_taken(self._study)) if self._asks else 0
        begun = sum(each.folds.num_left for each in self._running.values())
        return begun + to_ask * self._trials.first_jobs + self._trials.jobs_to_promote(is_end=not self._asks)

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
            self._trials.fold_ended(running, event.label.fold, event.result)
        elif running.folds.stopped or running.folds.failure:  # else what ended the job is about to be raised
            running.folds.drop(event.label.fold)
        self._listen(Estimate(job_s=self._outlook.job_seconds_left(self._running.values(), asks=self._asks)))
        if running.folds.is_over:
            self._slots.dismiss_idle()  # while the next trial is asked for
            self._tell(running)

    def _account(self, event: JobFinished) -> None:
        """Write down what a fold took; how long folds take is learned from jobs that trained all that they were to."""
        running = None if event.label.trial is None else self._running.get(event.label.trial)
        share = None
        if running is not None and event.result is not None and event.label.fold is not None:
            share = running.folds.share_trained(event.label.fold, event.result)
        self._deadline.finish(event.label, event.usage.seconds if event.usage and share else None)
        if running is not None:
            self._meter.write(running.trial, event, share)

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
            except Exception:  # nosec B112
                continue  # what broke one often breaks them all

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
        if self.hopeless is not None:
            return ""
        return self._budget.reason_to_end(self._outlook.spent_and_due(self._seconds))

    @property
    def _num_elsewhere(self) -> int:
        """Trials that other processes evaluate, those left out that take up a stopped one."""
        here = sum(REVIVES not in each.trial.user_attrs for each in self._running.values())
        return places_taken(self._study) - num_finished(self._study) - here

    @property
    def _seconds(self) -> float:
        """Since the first trial began."""
        return self._clock() - self._started

    def _waits_for_others(self) -> bool:
        """Whether paused trials may go on when those of other processes have ended; says so once."""
        is_over = self.hopeless is not None or self.parked or not self._looks or self._is_preempted or self._running
        if is_over or not tally_of(self._study).running() or not self._trials.may_go_on:
            return False
        if not self._has_said_that_it_waits:
            self._has_said_that_it_waits = True
            self._say("waiting for the trials of other processes: paused ones may go on after them")
        return True

    def _takes_up_another(self) -> bool:
        """Whether a paused trial goes on, now that all new ones have had their turn."""
        if self.hopeless is not None or self.parked or not self._looks or self._clock() < self._next_look:
            return False
        # It takes no new place, pauses are no lack of progress, and a timeout is for new trials.
        spent = replace(self._outlook.spent(self._seconds), trials=0, streak=0)
        reason = self._budget.reason_to_end(replace(spent, seconds=0.0))
        if reason is None:
            found = self._trials.promote(is_end=True, audits=self._budget.reason_to_end(spent) is None)
            self._next_look = -math.inf if found else self._clock() + LOOK_S
            return found
        self._looks = False
        if self._trials.is_one_to_go_on:
            self._say(f"{reason}; paused trials that may still win wait for it")
        return False

    def _deadline_from(self, began: float) -> Deadline:
        known = [time.seconds / time.epochs for time in fold_times(self._study, self._definition)]
        wanted = self._definition.config.budget.deadline
        return Deadline(math.inf if wanted is None else began + wanted, known, self._clock)

    def _begin_trial(self) -> Running | None:
        taken = take_place(self._study, self._definition, self._budget.total, asks=self._asks)
        if taken is None:
            return None  # another process took the last place at the same moment
        trial, params = taken
        try:
            running = self._trials.begin(trial, params)
        except UpdateFinishedTrialError:  # its lease expired meanwhile, and others have it
            self._trials.finished(trial.number, TrialState.FAIL, reason=ENDED_FROM_OUTSIDE)
            return None
        self._running[trial.number] = running
        self._delays.add(trial.number, trial.user_attrs.get(NOT_BEFORE, 0.0))
        if running.folds.is_over:
            self._tell(running)
        return running

    def _give_back(self, error: BaseException) -> None:
        """No trial stays RUNNING, whatever happened; one that is not to blame (Ctrl-C, a full disk) is queued again."""
        blameless = isinstance(error, BLAMELESS)
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(cause).__name__}: {cause}"
        reason = f"{FailureKind.DISK_FULL}: {error}" if isinstance(error, DiskFullError) else reason
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
        failure = running.folds.failure
        if running.folds.is_parked or (self._is_preempted and failure and failure.kind in FROM_OUTSIDE):
            return self._park(running)
        verdict = None if failure is None else self._policy.decide(failure, running.tried)
        if failure and verdict and verdict.action.goes_on:
            return self._retry(running, failure, verdict)
        self._forget(running)
        self._trials.tell(running, verdict)
        self._failures.append(failure)
        self.hopeless = self.hopeless or hopeless(self._failures)
        if failure and verdict and verdict.action is Action.STOP and self.hopeless is None:
            self.hopeless, self.gave_up = failure, f"recovery.on_failure.{failure.kind} is stop"

    def _retry(self, running: Running, failure: Failure, verdict: Verdict) -> None:
        """Queue it again, as after Ctrl-C."""
        reason = f"{failure.kind}: {failure.message}; {verdict.reason}"
        self._queue_again(running, reason, **verdict.attributes)
        self._asks = True

    def _queue_again(self, running: Running, reason: str, **attributes: Any) -> bool:
        """End a trial that another one is to go on with. False where it was ended from outside."""
        self._forget(running)
        is_ours = interrupt(self._study, running.trial.number, **attributes)
        reason = reason if is_ours else ENDED_FROM_OUTSIDE
        self._trials.finished(running.trial.number, TrialState.FAIL, reason=reason)
        return is_ours

    def _forget(self, running: Running) -> None:
        number, self._next_look = running.trial.number, -math.inf
        del self._running[number]
        self._resources.forget(number)
        self._watchdog.forget(number)
        self._delays.forget(number)

    def _park(self, running: Running) -> None:
        """What would not end before the deadline is queued again, as after Ctrl-C."""
        why = "told to leave" if self._is_preempted else "parked before the deadline"
        if self._queue_again(running, f"{why}; queued again"):
            self.parked.append(running.trial.number)
