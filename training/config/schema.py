"""The schema of one training job. What each key means stands under it and is printed in docs/configuration.md.

Every class refuses unknown keys and does not convert types (``"5"`` is not 5), so a typing mistake is an error and
never a surprise. Torch-free.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from training.config.batch import BatchPlan, plan_batch
from training.config.size import Size

_OWN_TASK = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

CLASSIFICATION_METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "loss")
TASK_METRICS: dict[str, tuple[str, ...]] = {
    "text_classification": CLASSIFICATION_METRICS,
    "image_classification": CLASSIFICATION_METRICS,
    "language_modeling": ("loss", "perplexity", "accuracy"),
    "embedding": ("recall_at_1", "recall_at_5", "recall_at_10", "mrr", "loss"),
}
"""The tasks that come with the project and the metrics each reports; a task of your own is ``module:Class``."""
MEASURES = ("parameters", "inference_ms")
"""Metrics of any task, reported where ``output.measure`` names them."""


def _is_finite(value: Any) -> bool:
    """Whether all numbers in it are."""
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or isfinite(value)


class Section(BaseModel):
    """A block of a YAML file: no unknown keys, no type conversion, no changes after loading."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(Section):
    """Which samples to learn from."""

    name: str = "package_docs"
    """`package_docs`, `api_docs`, `digits`, a .csv, .json, .jsonl or .parquet file, a folder saved by `datasets`, or a
    Hugging Face dataset name."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset, such as `mrpc` of `glue`."""
    source_split: str = "train"
    """Split of a Hugging Face dataset to take; test split and folds are made from it, see `cross_validation`."""
    text_column: str = "text"
    """Column with the text."""
    pair_column: str = "pair"
    """Column with the text that belongs to that of `text_column` (embedding of two texts)."""
    image_column: str = "image"
    """Column with the image."""
    label_column: str = "label"
    """Column with the class: names or integers."""
    group_column: str = "group"
    """Column that says which samples belong together, read only when `cross_validation.grouped` is true."""
    max_samples: PositiveInt | None = None
    """Take a random subset of this many samples (fixed by `cross_validation.seed`); all when null."""
    max_length: Annotated[int, Field(ge=2)] = 64
    """Longest text, in tokens; longer ones are cut."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Loader processes per rank; 0 loads in the rank itself."""


class ModelConfig(Section):
    """Which model to train. Keys not listed here go to the architecture's own configuration."""

    model_config = ConfigDict(extra="allow")

    architecture: str = "bert"
    """A transformers model type (`bert`, `distilbert`, `vit`, ...) built from scratch, or our `mlp` and `cnn`."""
    pretrained: str | None = None
    """Start from these weights instead: a local folder, a hub name, or `package:NAME/inner/path`."""
    tokenizer: str | None = None
    """Tokenizer, in the same three forms; null takes the one of `pretrained`, or trains a WordPiece one on the data."""
    vocab_size: Annotated[int, Field(ge=100)] = 4000
    """Vocabulary of a tokenizer that is trained here (on all texts, but none of their labels)."""

    @model_validator(mode="after")
    def _are_numbers(self) -> Self:
        strange = [key for key, value in (self.model_extra or {}).items() if not _is_finite(value)]
        if strange:
            raise ValueError(f"{strange[0]} is not a finite number")
        return self


class OptimizerConfig(Section):
    """How the weights move."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Weight decay (decoupled in adamw, L2 in sgd); biases and normalization weights have none."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Momentum of sgd."""
    betas: Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Averaging coefficients of adamw."""


class SchedulerConfig(Section):
    """How the learning rate changes over the training."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay to zero after the warmup."""
    warmup_ratio: Fraction = 0.1
    """Part of all optimizer steps during which the rate rises from zero to `optimizer.lr`."""


class TrainingConfig(Section):
    """The loop."""

    engine: Literal["native", "lightning"] = "native"
    """Our own loop, or PyTorch Lightning's Trainer (`pip install 'hpo[lightning]'`; without it, a warning and our own);
    both give the same losses."""
    epochs: Annotated[int, Field(ge=0, le=10**6)] = 3
    """Passes over the training samples; 0 only scores the model as it is (not in a search)."""
    global_batch_size: Annotated[int, Field(ge=1, le=10**9)] = 32
    """Samples per optimizer step, over all ranks and accumulated micro-batches together."""
    accumulate_grad_batches: Literal["auto"] | PositiveInt = "auto"
    """Micro-batches per optimizer step; a rank's micro-batch is global_batch_size / (ranks x this). `auto`: as many as
    `max_micro_batch_size` asks for."""
    max_micro_batch_size: PositiveInt | None = None
    """The largest micro-batch that fits one device, in samples; null sets no limit."""
    precision: Literal["auto", 32, "bf16-mixed", "16-mixed"] = "auto"
    """Number format of matrix products; weights stay float32. `auto` is bf16-mixed on a GPU that has it, else 32;
    `16-mixed` scales the loss, so that small gradients survive."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and compute the rest again in backward: less memory, about a third more time."""
    compile: bool = False
    """Compile the layers with torch.compile; worth it for long trainings on GPUs."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Clip the gradient to this norm; null does not clip."""
    log_every_n_steps: PositiveInt = 10
    """Optimizer steps between two reported training losses (each is also a point where a stop request is heard)."""

    @field_validator("precision", mode="before")
    @classmethod
    def _spelled_as_in_lightning(cls, precision: object) -> object:
        return 32 if precision in ("32", "32-true") else precision

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        batch, parts = self.global_batch_size, self.accumulate_grad_batches
        if parts != "auto" and batch % parts:
            nearest = f"{batch - batch % parts} and {batch - batch % parts + parts}" if batch > parts else f"{parts}"
            raise ValueError(
                f"training.global_batch_size {batch} is not a multiple of accumulate_grad_batches {parts};"
                f" nearest: {nearest}"
            )
        return self


