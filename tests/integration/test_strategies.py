"""One process, DDP and FSDP are the same training, for every task; and what is saved under one is read by another."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo.trial import JobStatus, TrialResult, run_single_trial
from training.config import JobConfig
from training.run_dir import Event, RunDir

TOLERANCE = 1e-5
"""Largest relative difference of a float32 loss between strategies."""
TOLERANCE_BF16 = 1e-2
"""The same in bf16-mixed, whose products have three digits."""

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {
    "architecture": "bert",
    "vocab_size": 300,
    **SIZES,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
GPT = {
    "architecture": "gpt2",
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
CLIP = {
    "architecture": "clip",
    "vocab_size": 300,
    "projection_dim": 8,
    "text_config": {**SIZES, "max_position_embeddings": 16},
    "vision_config": {**SIZES, "patch_size": 4},
}
TASKS: dict[str, dict[str, Any]] = {
    "text_classification": {"data": {"name": "texts.csv"}, "model": BERT},
    "image_classification": {"data": {"name": "digits", "max_samples": 120}, "model": {"architecture": "vit"} | SIZES},
    "language_modeling": {"data": {"name": "texts.csv"}, "model": GPT},
    "embedding": {"data": {"name": "texts.csv"}, "model": BERT, "embedding": {"learn_temperature": True}},
}
ONE = {"distributed.strategy": "none"}
DDP = {"distributed.strategy": "ddp", "distributed.devices": 2}
FSDP = {"distributed.strategy": "fsdp", "distributed.devices": 2}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with texts of unlike lengths, in two classes, each with a pair."""
    monkeypatch.chdir(tmp_path)
    with Path("texts.csv").open("w", newline="") as file:
        rows = [(f"{'red ' * (i % 9)}{i % 7} apples", i % 2, f"{i % 7} fruits {'blue ' * (i % 5)}") for i in range(120)]
        csv.writer(file).writerows([("text", "label", "pair"), *rows])
    return tmp_path


def job(task: str, **changes: Any) -> JobConfig:
    values: dict[str, Any] = {
        "task": task,
        "optimizer": {"lr": 1e-2},
        "training": {"epochs": 1, "global_batch_size": 16, "log_every_n_steps": 1},
        "cross_validation": {"folds": 3, "fold": 0, "stratified": False},
        "distributed": {"accelerator": "cpu", "threads_per_rank": 1},
        **TASKS[task],
    }
    values["data"] = {**values["data"], "max_length": 12}
    return JobConfig.model_validate(values).with_values(changes)


def run(config: JobConfig, folder: str, **options: bool) -> TrialResult:
    notices: list[str] = []
    result = run_single_trial(
        config, RunDir(Path(folder)), on_record=lambda record: False, on_notice=notices.append, **options
    )
    assert result.status is JobStatus.COMPLETE, (result.failure, notices)
    assert not notices
    return result


def losses(result: TrialResult) -> list[float]:
    return [record.values["loss"] for record in result.run_dir.records() if record.event is not Event.START]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_learns_alike_under_every_strategy(task: str, place: Path) -> None:
    expected = losses(run(job(task, **ONE), "one"))
    assert len(expected) == 4 + 1  # steps, and an evaluation
    for name, strategy in (("ddp", DDP), ("fsdp", FSDP)):
        result = run(job(task, **strategy), name)
        assert result.world_size == 2
        assert losses(result) == pytest.approx(expected, rel=TOLERANCE), name
        assert (result.run_dir.model / "model.safetensors").is_file()


def test_clip_learns_from_texts_and_images_alike_under_every_strategy(place: Path) -> None:
    import datasets
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 255, (120, 8, 8), dtype=np.uint8)
    rows = [{"text": f"number {i % 9}", "image": image.tolist()} for i, image in enumerate(pixels)]
    datasets.Dataset.from_list(
        rows, features=datasets.Features({"text": datasets.Value("string"), "image": datasets.Array2D((8, 8), "uint8")})
    ).save_to_disk("pairs")
    config = job("embedding", **{"data.name": "pairs", "model": CLIP})
    expected = losses(run(config.with_values(ONE), "one"))
    for name, strategy in (("ddp", DDP), ("fsdp", FSDP)):
        assert losses(run(config.with_values(strategy), name)) == pytest.approx(expected, rel=TOLERANCE), name


