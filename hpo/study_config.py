"""The schema of a study file. What each key means stands under it and is printed in docs/configuration.md."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from training.config import Section, Size

Scalar = None | bool | int | float | str
SafeInt = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""Optuna keeps values as floats, which are exact up to here."""
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
MAX_STEPS = 10**9
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: object) -> float:
    """Seconds of ``90s``, ``30m``, ``2h``, ``1.5d`` or a plain number. Raises ValueError."""
    if isinstance(text, (int, float)) and not isinstance(text, bool) and text > 0:
        return float(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text) if isinstance(text, str) else None
    if match is None or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not a duration; write 90s, 30m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2] or "s"]


Duration = Annotated[float, BeforeValidator(parse_duration)]


class ObjectiveConfig(Section):
    """What a trial is judged by: the mean of this metric over the folds. A list of two or more of these searches for
    the trials that no other one beats in all of them (docs/objectives.md)."""

    metric: str
    """A metric of the task, such as `accuracy` or `loss`, or one of any task: `parameters` or `inference_ms`, which
    `output.measure` explains."""
    direction: Literal["maximize", "minimize"]
    """Which way is better."""


class ConstraintConfig(Section):
    """A list of what a trial must keep: the mean of a metric over the folds, on one side of a bound. A trial that does
    not is never the best, nor what others are stopped for."""

    metric: str
    """As of an objective."""
    at_most: float | None = None
    """The highest allowed value."""
    at_least: float | None = None
    """The lowest allowed value, in place of `at_most`."""

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(f"the constraint on {self.metric} needs exactly one of at_most and at_least")
        return self

    @property
    def name(self) -> str:
        """``parameters.at_most``"""
        return f"{self.metric}.{'at_least' if self.at_most is None else 'at_most'}"

    @property
    def text(self) -> str:
        """``parameters at most 5000``"""
        at_least = f"at least {self.at_least:g}" if self.at_least is not None else ""
        return f"{self.metric} {at_least or f'at most {self.at_most:g}'}"

    def violation(self, value: float) -> float:
        """How far `value` is on the wrong side; zero or less when it is allowed."""
        return value - self.at_most if self.at_most is not None else (self.at_least or 0.0) - value


