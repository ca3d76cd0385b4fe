"""config/examples: those for a CPU run as they are, those for GPUs with smaller models on two ranks of a CPU."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from hpo.definition import load_job
from tests.integration.conftest import CHECKOUT, run_hpo
from tests.integration.test_strategies import train
from training.config import JobConfig
from training.run_dir import RunDir

EXAMPLES = CHECKOUT / "config" / "examples"
TEXTS = ["data.name=texts.csv", "data.max_length=12", "model.pretrained=null", "model.vocab_size=200"]
BERT = [*TEXTS, "model.architecture=bert", "model.hidden_size=16", "model.num_hidden_layers=2"]
BERT += ["model.num_attention_heads=2", "model.intermediate_size=32"]
GPT = [*TEXTS, "model.architecture=gpt2", "model.n_embd=16", "model.n_layer=2", "model.n_head=2"]
QWEN = [*TEXTS, "model.architecture=qwen2", "model.hidden_size=16", "model.num_hidden_layers=2"]
QWEN += ["model.num_attention_heads=2", "model.num_key_value_heads=2", "model.intermediate_size=32"]
SMALLER = {
    "gpu_1.yaml": BERT,
    "gpu_2_kaggle_t4.yaml": BERT,
    "gpu_4_ddp.yaml": GPT,
    "gpu_8_fsdp_lora.yaml": QWEN,
    "embedding_gradient_cache.yaml": [*BERT, "training.global_batch_size=64", "gradient_cache.chunk_size=8"],
    "lightning.yaml": BERT,
    "train_ddp.json": GPT,
    "two_machines.yaml": [*GPT, "training.global_batch_size=64"],
}
"""What makes each example small; keys that it has itself are overridden."""
AS_THEY_ARE = ("cpu_1rank.yaml", "cpu_2ranks.yaml", "clip.yaml")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 240 short texts in two classes, each with a pair."""
    monkeypatch.chdir(tmp_path)
    with Path("texts.csv").open("w", newline="") as file:
        rows = [(f"{'red ' * (i % 9)}{i} apples", i % 2, f"{i} fruits {'blue ' * (i % 5)}") for i in range(240)]
        csv.writer(file).writerows([("text", "label", "pair"), *rows])
    return tmp_path


def small(name: str) -> JobConfig:
    """The example with a tiny model and two ranks (one, where it asks for one process) on a CPU."""
    on_a_cpu = ["distributed.accelerator=cpu", "distributed.num_nodes=1", "distributed.threads_per_rank=1"]
    if load_job(EXAMPLES / name, environment="local").distributed.strategy != "none":
        on_a_cpu += ["distributed.devices=2"]
    quick = ["data.max_samples=null", "training.epochs=1", "training.log_every_n_steps=1"]
    return load_job(EXAMPLES / name, environment="local", settings=[*on_a_cpu, *quick, *SMALLER[name]])


def as_it_is(name: str) -> JobConfig:
    config = load_job(EXAMPLES / name, environment="local")
    # What `auto` becomes where there is no GPU: one process.
    return config.with_values({"distributed.strategy": "none"}) if config.distributed.devices == "auto" else config


def test_every_example_is_tried() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == {*SMALLER, *AS_THEY_ARE}


def test_the_smallest_example_runs_from_the_command_line(place: Path) -> None:
    done = run_hpo("train", "--config", str(EXAMPLES / "cpu_1rank.yaml"), "--json")
    trained = json.loads(done.stdout)
    assert trained["world_size"] == 1
    assert trained["metrics"]["accuracy"] > 0.9


@pytest.mark.nightly
def test_all_examples_train_on_a_cpu_the_large_ones_with_smaller_models(place: Path) -> None:
    jobs = {name: small(name) for name in SMALLER} | {name: as_it_is(name) for name in AS_THEY_ARE}
    ranks = {name: 1 if config.distributed.strategy == "none" else 2 for name, config in jobs.items()}
    assert [name for name, num in ranks.items() if num == 1] == ["gpu_1.yaml", "cpu_1rank.yaml", "clip.yaml"]
    parts = {name: config.batch_plan(ranks[name]).num_micro_batches for name, config in jobs.items()}
    assert parts["embedding_gradient_cache.yaml"] == 4
    assert parts["gpu_8_fsdp_lora.yaml"] == 16

    for name, losses in train(jobs).items():
        outcome, findings = RunDir(Path(name)).load_result(), RunDir(Path(name)).load_findings()
        assert outcome is not None
        assert outcome.world_size == ranks[name], name
        assert losses and all(math.isfinite(loss) for loss in losses), name
        assert RunDir(Path(name)).model.is_dir(), name
        assert not [finding for finding in findings if "has no effect" in finding.message], name
        sharded = any("few to shard over 2 ranks" in finding.message for finding in findings)
        assert sharded == (name == "gpu_8_fsdp_lora.yaml")
    digits = [RunDir(Path(name)).load_result() for name in ("cpu_1rank.yaml", "cpu_2ranks.yaml")]
    assert all(outcome and outcome.metrics["accuracy"] > 0.9 for outcome in digits)
