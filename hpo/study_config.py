"""The schema of a study file. What each key means stands under it and is printed in docs/configuration.md."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from training.config import Section

Scalar = None | bool | int | float | str
SafeInt = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""Optuna keeps values as floats, which are exact up to here."""
PositiveInt = Annotated[int, Field(ge=1)]
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
    """What a trial is judged by: the mean of this metric over the folds."""

    metric: str
    """A metric of the task, such as `accuracy` or `loss`."""
    direction: Literal["maximize", "minimize"]
    """Which way is better."""


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

    name: Literal["tpe", "random", "gp", "cmaes", "qmc", "grid"] = "tpe"
    """Optuna's sampler; `grid` needs choices, ints, or floats with a step."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The same seed samples the same trials, also when a sweep is continued."""
    startup_trials: Annotated[int, Field(ge=1)] = 10
    """Random trials before tpe, gp or cmaes begin to model."""
    max_history: Annotated[int, Field(ge=100)] | None = None
    """Let tpe model the best 25 trials and the newest others, this many in all; null is all, slower by each trial."""

    @model_validator(mode="after")
    def _history_is_of_tpe(self) -> Self:
        if self.max_history is not None and self.name != "tpe":
            raise ValueError(f"max_history is for tpe; {self.name} has none, leave it out")
        if self.max_history is not None and self.max_history < self.startup_trials:
            raise ValueError(f"max_history: {self.max_history} is below startup_trials: tpe would never model")
        return self


class StoppingConfig(Section):
    """When a trial that is losing ends early."""

    epochs: Literal["median", "none"] = "median"
    """`median` stops a fold whose best epoch so far is worse than the median of the other trials' up to this epoch."""
    startup_trials: Annotated[int, Field(ge=1)] = 5
    """Never stop before this many other trials came as far."""


class BudgetConfig(Section):
    """When the sweep ends."""

    trials: Annotated[int, Field(ge=1)] = 20
    """Finished trials in the study, earlier runs of the command counted."""
    timeout: Duration | None = None
    """Start no new trial after this time, such as `30m` or `2h`."""


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
    objective: ObjectiveConfig
    cross_validation: dict[str, Any] = {}
    """Overrides of the base's `cross_validation` block."""
    search_space: Annotated[dict[str, ParameterConfig], Field(min_length=1)]
    """Dotted keys of the configuration, and what to try for each."""
    sampler: SamplerConfig = SamplerConfig()
    stopping: StoppingConfig = StoppingConfig()
    budget: BudgetConfig = BudgetConfig()
    resources: ResourcesConfig = ResourcesConfig()
    storage: str | None = None
    """SQLAlchemy URL of the study database; null is `sqlite:///<output.root>/studies.db`."""
    mlflow: str | None = None
    """MLflow tracking URI, or `off`; null is $MLFLOW_TRACKING_URI or `sqlite:///<output.root>/mlflow.db`."""