class ParameterConfig(Section):
    """One searched hyperparameter: exactly one of `float`, `int` and `choice`."""

    float_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(default=None, alias="float")
    """Lowest and highest value, both included."""
    int_range: Annotated[list[SafeInt], Field(min_length=2, max_length=2)] | None = Field(default=None, alias="int")
    """Lowest and highest value, both included."""
    choice: Annotated[list[Scalar], Field(min_length=1)] | None = None
    """The values to choose from."""
    log: bool = False
    """Sample the logarithm evenly."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Only multiples of this above the lowest value."""
    when: dict[str, Scalar | list[Scalar]] = {}
    """Search this only where another parameter has this value (or one of these)."""

    @property
    def bounds(self) -> list[float] | list[int] | None:
        """Lowest and highest value, or None for a choice."""
        return self.float_range if self.float_range is not None else self.int_range

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [kind for kind in (self.float_range, self.int_range, self.choice) if kind is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of float: [low, high], int: [low, high] and choice: [...]")
        return self

    @model_validator(mode="after")
    def _range_is_possible(self) -> Self:
        if self.bounds is None:
            if self.log or self.step is not None:
                raise ValueError("log and step belong to float and int, not to choice")
            return self
        low, high = self.bounds
        if low > high:
            raise ValueError(f"impossible range: {low} is above {high}; write the lower bound first")
        if self.log and low <= 0:
            raise ValueError(f"log: true needs a lower bound above zero, not {low}")
        if self.log and self.step is not None:
            raise ValueError("log and step cannot be used together")
        if self.int_range is not None and self.step is not None and self.step != int(self.step):
            raise ValueError(f"the step of an int must be whole, not {self.step}")
        self._step_arrives(low, high)
        return self

    def _step_arrives(self, low: float, high: float) -> None:
        # Optuna would lower the upper bound. Fractions, because 0.6 / 0.1 is not 6 in floats.
        if self.step is None:
            return
        first, last, step = (Fraction(str(number)) for number in (low, high, self.step))
        count, rest = divmod(last - first, step)
        if count > MAX_STEPS:
            raise ValueError(f"steps of {self.step:g} from {low} to {high} are too many; leave the step out")
        if rest:
            reached = type(low)(last - rest)
            raise ValueError(f"steps of {self.step:g} from {low} arrive at {reached}, not at {high}; write that")


class SamplerConfig(Section):
    """How hyperparameters are chosen."""

    name: Literal["tpe", "random", "gp", "cmaes", "nsga2", "qmc", "grid"] = "tpe"
    """Optuna's sampler; `grid` needs choices, ints, or floats with a step. All but `cmaes` know several objectives.
    `tpe` is multivariate, but under halving, whose trials are many, it models each parameter by itself."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The same seed samples the same trials, also when a sweep is continued."""
    startup_trials: Annotated[int, Field(ge=1)] = 10
    """Random trials before tpe, gp or cmaes begin to model; of nsga2, the trials of a generation (at least 2)."""
    max_history: Annotated[int, Field(ge=100)] | None = None
    """Let tpe model the best 25 trials and the newest others, this many in all; null is all, slower by each trial."""

    @model_validator(mode="after")
    def _history_is_of_tpe(self) -> Self:
        if self.max_history is not None and self.name != "tpe":
            raise ValueError(f"max_history is for tpe; {self.name} has none, leave it out")
        if self.max_history is not None and self.max_history < self.startup_trials:
            raise ValueError(f"max_history: {self.max_history} is below startup_trials: tpe would never model")
        return self

    @model_validator(mode="after")
    def _generation_has_parents(self) -> Self:
        if self.name == "nsga2" and self.startup_trials < 2:
            raise ValueError("startup_trials: a generation of nsga2 has at least 2 trials")
        return self


EpochRuleName = Literal["median", "percentile", "asha", "hyperband", "patience", "none"]
FoldRuleName = Literal["halving", "aggressive", "forgiving", "wilcoxon", "median", "dominance", "none"]
_OPTION_OF = {
    "startup_trials": {"median", "percentile"},
    "percentile": {"percentile"},
    "min_epochs": {"asha", "hyperband"},
    "reduction_factor": {"asha", "hyperband"},
    "patience": {"patience"},
    "p_value": {"wilcoxon"},
    "risk": {"dominance"},
    "keep": {"halving"},
    "disk": {"halving"},
}


class StoppingConfig(Section):
    """When a trial that is losing ends early: inside a fold, by the curve of that fold, and between folds, by their
    scores. docs/stopping.md compares the rules."""

    epochs: EpochRuleName = "none"
    """Asked after each epoch but a fold's last, whether to stop for good. `median`: below the median of the other
    trials' at this epoch of this fold; `percentile`: not among the best `percentile`; `asha`, `hyperband`: successive
    halving; `patience`: no better for `patience` epochs, and behind the best trial. With several objectives only
    `none`."""
    folds: FoldRuleName = "halving"
    """`halving` trains half of the first fold of every trial and pauses it; the best `keep` of them train the whole
    fold, the best of these two folds, then four, up to all, each from its checkpoint. The others are asked when a fold
    ends, and stop for good. `aggressive`: the mean so far is below the best trial's mean; `forgiving`: below its worst
    fold; `wilcoxon`: a signed-rank test finds it worse; `median`: below the median of the other trials' on the same
    folds; `dominance`: another trial is better in every objective. This one and `none` are for several objectives, and
    it is the default there."""
    keep: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """halving: the part of the trials that goes on from each rung; an eighth more from half a fold, which says less.
    More costs more."""
    disk: Size | None = None
    """halving: of the checkpoints of paused trials, such as 20GB; above it those of the worst go, and would be trained
    anew."""
    risk: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """dominance: a trial is given up for good when its chance not to be dominated is below this. Less costs more."""
    startup_trials: Annotated[int, Field(ge=1)] = 5
    """median, percentile: never stop before this many other trials came as far."""
    percentile: Annotated[float, Field(gt=0.0, lt=100.0)] = 25.0
    """percentile: so many percent go on."""
    min_epochs: Annotated[int, Field(ge=1)] = 1
    """asha, hyperband: epochs before the first halving, fewer than `training.epochs`."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """asha, hyperband: one in so many goes on, to so many times the epochs."""
    patience: Annotated[int, Field(ge=1)] = 3
    """patience: epochs without a better value."""
    p_value: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """wilcoxon: stop below this p; n folds reach no less than 1 / 2^n."""
    audit: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Let this part of the trials that a rule would stop run to their end, so that `hpo report` can say how often the
    rule is wrong."""

    @model_validator(mode="after")
    def _options_are_of_the_rules(self) -> Self:
        for (
            option,
            rules,
        ) in _OPTION_OF.items():  # a value that is the default changes nothing, and stands in stored ones
            is_changed = getattr(self, option) != type(self).model_fields[option].default
            if is_changed and not rules & {self.epochs, self.folds}:
                names = " or ".join(sorted(rules))
                raise ValueError(f"stopping.{option} is for the rule {names}, which is not chosen; leave it out")
        return self


class EpochFidelity(Section):
    """Successive halving over epochs: how many a trial trains before it is paused."""

    min: PositiveInt
    """Epochs of each fold before the first halving."""
    max: PositiveInt | None = None
    """Those of a whole training: `training.epochs`, which null takes."""
    eta: Annotated[int, Field(ge=2)] = 3
    """One trial in so many goes on, to so many times the epochs."""


class FidelityConfig(Section):
    """Train many trials a little and few to the end: a paused trial that is promoted goes on from its checkpoints."""

    epochs: EpochFidelity
    """What is trained less of."""
    disk: Size | None = None
    """Of the checkpoints of paused trials, such as 20GB; above it those of the worst go, and would be trained anew."""


class BudgetConfig(Section):
    """When the sweep ends."""

    trials: Annotated[int, Field(ge=1)] = 20
    """Finished trials in the study, earlier runs of the command counted."""
    timeout: Duration | None = None
    """Start no new trial after this time, such as `30m` or `2h`, less what paused trials that are to go on will
    take."""
    deadline: Duration | None = None
    """Have the command end by this time after its start, such as `9h` where a machine is lent for so long: no fold is
    started that is not expected to end by then, what runs is parked at its newest checkpoint, and the next `hpo sweep`
    continues."""
    device_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Begin no trial once the jobs of the study took so many hours, times the devices of each: GPUs, or on a CPU ranks,
    or leave just what paused trials that are to go on will take. Failed and stopped attempts count. Trials in progress
    finish, and may exceed it."""
    target: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Begin no trial once one is complete that is at least as good as this value of the objective."""
    patience: PositiveInt | None = None
    """Begin no trial once so many finished trials in a row brought no significant improvement: the best of them does
    not beat the best before them by more than the noise of the folds they share (one-sided, 5 %). A paused trial counts
    by its estimate, and shares fewer than two folds with others: any that looks better is an improvement."""


_WithoutRetry = Literal["infeasible", "fail", "stop"]
_Retried = Literal["retry", "infeasible", "fail", "stop"]
_NEVER_RETRIED = {
    "config": "the same configuration is wrong each time",
    "data": "the same data are read again",
    "user_code": "the same code fails again",
    "shm_full": "there is as little room the next time",
}


class OnFailureConfig(Section):
    """What becomes of a trial, by the kind of its failure (docs/failures.md). `retry`: another trial goes on from its
    checkpoints; `infeasible`: it is told as one that violates a constraint, so that the sampler stays away from its
    like; `fail`: it is told as failed, from which a sampler learns nothing; `stop`: the same, and the sweep ends when
    the trials that run have."""

    oom: Literal["halve_batch", "retry", "infeasible", "fail", "stop"] = "halve_batch"
    """Out of memory, of a device or of the machine. `halve_batch`: try it again with half the samples at a time and
    twice as many accumulations, so with the same global batch; `infeasible` when there is nothing to halve."""
    infrastructure: _Retried = "retry"
    """A collective broke: a rank, its network or its machine was lost."""
    signal: _Retried = "retry"
    """A rank was killed."""
    hang: _Retried = "retry"
    """The ranks told nothing for `no_progress_timeout`."""
    preemption: Literal["retry", "fail", "stop"] = "retry"
    """A rank was told to leave by its scheduler. Such a retry is not counted, and nothing waits for it."""
    timeout: _Retried = "fail"
    """`fold_timeout` or `trial_timeout` was over."""
    distributed_start: _Retried = "fail"
    """The ranks did not find each other, and one process did not work either."""
    launch: _Retried = "fail"
    """The job ended before our code ran."""
    non_finite: _Retried = "fail"
    """The loss or a metric became NaN or infinite."""
    user_code: _WithoutRetry = "fail"
    """An exception in the task, the model or anything else that ran in a rank."""
    data: _WithoutRetry = "fail"
    """The data cannot be read, or have changed."""
    config: _WithoutRetry = "fail"
    """The sampled values do not go together."""
    shm_full: _WithoutRetry = "fail"
    """The workers of a DataLoader found no room in /dev/shm."""
    disk_full: Literal["stop"] = "stop"
    """A disk is full, over its quota, read-only or broken. No trial is to blame: the sweep ends at once, and those that
    run are queued again."""

    @model_validator(mode="before")
    @classmethod
    def _what_fails_each_time_is_not_retried(cls, values: Any) -> Any:
        for kind, why in _NEVER_RETRIED.items() if isinstance(values, dict) else ():
            if values.get(kind) in ("retry", "halve_batch"):
                raise ValueError(f"{kind} cannot be {values[kind]}: {why}; write infeasible, fail or stop")
        for kind, action in values.items() if isinstance(values, dict) else ():
            if kind != "oom" and action == "halve_batch":
                raise ValueError(f"halve_batch is for oom; {kind} has nothing to do with the size of a batch")
        return values


class RecoveryConfig(Section):
    """When a job is given up, what becomes of a trial that failed, and how often it is tried again."""

    no_progress_timeout: Duration = 1800.0
    """End a job whose ranks have told nothing for so long, no loss and no evaluation, though they have their devices.
    Its trial is tried again and goes on from the newest checkpoint."""
    fold_timeout: Duration | None = None
    """Fail a trial of which one fold takes longer."""
    trial_timeout: Duration | None = None
    """Fail a trial whose folds take longer together, in one sweep."""
    on_failure: OnFailureConfig = OnFailureConfig()
    max_retries: NonNegativeInt = 2
    """How often a trial is tried again after failures, before it fails for good. As often may the process that
    evaluates it be lost (kill -9, a dead machine) without a new evaluation in between."""
    backoff: Duration = 1.0
    """A trial waits so long before its first retry, twice as long before each other one (5 minutes at most), or up to
    half less, by chance. Other trials go on meanwhile."""
    preemption_notice: Duration = 20.0
    """What the folds have to leave with a checkpoint when the sweep is told to by SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2;
    then they are killed. Keep it below what your scheduler waits. A second signal, and Ctrl-C, end them at once."""


class ResourcesConfig(Section):
    """What a search takes of this machine, and how it shares it out. Devices are the GPUs, or the CPU's cores."""

    devices_per_trial: Literal["auto"] | PositiveInt = "auto"
    """Devices of one job. `auto` is what `distributed` asks for; where it leaves that open, trials run side by side on
    one device each, or on all of them in turn when the first two folds show that this is faster."""
    max_parallel_trials: Literal["auto"] | PositiveInt = "auto"
    """Trials at a time. `auto` is as many as there are devices for, but not above a quarter of `budget.trials`: the
    sampler learns from trials that are told. With 1, `devices_per_trial: 1` and `parallel_folds: off` a search samples
    the same trials whenever it runs."""
    parallel_folds: Literal["auto", "on", "off"] = "auto"
    """Folds of one trial at a time: as devices are free, or only one. `auto` gives devices to other trials first; folds
    that start later need not start at all when the trial is stopped."""

    processes: Literal["per_trial", "per_fold"] = "per_trial"
    """Whether the folds of a trial that run one after another share processes, and so their start, or get new ones. The
    metrics are the same, unless a task of your own keeps something from one fold to the next. Trials never share."""

    @field_validator("parallel_folds", mode="before")
    @classmethod
    def _as_in_yaml_1_1(cls, value: object) -> object:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class StudyConfig(Section):
    """One study."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    """Name, in the storage, in MLflow and on disk."""
    base: str = "config/train.yaml"
    """The configuration this study starts from."""
    config: dict[str, Any] = {}
    """Overrides of the base, with the same keys."""
    objective: ObjectiveConfig | Annotated[list[ObjectiveConfig], Field(min_length=2)]
    constraints: list[ConstraintConfig] = []
    cross_validation: dict[str, Any] = {}
    """Overrides of the base's `cross_validation` block."""
    search_space: Annotated[dict[str, ParameterConfig], Field(min_length=1)]
    """Dotted keys of the configuration, and what to try for each."""
    sampler: SamplerConfig = SamplerConfig()
    stopping: StoppingConfig = StoppingConfig()
    fidelity: FidelityConfig | None = None
    budget: BudgetConfig = BudgetConfig()
    resources: ResourcesConfig = ResourcesConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    storage: str | None = None
    """SQLAlchemy URL of the study database; null is `sqlite:///<output.root>/studies.db`."""
    mlflow: str | None = None
    """MLflow tracking URI, or `off`; null is $MLFLOW_TRACKING_URI or `sqlite:///<output.root>/mlflow.db`."""

    @model_validator(mode="before")
    @classmethod
    def _several_objectives_stop_by_dominance(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("objective"), list):
            return values
        given = values.get("stopping", {})
        stopping = {"epochs": "none", "folds": "dominance", **given} if isinstance(given, dict) else given
        return {**values, "stopping": stopping}

    @property
    def halves(self) -> bool:
        """Whether trials are paused, and the best of them go on."""
        return self.fidelity is not None or self.stopping.folds == "halving"

    @property
    def objectives(self) -> list[ObjectiveConfig]:
        """One or several."""
        return self.objective if isinstance(self.objective, list) else [self.objective]
