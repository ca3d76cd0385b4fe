"""The training loop, and only the loop. It knows no command line, environment, process group, study or print.

An optimizer step sees ``global_batch_size`` samples, whatever the number of ranks and micro-batches that share them,
and an epoch draws its randomness from (seed, epoch, rank): the same configuration means the same training anywhere, up
to rounding and to what dropout draws, which differs from rank to rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from training.config import JobConfig
from training.data import Batch, Loaders
from training.distributed import RunContext
from training.errors import NonFiniteLossError, TrainingError
from training.optimizer import build_optimizer, build_scheduler
from training.reporter import Reporter
from training.run_dir import Event
from training.seeding import seed_everything
from training.tasks.task import TrainingModule


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """How a training ended: the metrics of its last evaluation, and how far it came."""

    metrics: dict[str, float]
    stopped: bool
    epochs: int
    steps: int


def run_training(
    model: TrainingModule, loaders: Loaders, config: JobConfig, context: RunContext, reporter: Reporter
) -> TrainingResult:
    """Train `model` (already on ``context.device``) and evaluate it after every epoch.

    Resumes from the reporter's newest checkpoint. Called by all ranks; all leave at the same step.
    Raises NonFiniteLossError, on every rank at the same step.
    """
    trainer = _Trainer(model, loaders, config, context, reporter)
    trainer.resume()
    while trainer.epoch < config.training.epochs and not trainer.stopped:
        trainer.run_epoch()
    return TrainingResult(metrics=trainer.metrics, stopped=trainer.stopped, epochs=trainer.epoch, steps=trainer.step)


def evaluate(model: TrainingModule, loaders: Loaders, context: RunContext) -> dict[str, float]:
    """The task's metrics over the whole evaluation set, each real sample counted once. All ranks."""
    model.eval()
    context.share_buffers(model)
    totals: dict[str, Tensor] = {}
    with torch.inference_mode():
        for batch in loaders.evaluate:
            for name, value in model.evaluate(_to(batch, context.device)).items():
                totals[name] = totals[name] + value if name in totals else value
    return _checked(model.summarize(context.sum(totals)), model)


def _checked(metrics: object, model: TrainingModule) -> dict[str, float]:
    """The metrics as plain numbers. Raises TrainingError when a task of the user's returned something else."""
    try:
        return {str(name): float(value) for name, value in metrics.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"summarize of {type(model).__name__} must return numbers by name, such as {{'loss': 0.5}}, not {metrics!r}"
        ) from error


class _Trainer:
    """The moving parts of one training, and how far it is."""

    def __init__(
        self, model: TrainingModule, loaders: Loaders, config: JobConfig, context: RunContext, reporter: Reporter
    ) -> None:
        self.model, self.loaders, self.config = model, loaders, config
        self.context, self.reporter = context, reporter
        self.parallel = context.wrap(model)
        self.optimizer = build_optimizer(model, config.optimizer)
        total_steps = config.training.epochs * loaders.steps_per_epoch
        self.scheduler = build_scheduler(self.optimizer, config.scheduler, total_steps=total_steps)
        self.parts: dict[str, Any] = {"model": model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.epoch, self.step, self.lr, self.stopped = 0, 0, 0.0, False
        self.metrics: dict[str, float] = {}

    def resume(self) -> None:
        """Take up the newest checkpoint, if any, and say where the training starts."""
        state = self.reporter.load()
        if state is not None:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.epoch, self.step, self.metrics = state["epoch"], state["step"], state["metrics"]
        self.report(
            Event.START,
            world_size=self.context.world_size,
            epochs=self.config.training.epochs,
            steps_per_epoch=self.loaders.steps_per_epoch,
            train_samples=self.loaders.train_samples,
        )

    def run_epoch(self) -> None:
        """Every optimizer step of one epoch, then evaluation and checkpoint; or leave early when asked to."""
        seed_everything(self.config.seed, self.epoch, self.context.rank)
        self.loaders.set_epoch(self.epoch)
        self.model.train()
        running = torch.zeros(2, device=self.context.device)  # sum of losses, number of micro-batches
        for micro_batches in self.steps():
            self.optimize(micro_batches, running)
            if self.step % self.config.training.log_every_n_steps == 0:
                self.report_loss(running)
                if self.stop_heard():
                    return
        if self.step % self.config.training.log_every_n_steps:
            self.report_loss(running)
        self.epoch += 1
        self.metrics = evaluate(self.model, self.loaders, self.context)
        self.report(Event.EVALUATE, **self.metrics)
        self.save()
        self.stopped = self.epoch < self.config.training.epochs and self.stop_heard()

    def steps(self) -> Iterator[list[Batch]]:
        """The micro-batches of each optimizer step; what does not fill a step waits for another epoch's shuffle."""
        batches = iter(self.loaders.train)
        for _ in range(self.loaders.steps_per_epoch):
            yield list(islice(batches, self.loaders.micro_batches_per_step))

    def optimize(self, micro_batches: list[Batch], running: Tensor) -> None:
        """One optimizer step. Micro-batches are equal in size, so the mean of their means is the batch's mean."""
        last = len(micro_batches) - 1
        for index, batch in enumerate(micro_batches):
            if index < last:
                with self.context.no_sync(self.parallel):
                    self.backward(batch, len(micro_batches), running)
            else:
                self.backward(batch, len(micro_batches), running)
        if self.config.training.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.max_grad_norm)
        self.lr = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def backward(self, batch: Batch, parts: int, running: Tensor) -> None:
        """Forward and backward of one micro-batch; its loss is added to `running`."""
        loss = self.parallel(_to(batch, self.context.device))
        (loss / parts).backward()
        running[0] += loss.detach()
        running[1] += 1

    def report_loss(self, running: Tensor) -> None:
        """Report the mean loss since the last time, over all ranks."""
        total, count = self.context.sum({"loss": running})["loss"].tolist()
        running.zero_()
        self.report(Event.TRAIN, loss=total / count, lr=self.lr)

    def stop_heard(self) -> bool:
        """Rank 0 looks, every rank hears."""
        self.stopped = self.context.broadcast(self.reporter.stop_requested())
        return self.stopped

    def report(self, event: Event, **values: float) -> None:
        """Report at the present step. A loss that is not finite ends the training, on all ranks alike."""
        if not math.isfinite(values.get("loss", 0.0)):
            raise NonFiniteLossError(
                f"the loss became {values['loss']} by step {self.step}; lower optimizer.lr or training.max_grad_norm"
            )
        self.reporter.report(event, step=self.step, epoch=self.epoch, values=values)

    def save(self) -> None:
        """Keep the whole state (rank 0 writes; the others need not wait, they meet again at the next step)."""
        if self.context.is_main:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            progress = {"epoch": self.epoch, "step": self.step, "metrics": self.metrics}
            self.reporter.save(self.epoch, state | progress)


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
