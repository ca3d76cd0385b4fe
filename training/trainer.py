"""The training loop, and only the loop. It knows no command line, environment, process group, study or print.

An optimizer step sees ``global_batch_size`` samples, whatever the number of ranks and micro-batches that share them,
and each draws its randomness from (seed, epoch, rank, step): the same configuration means the same training anywhere,
up to rounding and to what dropout draws, which differs from rank to rank.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from training.checkpoint import Progress, TrainingState
from training.config import JobConfig
from training.data import Batch, Loaders
from training.distributed import RunContext
from training.errors import DataError, NonFiniteLossError
from training.evaluation import Evaluation, evaluate
from training.gradients import backward
from training.optimizer import build_optimizer, build_scheduler
from training.predictions import Predictions
from training.reporter import Reporter
from training.run_dir import Event
from training.seeding import seed_everything, seed_step
from training.tasks.task import TrainingModule


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """How a training ended: the metrics of its last evaluation, and how far it came."""

    metrics: dict[str, float]
    stopped: bool
    epochs: int
    steps: int
    predictions: Predictions | None = field(default=None, repr=False)
    """What that evaluation found for each sample: on rank 0, when it is to be kept and the training was not stopped."""


def run_training(
    model: TrainingModule,
    loaders: Loaders,
    config: JobConfig,
    context: RunContext,
    reporter: Reporter,
    callbacks: Sequence[Any] = (),
) -> TrainingResult:
    """Train `model` (on the CPU; it is moved and wrapped in place) and evaluate it after every epoch.

    Resumes from the reporter's newest checkpoint. Called by all ranks; all leave at the same step.
    `callbacks` are those of the lightning engine. Raises NonFiniteLossError, on every rank at the same step.
    """
    training = Training(model, loaders, config, context, reporter)
    training.resume()
    if config.training.epochs == 0:
        training.score()
    elif config.training.engine == "lightning" and lightning_is_installed():
        from training.lightning_engine import fit  # seconds, which the native loop need not pay

        fit(training, callbacks)
    else:
        fit_natively(training)
    at = training.at
    return TrainingResult(
        metrics=at.metrics,
        stopped=training.stopped,
        epochs=at.epoch,
        steps=at.step,
        predictions=training.last_predictions(),
    )


def lightning_is_installed() -> bool:
    """Whether to use it; the guardrails tell when not. A broken installation counts, so that its own error is seen."""
    return importlib.util.find_spec("lightning") is not None


def fit_natively(training: Training) -> None:
    """From where `training` stands to its last epoch, or to a stop request. All ranks."""
    while training.at.epoch < training.config.training.epochs and not training.stopped:
        training.start_epoch()
        for micro_batches in training.steps():
            training.optimize(micro_batches)
            training.after_step()
            if training.stopped:
                return
        training.finish_epoch()


class Training:
    """The moving parts of one training, how far it is, and what an epoch consists of. Engines only call in order."""

    def __init__(
        self, model: TrainingModule, loaders: Loaders, config: JobConfig, context: RunContext, reporter: Reporter
    ) -> None:
        self.model, self.loaders, self.config = model, loaders, config
        self.context, self.reporter = context, reporter
        self.parallel = context.wrap(model)
        self.optimizer = build_optimizer(model, config.optimizer)
        total_steps = config.training.epochs * loaders.steps_per_epoch
        self.scheduler = build_scheduler(self.optimizer, config.scheduler, total_steps=total_steps)
        self.scaler = context.precision.scaler()
        self.state = TrainingState(model=model, optimizer=self.optimizer, scheduler=self.scheduler, scaler=self.scaler)
        self.parameters = list(model.parameters())  # finding them in the modules at every step costs more than clipping
        self.at, self.lr, self.stopped = Progress(), 0.0, False
        self.loss_sum, self.num_losses = torch.zeros((), device=context.device), 0  # since the last report
        self.kept: Evaluation | None = None

    def resume(self) -> None:
        """Take up the newest checkpoint, if any, and say where the training starts. Raises DataError."""
        self.at = self.reporter.load(self.state) or self.at
        steps_per_epoch = self.loaders.steps_per_epoch
        if self.at.epoch_step and self.at.steps_per_epoch != steps_per_epoch:
            raise DataError(
                f"the checkpoint was taken within an epoch of {self.at.steps_per_epoch} steps, which now has"
                f" {steps_per_epoch}: go on with the same data and training.global_batch_size, or train anew"
            )
        self.at.steps_per_epoch = steps_per_epoch
        self.report(
            Event.START,
            world_size=self.context.world_size,
            epochs=self.config.training.epochs,
            steps_per_epoch=self.loaders.steps_per_epoch,
            train_samples=self.loaders.train_samples,
        )

    def start_epoch(self) -> None:
        """Draw the epoch's order of samples, less those that were seen before a resume within it."""
        seed_everything(self.config.seed, self.at.epoch, self.context.rank)
        self.loaders.set_epoch(self.at.epoch, steps_done=self.at.epoch_step)
        self.model.train()

    def steps(self) -> Iterator[list[Batch]]:
        """The micro-batches of each optimizer step; what does not fill a step waits for another epoch's shuffle.

        A step that a checkpoint may start from is seeded by itself: each would cost a small model a tenth of its speed.
        """
        batches = iter(self.loaders.train)
        for step in range(self.at.epoch_step, self.loaders.steps_per_epoch):
            if self.at.step % self.config.training.log_every_n_steps == 0:
                seed_step(self.config.seed, self.at.epoch, self.context.rank, step)
            yield list(islice(batches, self.loaders.micro_batches_per_step))

    def optimize(self, micro_batches: list[Batch]) -> None:
        """One optimizer step."""
        self.loss_sum += backward(self.model, self.parallel, micro_batches, self.context, self.scaler.scale)
        self.num_losses += 1
        if self.config.training.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.config.training.max_grad_norm)
        self.lr = float(self.scheduler.get_last_lr()[0])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=not self.context.keeps_gradients)
        self.at.step += 1
        self.at.epoch_step += 1

    def after_step(self) -> None:
        """Now and then report the loss, hear whether to stop, and save, if somebody asks or the epoch is long."""
        if self.at.step % self.config.training.log_every_n_steps == 0:
            self.report_loss()
            self.hear_stop()
            self.reporter.save(self.state, self.at)

    def finish_epoch(self) -> None:
        """Evaluate, report, save, and hear whether to stop."""
        if self.num_losses:
            self.report_loss()
        self.at.epoch, self.at.epoch_step = self.at.epoch + 1, 0
        self.score()
        output, is_last = self.config.output, self.at.epoch == self.config.training.epochs
        self.stopped = is_pause = self.at.epoch == output.pause_after and not is_last
        if not is_pause and not is_last:
            self.hear_stop()  # before it saves: who asks may want a checkpoint
        self.reporter.save(self.state, self.at, is_needed=is_pause or (is_last and output.keep_checkpoint))

    def score(self) -> None:
        """Evaluate and report."""
        is_last = self.config.output.keep_predictions and self.at.epoch == self.config.training.epochs
        measure = self.config.output.measure
        found = evaluate(self.model, self.loaders, self.context, keeps_rows=is_last, measure=measure)
        self.at.metrics, self.kept = found.metrics, found if is_last else None
        self.report(Event.EVALUATE, **self.at.metrics)

    def last_predictions(self) -> Predictions | None:
        """Of the last evaluation, unless the training was stopped. All ranks; only rank 0 gets them."""
        if self.stopped or not self.config.output.keep_predictions:
            return None
        if self.kept is None:  # resumed after its last epoch, or ended early by a callback: the model is still the same
            self.kept = evaluate(self.model, self.loaders, self.context, keeps_rows=True)
        return self.kept.predictions

    def report_loss(self) -> None:
        """Report the mean loss since the last time, over all ranks."""
        total = self.context.sum({"loss": self.loss_sum})["loss"].item()
        count = self.num_losses * self.context.world_size
        self.loss_sum.zero_()
        self.num_losses = 0
        self.report(Event.TRAIN, loss=total / count, lr=self.lr)

    def hear_stop(self) -> None:
        """Rank 0 looks, every rank hears."""
        self.stopped = self.context.broadcast(self.reporter.stop_requested())

    def report(self, event: Event, **values: float) -> None:
        """Report at the present step. A loss that is not finite ends the training, on all ranks alike."""
        if not math.isfinite(values.get("loss", 0.0)):
            raise NonFiniteLossError(
                f"the loss became {values['loss']} by step {self.at.step}; lower optimizer.lr or training.max_grad_norm"
            )
        self.reporter.report(event, step=self.at.step, epoch=self.at.epoch, values=values)