class GradientCacheConfig(Section):
    """Contrastive losses over batches larger than memory (Gao et al. 2021, arXiv 2101.06983)."""

    enabled: Literal["auto"] | bool = "auto"
    """`auto`: when the loss is contrastive and a rank's share of the batch is more than one chunk; true is the same,
    and an error for another loss. When false, micro-batches are each contrasted by themselves: another loss."""
    chunk_size: PositiveInt | None = None
    """Samples encoded at a time, at most; null takes `training.max_micro_batch_size`."""


class LoraConfig(Section):
    """Train small matrices beside frozen weights (Hu et al. 2021, arXiv 2106.09685), with peft."""

    r: PositiveInt = 8
    """Rank of the matrices."""
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """Their product is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout before them."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Names of the layers that get them; `all-linear` is every linear layer but the head."""
    merge: bool = True
    """Save the model with the matrices added to its weights; when false, only the adapter."""


class EmbeddingConfig(Section):
    """How texts (or text and image) become vectors, and how those are compared. For the task `embedding`."""

    encoders: Literal["shared", "two"] = "shared"
    """One encoder for both texts, or one each. CLIP always has two."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """A text's vector: the mean over its tokens, its first or its last token."""
    temperature: Annotated[float, Field(ge=0.01)] = 0.05
    """Cosine similarities are divided by this before the softmax."""
    learn_temperature: bool = False
    """Train the temperature, starting from that value; it stays above 0.01."""
    mrl_dims: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Matryoshka: the loss is the mean over these first dimensions of the vectors (Kusupati et al. 2022); null uses
    all dimensions only."""


class DistributedConfig(Section):
    """How many devices work on one job, and how they talk."""

    strategy: Literal["auto", "ddp", "fsdp", "none"] = "auto"
    """`auto` is ddp when the job gets several devices; `fsdp` shards weights, gradients and optimizer over them
    (FSDP2; `fsdp_native` is the same); `none` is always one process."""
    devices: Literal["auto"] | PositiveInt | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = "auto"
    """`auto` takes all GPUs, or one process on a CPU (in a search: see `resources`); a number; or a list of indices."""
    share_devices: bool = False
    """Take the devices without looking who uses them. When false, no other job of this user on this machine gets them
    meanwhile (CPU cores included, threads_per_rank for each rank), and one that finds too few free waits."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is cuda where a GPU is visible."""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """`auto` is nccl on GPUs and gloo on CPUs."""
    launcher: Literal["fork_server", "torchrun"] = "fork_server"
    """How ranks are started: as forks of a warm process, in a tenth of a second, or by the torchrun command, in
    seconds. Both give the same numbers; where the first cannot work, the second is used."""
    num_nodes: PositiveInt = 1
    """Machines per job, each with `devices`. With several, `hpo train` starts the ranks of this one and prints the
    command that starts those of another; a search uses one."""
    rendezvous: str | None = None
    """Where the machines of a job meet: host:port of the first, as the others reach it; needed for several."""
    sync_batchnorm: bool = False
    """Batch normalization over the samples of all ranks (ddp on GPUs)."""
    find_unused_parameters: bool = True
    """Let ddp meet parameters that get no gradient, as some architectures have (BigBird, XLNet); costs a walk of the
    graph per step."""
    cpu_offload: bool = False
    """fsdp keeps weights and optimizer in host memory between their uses: slow, but fits far more."""
    memory_limit: Literal["auto", "off"] | Size = "auto"
    """Of one device, such as 20GB. A search does not launch what is predicted to take more; `auto` is what a GPU has,
    and no limit on a CPU; `off` does not predict."""
    threads_per_rank: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """CPU threads of a rank; `auto` shares the cores. Small models are steadier, and on a busy machine faster, with 1.
    On a CPU the last bits of a result depend on it."""
    timeout_s: PositiveInt = 600
    """A collective that takes longer than this fails the job; so does saving the trained model, for which ranks
    wait."""

    @field_validator("strategy", mode="before")
    @classmethod
    def _old_name(cls, strategy: object) -> object:
        return "fsdp" if strategy == "fsdp_native" else strategy


