"""One pass over the samples to be scored: the metrics of all, and what is kept of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.data import Loaders, to_device
from training.distributed import RunContext, Statistics
from training.errors import TrainingError
from training.measures import Pace, measured
from training.predictions import Predictions, is_row_name
from training.tasks.task import TrainingModule


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a pass came to."""

    metrics: dict[str, float]
    predictions: Predictions | None
    """On rank 0, when they were asked for and the task has any."""


def evaluate(
    model: TrainingModule,
    loaders: Loaders,
    context: RunContext,
    *,
    keeps_rows: bool = False,
    measure: Sequence[str] = (),
) -> Evaluation:
    """The task's metrics over the whole evaluation set, each real sample counted once; with `keeps_rows` also what
    the task keeps of each. `measure` are metrics of any task to add, where the task has none of that name. All ranks.
    """
    model.eval()
    context.share_buffers(model)
    totals: Statistics = {}
    rows: dict[str, list[Tensor]] = defaultdict(list)
    collects, pace = keeps_rows or model.summarizes_rows, Pace(context.device, is_asked="inference_ms" in measure)
    with torch.no_grad(), context.precision.autocast():
        for batch, counts in loaders.evaluation():
            batch = to_device(batch, context.device)
            with pace.of(batch):
                found = model.evaluate(batch)
            if not counts:  # only there so that all ranks work together
                continue
            for name, value in found.items():
                if name not in model.row_names:
                    totals[name] = totals.get(name, 0) + value
                elif collects:
                    rows[name].append(value.detach().cpu())
    every = context.concatenate({name: torch.cat(parts) for name, parts in rows.items()}) if rows else {}
    totals = context.sum(totals) if totals else {}
    if model.summarizes_rows:
        every = {name: value.to(context.device) for name, value in every.items()}  # comparing them is work
    metrics = _checked(model.summarize({**totals, **(every if model.summarizes_rows else {})}), model)
    keeps = keeps_rows and every and context.is_main
    metrics = {**measured(measure, model, pace, context), **metrics}
    return Evaluation(metrics=metrics, predictions=_kept(model, every, loaders, context) if keeps else None)


def _kept(model: TrainingModule, rows: Statistics, loaders: Loaders, context: RunContext) -> Predictions:
    """The rows in the order of the samples. Rank r scored every sample that is the r-th of world_size."""
    kept = {name: _small(value) for name, value in model.predictions(rows).items()}
    of_rank = [loaders.scored[rank :: context.world_size] for rank in range(context.world_size)]
    samples = np.concatenate(of_rank).astype(np.int32)
    for name, values in kept.items():
        if not is_row_name(name) or len(values) != len(samples):
            raise TrainingError(
                f"{type(model).__name__} keeps {len(values)} rows '{name}' of {len(samples)} samples: each needs one,"
                " and a name of letters, digits and underscores other than 'samples'"
            )
    order = np.argsort(samples, kind="stable")
    return Predictions(samples=samples[order], rows={name: values[order] for name, values in kept.items()})


def _small(values: Tensor) -> np.ndarray:
    """As NumPy has it, in 32 bits at most where it is no integer."""
    wide = (torch.float64, torch.bfloat16)
    array: np.ndarray = (values.float() if values.dtype in wide else values).detach().cpu().numpy()
    return array


def _checked(metrics: object, model: TrainingModule) -> dict[str, float]:
    """The metrics as plain numbers. Raises TrainingError when a task of the user's returned something else."""
    try:
        return {str(name): float(value) for name, value in metrics.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"summarize of {type(model).__name__} must return numbers by name, such as {{'loss': 0.5}}, not {metrics!r}"
        ) from error