@pytest.mark.parametrize("strategy", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_a_cached_contrastive_batch_over_two_ranks_is_that_of_one_process(
    strategy: dict[str, Any], place: Path
) -> None:
    expected = losses(run(job("embedding", **ONE), "one"))
    cached = {"gradient_cache.chunk_size": 3, "training.gradient_checkpointing": True}  # chunks of 2: 8 divides by it
    assert job("embedding", **cached).batch_plan(2).num_micro_batches == 4
    assert losses(run(job("embedding", **cached, **strategy), "cached")) == pytest.approx(expected, rel=TOLERANCE)


def test_low_rank_adapters_with_checkpointed_layers_are_the_same_sharded_or_not(place: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    changes = {"lora": {"r": 2, "target_modules": ["c_attn"]}, "training.gradient_checkpointing": True}
    one = run(job("language_modeling", **changes, **ONE), "one")
    sharded = run(job("language_modeling", **changes, **FSDP), "sharded")
    assert losses(sharded) == pytest.approx(losses(one), rel=TOLERANCE)
    merged = AutoModelForCausalLM.from_pretrained(sharded.run_dir.model)
    adapter = (sharded.run_dir.model / "adapter" / "adapter_model.safetensors").stat().st_size
    assert adapter < (sharded.run_dir.model / "model.safetensors").stat().st_size / 4
    base = AutoModelForCausalLM.from_config(merged.config)
    loaded = PeftModel.from_pretrained(base, sharded.run_dir.model / "adapter")
    assert any("lora_A" in name for name, _ in loaded.named_parameters())


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_learns_nearly_the_same_under_every_strategy(precision: str, place: Path) -> None:
    expected = losses(run(job("language_modeling", **ONE), "one"))
    for name, strategy in (("mixed", ONE), ("ddp", DDP), ("fsdp", FSDP)):
        found = losses(run(job("language_modeling", **{"training.precision": precision}, **strategy), name))
        assert found == pytest.approx(expected, rel=TOLERANCE_BF16), name
        assert found != expected


@pytest.mark.parametrize(("before", "after"), [(FSDP, ONE), (FSDP, DDP), (DDP, FSDP), (ONE, FSDP)])
def test_a_checkpoint_of_one_strategy_resumes_under_another(
    before: dict[str, Any], after: dict[str, Any], place: Path
) -> None:
    config = job("text_classification", **{"training.epochs": 2, "output.keep_checkpoint": True})
    whole = run(config.with_values(ONE), "whole")
    cut = RunDir(Path("cut"))
    notices: list[str] = []
    stopped = run_single_trial(
        config.with_values(before),
        cut,
        on_record=lambda record: record.event is Event.EVALUATE,
        on_notice=notices.append,
    )
    assert stopped.status is JobStatus.STOPPED
    assert cut.last_epoch() == 1
    resumed = run(config.with_values(after), "cut", resume=True)
    assert losses(resumed) == pytest.approx(losses(whole), rel=TOLERANCE)
    first = torch.load(whole.run_dir.checkpoint(2), weights_only=True)["model"]
    assert first.keys() == {name for name in first}


def test_half_a_sharded_checkpoint_is_not_taken_for_one(place: Path) -> None:
    run_dir = RunDir(Path("run"))
    (run_dir.checkpoints / ".epoch_0002.tmp").mkdir(parents=True)
    assert run_dir.last_epoch() == 0
    run_dir.prepare(job("embedding"), resume=True)
    assert list(run_dir.checkpoints.iterdir()) == []