class CrossValidationConfig(Section):
    """Which samples train and which are scored. Fixed by `seed`, so identical for every trial."""

    folds: Annotated[int, Field(ge=2, le=100)] = 5
    """Number of folds."""
    repeats: PositiveInt = 1
    """Repeat the whole k-fold split this many times, each with another shuffle."""
    stratified: bool = True
    """Keep the class proportions in every fold."""
    grouped: bool = False
    """Never split samples of one group (`data.group_column`) between training and scoring."""
    test_fraction: Annotated[float, Field(ge=0.01, le=0.5)] = 0.2
    """Held out before the folds are made: neither the search nor the final training learns from it. One part of a whole
    number of parts: 0.5, 0.25, 0.2, 0.1, ..."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the subset, the test split and the folds."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """The fold this job scores. Null trains on everything but the test split and is scored on that."""
    score: Literal["fold", "test"] = "fold"
    """What a job that leaves out a fold is scored on: that fold, or the test split. It trains on the same samples."""
    split_id: str | None = None
    """Recorded with a job: the samples, classes and folds that it must find again. Null takes them as they are."""

    @property
    def num_splits(self) -> int:
        """Jobs of one trial: folds x repeats."""
        return self.folds * self.repeats

    @field_validator("test_fraction")
    @classmethod
    def _is_one_part_of_many(cls, fraction: float) -> float:
        parts = round(1 / fraction)
        if abs(1 / fraction - parts) > 0.02 * parts:
            raise ValueError(f"test_fraction {fraction} is not one part of a whole number; nearest: {1 / parts:.3g}")
        return fraction

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold is not None and self.fold >= self.num_splits:
            raise ValueError(f"fold must be below folds x repeats = {self.num_splits}, not {self.fold}")
        return self


class OutputConfig(Section):
    """What is kept on disk, and where."""

    root: str = "runs"
    """Folder of everything that is written: run directories, databases, the cache of prepared data."""
    save_model: bool = True
    """Save the trained model (folds of a search never do)."""
    keep_checkpoint: bool = False
    """Keep the last checkpoint when the job is complete; while the job runs there are up to two."""
    pause_after: PositiveInt | None = None
    """Leave after this many epochs with a checkpoint to go on from, as searches with `fidelity` do; null trains on. Not
    for a study: its sweep sets it."""
    keep_predictions: bool = True
    """Keep what the last evaluation found for each sample (see `hpo report`): for a classifier the probabilities."""
    measure: list[Literal["parameters", "inference_ms"]] = []
    """Report these with the task's own metrics; a search adds those that its objectives and constraints name.
    `parameters`: how many numbers the model holds, frozen ones and adapters included. `inference_ms`: wall milliseconds
    per scored sample on the job's device, the median over an evaluation's batches; not the same from run to run."""


class JobConfig(Section):
    """One training job, complete: two equal ones give the same result."""

    task: str = "text_classification"
    """`text_classification`, `image_classification`, `language_modeling`, `embedding`, or a class of your own as
    `package.module:Class`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the weights, the order of the samples and dropout."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    training: TrainingConfig = TrainingConfig()
    gradient_cache: GradientCacheConfig = GradientCacheConfig()
    lora: LoraConfig | None = None
    embedding: EmbeddingConfig = EmbeddingConfig()
    distributed: DistributedConfig = DistributedConfig()
    cross_validation: CrossValidationConfig = CrossValidationConfig()
    output: OutputConfig = OutputConfig()

    @field_validator("task")
    @classmethod
    def _task_is_known(cls, task: str) -> str:
        if task not in TASK_METRICS and not _OWN_TASK.fullmatch(task):
            known = ", ".join(TASK_METRICS)
            raise ValueError(f"task '{task}' is not one of {known}; write your own as 'package.module:Class'")
        return task

    def batch_plan(self, world_size: int) -> BatchPlan:
        """How `world_size` ranks share a global batch. Raises ConfigError when they cannot share it exactly."""
        chunk = None if self.gradient_cache.enabled is False else self.gradient_cache.chunk_size
        limits = (self.training.max_micro_batch_size, chunk)
        return plan_batch(
            global_batch_size=self.training.global_batch_size,
            world_size=world_size,
            accumulate=self.training.accumulate_grad_batches,
            limit=min((limit for limit in limits if limit is not None), default=None),
        )

    def with_values(self, changes: dict[str, Any]) -> JobConfig:
        """A validated copy with `changes`, keyed by dotted path: ``{"cross_validation.fold": 2}``."""
        from training.config.layers import assign

        values = self.model_dump()
        for key, value in changes.items():
            assign(values, tuple(key.split(".")), value)
        return JobConfig.model_validate(values)
