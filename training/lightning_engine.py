"""The training loop driven by PyTorch Lightning: its Trainer counts epochs and steps, ours does each step.

The only module that imports lightning, which costs seconds: import it where ``training.engine`` asks for it. Lightning
brings its loop, hooks, loggers and profilers. The optimizer step (accumulation, clipping, precision, schedule),
the wrapped model, evaluation, reports and checkpoints are those of the native loop, so both engines train alike to the
bit and a checkpoint of one continues under the other. Process group and device belong to RunContext.

Lightning's hooks inside a step (``on_before_optimizer_step``, ``on_after_backward``, ...) are therefore not called.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from training.data import Batch
from training.distributed import RunContext
from training.trainer import Training

T = TypeVar("T")


def fit(training: Training, callbacks: Sequence[Callback] = ()) -> None:
    """Train from where `training` stands to its last epoch, or to a stop request. All ranks; all leave at one step."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips, and which devices there are
    settings = training.config.training
    module = Module(training)
    trainer = Trainer(
        strategy=RunContextStrategy(training.context),
        accelerator="gpu" if training.context.device.type == "cuda" else "cpu",
        devices=1,
        plugins=[LightningEnvironment()],  # or Lightning looks for Slurm, and for MPI by importing it
        max_epochs=settings.epochs,
        log_every_n_steps=settings.log_every_n_steps,
        callbacks=[Progress(training, module), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    for count in ("ready", "started", "processed", "completed"):
        setattr(trainer.fit_loop.epoch_progress.current, count, training.at.epoch)
    trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = training.at.step
    # A rank must die of SIGTERM. Lightning would survive it, enter a collective in the handler (which hangs when only
    # one rank was hit), and broadcast before every step whether it came. No public switch for either.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    training.model.train()
    with warnings.catch_warnings():
        # https://github.com/Lightning-AI/pytorch-lightning: _pytree.py makes a LeafSpec, which torch 2.13 deprecates
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        trainer.fit(module, Steps(training))


class Module(LightningModule):
    """A batch of Lightning's is one optimizer step: the list of its micro-batches."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = training.parallel
        self.native = training

    def configure_optimizers(self) -> Optimizer:
        """The optimizer that the native loop built."""
        return self.native.optimizer

    def transfer_batch_to_device(self, batch: list[Batch], device: torch.device, dataloader_idx: int) -> list[Batch]:
        """Leave them: the step takes them to the device one at a time."""
        return batch

    def training_step(self, batch: list[Batch], batch_idx: int) -> None:
        """One whole optimizer step, within Lightning's own so that its ``global_step`` counts it."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step(closure=partial(self.native.optimize, batch))


class Steps:
    """The training loader as Lightning sees it. A generator: nothing is drawn before the epoch has seeded itself."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __len__(self) -> int:
        return self.training.loaders.steps_per_epoch

    def __iter__(self) -> Iterator[list[Batch]]:
        yield from self.training.steps()


class Progress(Callback):
    """Reports, checkpoints and stop requests at the very places where the native loop has them."""

    def __init__(self, training: Training, module: Module) -> None:
        self.native, self.module = training, module

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Seed the epoch; Lightning draws no random number between this and the first batch."""
        self.native.start_epoch()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Report the loss, and hear a stop request: rank 0 asks, and every rank sets its ``should_stop``."""
        self.native.after_step()
        trainer.should_stop |= self.native.stopped

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Evaluate and save, unless the epoch was cut short. Lightning comes here in both cases."""
        at = self.native.at
        if self.native.stopped or at.step < (at.epoch + 1) * self.native.loaders.steps_per_epoch:
            return
        self.native.finish_epoch()
        # For other callbacks. Equal on all ranks, so "max" changes nothing, where a mean would round.
        self.module.log_dict(self.native.at.metrics, reduce_fx="max", sync_dist=True)
        trainer.should_stop |= self.native.stopped


class RunContextStrategy(SingleDeviceStrategy):
    """One rank as RunContext made it: model wrapped, device chosen, process group open. Lightning adds nothing."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(device=context.device)
        self.context = context
        self.global_rank, self.world_size = context.rank, context.world_size
        self.local_rank = context.device.index or 0

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.context.is_main

    @property
    def is_distributed(self) -> bool:
        """Whether logged values are to be reduced over ranks."""
        return self.world_size > 1

    def setup(self, trainer: Trainer) -> None:
        """Take the optimizer. Moving it or the model would undo what the context did (offloaded weights, shards)."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.setup_optimizers(trainer)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], *_: Any, **__: Any) -> Any:
        """The closure does all of the step: Lightning's GradScaler knows no fused optimizer."""
        return closure()

    def barrier(self, name: str | None = None) -> None:
        """Wait for every rank."""
        self.context.sum({"barrier": torch.zeros(1)})

    def broadcast(self, obj: T, src: int = 0) -> T:
        """`obj` of rank `src`, on every rank."""
        objects = [obj]
        if self.world_size > 1:
            dist.broadcast_object_list(objects, src)
        return objects[0]

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """`tensor` reduced over the ranks by "mean", "sum", "max" or "min"; anything else as it is."""
        if self.world_size == 1 or not isinstance(tensor, Tensor):
            return tensor
        mean = reduce_op in ("mean", "avg")
        total = tensor.to(self.context.device, copy=True)
        dist.all_reduce(total, dist.ReduceOp.SUM if mean else getattr(dist.ReduceOp, str(reduce_op).upper()))
        return (total / self.world_size if mean else total).to(tensor.device)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """(world_size, ...): the tensors of all ranks."""
        if self.world_size == 1:
            return tensor
        mine = tensor.to(self.context.device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine)
        return torch.stack(parts).to(tensor.device)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all ranks say so, or any."""
        votes = self.context.sum({"votes": torch.tensor(float(decision))})["votes"].item()
        return votes == self.world_size if all else votes > 0

    def teardown(self) -> None:
        """Leave the model where it is."""
        assert self.accelerator is not None
        self.accelerator.teardown()
