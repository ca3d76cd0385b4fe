"""How the devices of this machine are shared out among the jobs of a search.

By default each job gets one device, and as many run at a time as there are. Whether all devices on one job (DDP) would
be faster is measured on the search's own work: fold 0 of the first trial runs on all of them, fold 1 on one; the study
keeps what came of it, for when it is continued on this machine. At the end of a budget, when fewer jobs are left than
devices, each gets several if that is worth it.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import optuna

from hpo.definition import StudyDefinition
from hpo.devices import Hardware
from hpo.events import JobLabel
from training.config import JobConfig
from training.errors import ConfigError
from training.run_dir import Event, Record

WORTH_IT = 1.2
"""A job that gets several devices must become this many times as fast."""
MAX_TRIES = 3
"""Trials that may show how a job scales; those that are stopped in their first fold show nothing."""
PER_LEARNED = 4
"""Of this many trials of a budget one may run at a time: a sampler that knows nothing yet samples at random."""
SCALING = "hpo:scaling"
"""Attribute of a study, by machine and number of devices: the efficiency that was measured there."""


class Resources:
    """The machine's devices, and who has them. Used by one thread."""

    def __init__(
        self,
        definition: StudyDefinition,
        hardware: Hardware,
        say: Callable[[str], None],
        study: optuna.Study | None = None,
    ) -> None:
        """Without a `study` what is measured is not kept."""
        self._wish, self._config, self._say = definition.job.distributed, definition.config.resources, say
        self._hardware, self._on_gpu = hardware, _on_gpu(definition, hardware)
        self.per_job = devices_per_job(definition, hardware)
        if self._config.devices_per_trial not in ("auto", self.per_job):
            say(f"resources.devices_per_trial is {self._config.devices_per_trial}; going on with {self.per_job}")
        fitting = self._fitting()
        self.max_trials = self._max_trials(fitting, definition.config.budget.trials)
        folds = 1 if self._config.parallel_folds == "off" else definition.job.cross_validation.num_splits
        at_once = self.max_trials * folds
        many_each = self._wish.share_devices and self._config.max_parallel_trials != "auto"
        self.max_jobs = at_once if many_each else min(fitting, at_once)
        self._num_devices = self.per_job * (fitting if self._on_gpu else self.max_jobs)
        self._used: dict[JobLabel, int] = {}
        self._shared: dict[JobLabel, list[int]] = {}
        """GPUs by job, where jobs share them."""
        self._scaling, self._study = _Scaling(self._num_devices), study
        devices = f"{self._num_devices} {'gpus' if self._on_gpu else 'cores'}"
        self._kept_as = f"{SCALING}:{socket.gethostname()}:{devices}"
        if study is not None and self._may_spread and (known := study.user_attrs.get(self._kept_as)):
            self._scaling.efficiency = known
            say(f"{self._scaling.choice}, as measured before (scaling efficiency {known:.0%})")

    def _fitting(self) -> int:
        """Jobs that have room beside each other."""
        if isinstance(self._wish.devices, list):  # each takes just these
            return 1
        if self._on_gpu:
            return len(self._hardware.gpus) // self.per_job
        threads = 1 if self._wish.threads_per_rank == "auto" else self._wish.threads_per_rank
        return max(1, self._hardware.cores // (self.per_job * threads))

    def _max_trials(self, fitting: int, budget: int) -> int:
        wanted = self._config.max_parallel_trials
        if wanted == "auto":
            return min(fitting, max(1, budget // PER_LEARNED))
        if wanted > fitting and not self._wish.share_devices:
            self._say(f"resources.max_parallel_trials is {wanted}, but there is room for {fitting}")
            return fitting
        return wanted

    @property
    def _num_free(self) -> int:
        return self._num_devices - sum(self._used.values())

    @property
    def _may_spread(self) -> bool:
        """Whether it is open how many devices a job gets."""
        is_open = (self._config.devices_per_trial, self._wish.devices, self._wish.strategy) == ("auto",) * 3
        return is_open and self.max_jobs > 1 and not self._wish.share_devices

    @property
    def is_to_measure(self) -> bool:
        """Whether the first two folds of the next trial are to show how a job scales."""
        return self._may_spread and self._scaling.wants_trial

    @property
    def has_room(self) -> bool:
        """Whether another job might start."""
        is_free = self._wish.share_devices or self._num_free >= self.per_job
        is_shared_out = self._used and self._scaling.efficiency >= 1.0  # one job has them all
        return len(self._used) < self.max_jobs and is_free and not is_shared_out

    def offer(self, config: JobConfig, num_left: int, *, fold: int | None) -> int:
        """Devices for the next job, that `fold` of `config`, when `num_left` jobs are to start, this one included.

        Ask when there is room; 0 when it has to wait all the same.
        """
        if not self._may_spread or not _can_share(config, self._num_devices):
            return self.per_job
        if not self._used and fold == 0 and self._scaling.wants_all(num_left):  # else no job waits for it
            return self._num_devices
        if self._scaling.efficiency >= 1.0:
            return self._num_devices if not self._used else 0
        share = self._num_free // num_left
        if share * self._scaling.efficiency >= WORTH_IT and _can_share(config, share):
            return share
        return self.per_job

    def take(self, label: JobLabel, num_devices: int) -> Mapping[str, Any]:
        """Give that job its devices; what to change in its configuration."""
        self._used[label] = num_devices
        if isinstance(self._wish.devices, list):
            return {}
        changes: dict[str, Any] = {}
        takes_all = self._on_gpu and num_devices == len(self._hardware.gpus)  # `auto` does without those in use
        if (self._wish.devices == "auto" and not takes_all) or self._config.devices_per_trial != "auto":
            changes["distributed.devices"] = num_devices
        if self._wish.share_devices and self._on_gpu:  # or all would be on the first
            changes["distributed.devices"] = self._shared[label] = self._least_shared(num_devices)
        if self._wish.threads_per_rank == "auto":
            changes["distributed.threads_per_rank"] = max(1, self._hardware.cores // self._num_devices)
        return changes

    def placed(self, config: JobConfig) -> JobConfig:
        """`config` on the devices that a job gets for the present."""
        is_open = config.distributed.devices == "auto"
        return config.with_values({"distributed.devices": self.per_job}) if is_open else config

    def hear(self, label: JobLabel, record: Record) -> None:
        """A record of that job; it shows how fast the job is."""
        if self._may_spread and self._scaling.learn(label, self._used[label], record):
            self._say(self._scaling.sentence())
            if self._study is not None:
                self._study.set_user_attr(self._kept_as, self._scaling.efficiency)

    def give_back(self, label: JobLabel) -> None:
        """The job has ended."""
        self._used.pop(label, None)
        self._shared.pop(label, None)

    def _least_shared(self, num_devices: int) -> list[int]:
        jobs = Counter(gpu for gpus in self._shared.values() for gpu in gpus)
        return sorted(range(len(self._hardware.gpus)), key=lambda gpu: jobs[gpu])[:num_devices]

    def forget(self, trial: int) -> None:
        """The trial has ended; what was to be learned of it, another one may show."""
        self._scaling.forget(trial)


def devices_per_job(definition: StudyDefinition, hardware: Hardware) -> int:
    """Devices of a job, before anything was measured."""
    wish, wanted = definition.job.distributed, definition.config.resources.devices_per_trial
    on_gpu = _on_gpu(definition, hardware)
    available = len(hardware.gpus) if on_gpu else hardware.cores
    if wish.strategy == "none":
        return 1
    if isinstance(wish.devices, list):
        return len(wish.devices)
    if wanted != "auto":
        return min(wanted, available)
    if wish.devices != "auto":
        return min(wish.devices, available)
    return available if wish.strategy in ("ddp", "fsdp") and on_gpu else 1


def _on_gpu(definition: StudyDefinition, hardware: Hardware) -> bool:
    return definition.job.distributed.accelerator != "cpu" and bool(hardware.gpus)


def _can_share(config: JobConfig, num_devices: int) -> bool:
    try:
        config.batch_plan(num_devices)
    except ConfigError:
        return False
    return True


class _Scaling:
    """What all devices do for one job: seconds per step of a trial's fold 0 on all, and of its fold 1 on one."""

    def __init__(self, num_devices: int) -> None:
        self._num_devices = num_devices
        self._trial: int | None = None
        self._tries = 0
        self._started: dict[JobLabel, Record] = {}
        self._step_s: dict[int, float] = {}
        """By number of devices."""
        self.efficiency = 0.0
        """Speed on all devices, as part of what as many jobs on one each do side by side; 0 while not known."""

    def wants_all(self, num_left: int) -> bool:
        """Whether the fold 0 that is next is to show it."""
        return self.wants_trial and num_left > self._num_devices

    @property
    def wants_trial(self) -> bool:
        """Whether a trial is to show it."""
        return not self.efficiency and self._trial is None and self._tries < MAX_TRIES

    def learn(self, label: JobLabel, num_devices: int, record: Record) -> bool:
        """Whether it is known now, and was not before."""
        if record.event is Event.START:
            self._started[label] = record
            if num_devices == self._num_devices and label.fold == 0 and self._trial is None:
                self._trial, self._tries = label.trial, self._tries + 1
        elif label.trial == self._trial and self._num_steps(label, record) and not self.efficiency:
            self._step_s[num_devices] = (record.time - self._started[label].time) / self._num_steps(label, record)
            if label.fold == 1 and record.event is Event.EVALUATE and self._num_devices in self._step_s:
                self.efficiency = self._step_s[num_devices] / self._step_s[self._num_devices] / self._num_devices
                return True
        return False

    def _num_steps(self, label: JobLabel, record: Record) -> int:
        """Since the job started, which may be in the middle of a training."""
        return record.step - self._started[label].step if label in self._started else 0

    def forget(self, trial: int) -> None:
        """If this was the trial to learn from and it taught nothing, take another."""
        if trial == self._trial and not self.efficiency:
            self._trial = None
            self._step_s.clear()

    @property
    def choice(self) -> str:
        """What follows from what is known."""
        ways = ("all devices work on one job", "jobs run side by side, on one device each")
        return ways[self.efficiency < 1.0]

    def sentence(self) -> str:
        """What was measured and what follows."""
        alone, together = (1e3 * self._step_s[count] for count in (min(self._step_s), self._num_devices))
        return (
            f"{self.choice}: a step takes {together:.3g} ms on {self._num_devices} devices and"
            f" {alone:.3g} ms on one (scaling efficiency {self.efficiency:.0%})"
        )
