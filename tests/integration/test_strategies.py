"""One process, DDP and FSDP are the same training, for every task; and what is saved under one is read by another."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.checksums import is_whole
from training.config import TASK_METRICS, JobConfig
from training.job_processes import JOB_ID
from training.predictions import load_predictions, score
from training.run_dir import Event, RunDir

TOLERANCE = 1e-5
"""Largest relative difference of a float32 loss between strategies."""
TOLERANCE_16_BITS = 1e-2
"""The same in mixed precision, whose products have three digits."""

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
    "image_classification": {
        "data": {"name": "digits", "max_samples": 120},
        "model": {"architecture": "vit", "patch_size": 4} | SIZES,
    },
    "language_modeling": {"data": {"name": "texts.csv"}, "model": GPT},
    "embedding": {"data": {"name": "texts.csv"}, "model": BERT, "embedding": {"learn_temperature": True}},
}
ONE = {"distributed.strategy": "none"}
DDP = {"distributed.strategy": "ddp", "distributed.devices": 2}
FSDP = {"distributed.strategy": "fsdp", "distributed.devices": 2}
STRATEGIES = {"one": ONE, "ddp": DDP, "fsdp": FSDP}
TWO_RANKS = ["-m", "training.torchrun", "--standalone", "--nproc-per-node", "2"]
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with texts of unlike lengths, in two classes, each with a pair."""
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts.csv")
    return tmp_path


def write_texts(path: Path) -> None:
    with path.open("w", newline="") as file:
        rows = [(f"{'red ' * (i % 9)}{i % 7} apples", i % 2, f"{i % 7} fruits {'blue ' * (i % 5)}") for i in range(120)]
        csv.writer(file).writerows([("text", "label", "pair"), *rows])


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


def train(jobs: dict[str, JobConfig], *, resume: bool = False) -> dict[str, list[float]]:
    """The losses of each job: those of one process in one process, the others in two ranks."""
    for folder, config in jobs.items():
        RunDir(Path(folder)).prepare(config, resume=resume)
    alone = [folder for folder, config in jobs.items() if config.distributed.strategy == "none"]
    together = [folder for folder in jobs if folder not in alone]
    for folders, launcher in ((alone, []), (together, TWO_RANKS)):
        if folders:
            start([*launcher, "many_jobs.py", *folders])
    return {folder: losses(RunDir(Path(folder))) for folder in jobs}


def start(arguments: list[str]) -> None:
    """Run a script of this folder, alone or in ranks."""
    here = Path(__file__).parent
    command = [str(here / each) if each.endswith(".py") else each for each in arguments]
    environment = {**os.environ, "PYTHONPATH": f"{CHECKOUT}:.", "OMP_NUM_THREADS": "1", JOB_ID: "strategies"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]


def losses(run_dir: RunDir) -> list[float]:
    return [record.values["loss"] for record in run_dir.records() if record.event is not Event.START]


def assert_close(found: dict[str, list[float]], expected: list[float], tolerance: float = TOLERANCE) -> None:
    for name, values in found.items():
        assert values == pytest.approx(expected, rel=tolerance), name


def under_all(config: JobConfig, name: str) -> dict[str, JobConfig]:
    return {f"{name}_{strategy}": config.with_values(change) for strategy, change in STRATEGIES.items()}


def test_every_task_learns_alike_under_every_strategy(place: Path) -> None:
    jobs = {task: under_all(job(task, **{"output.measure": ["parameters"]}), task) for task in TASKS}
    found = train({name: config for each in jobs.values() for name, config in each.items()})
    for task, variants in jobs.items():
        expected = found[f"{task}_one"]
        assert len(expected) == 4 + 1  # steps, and an evaluation
        assert_close({name: found[name] for name in variants}, expected)
        for name in variants:
            outcome = RunDir(Path(name)).load_result()
            assert outcome is not None
            assert outcome.world_size == (1 if name.endswith("one") else 2)
            assert (RunDir(Path(name)).model / "model.safetensors").is_file()
            assert outcome.metrics["parameters"] == size_of_model(RunDir(Path(f"{task}_one")))
            assert_kept_alike(RunDir(Path(name)), RunDir(Path(f"{task}_one")), TASK_METRICS[task])


def size_of_model(alone: RunDir) -> float:
    outcome = alone.load_result()
    assert outcome is not None
    return outcome.metrics["parameters"]


def assert_kept_alike(run_dir: RunDir, alone: RunDir, metrics: tuple[str, ...]) -> None:
    """Predictions are in the order of the samples, whoever scored them, and give the metrics that were reported."""
    kept, expected, outcome = (
        load_predictions(run_dir.predictions),
        load_predictions(alone.predictions),
        run_dir.load_result(),
    )
    assert kept and expected and outcome
    assert kept.samples.tolist() == expected.samples.tolist() == sorted(set(expected.samples.tolist()))
    assert kept.rows.keys() == expected.rows.keys()
    for name, rows in expected.rows.items():
        np.testing.assert_allclose(kept.rows[name], rows, rtol=2e-3, atol=2e-3, err_msg=name)
    for metric in metrics:
        assert score(kept.rows, metric)[0] == pytest.approx(outcome.metrics[metric], rel=1e-5), metric


def test_both_engines_give_the_same_losses_under_every_strategy(place: Path) -> None:
    changes = {"training.epochs": 2, "training.accumulate_grad_batches": 2, "model.hidden_dropout_prob": 0.1}
    config = job("text_classification", **changes)
    native = train(under_all(config, "native"))
    lightning = train(under_all(config.with_values({"training.engine": "lightning"}), "lightning"))
    for strategy in STRATEGIES:
        assert len(native[f"native_{strategy}"]) == 2 * (4 + 1)
        assert lightning[f"lightning_{strategy}"] == native[f"native_{strategy}"]


@pytest.mark.nightly
def test_sgd_learns_alike_under_every_strategy(place: Path) -> None:
    changes = {"optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.momentum": 0.9}
    found = train(under_all(job("text_classification", **changes), "sgd"))
    assert_close(found, found["sgd_one"])


@pytest.mark.nightly
def test_an_encoder_of_a_model_with_a_decoder_learns_with_adapters_and_is_saved(place: Path) -> None:
    t5 = {
        "architecture": "t5",
        "vocab_size": 300,
        "d_model": 16,
        "d_ff": 32,
        "d_kv": 8,
        "num_layers": 2,
        "num_heads": 2,
    }
    changes = {"model": {**t5, "dropout_rate": 0.0}, "lora": {"r": 2}}
    found = train(under_all(job("embedding", **changes), "t5"))
    assert_close(found, found["t5_one"])
    assert Path("t5_fsdp/model/model.safetensors").is_file()


def test_a_damaged_sharded_checkpoint_is_told_in_a_line_and_passed_over(place: Path) -> None:
    from hpo.trial import run_single_trial

    config = job("text_classification", **FSDP, **{"output.keep_checkpoint": True})
    train({"run": config})
    [saved] = RunDir(Path("run")).saved_checkpoints()
    assert is_whole(saved)
    for damaged in ("__0_0.distcp", "__1_0.distcp", ".metadata", "rest.pt"):
        shutil.copytree("run", damaged)
        (Path(damaged) / "checkpoints" / saved.name / damaged).write_bytes(b"")
        RunDir(Path(damaged)).prepare(config, resume=True)
        assert RunDir(Path(damaged)).last_epoch() == 0
    (saved / ".metadata").unlink()
    notices: list[str] = []
    longer = config.with_values({"training.epochs": 2, "distributed.strategy": "none"})
    result = run_single_trial(
        longer, RunDir(Path("run")), on_record=lambda record: False, on_notice=notices.append, resume=True
    )
    assert result.failure is None
    assert sum(f"{saved.absolute()}: is damaged" in notice for notice in notices) == 1


@pytest.mark.nightly
def test_clip_learns_from_texts_and_images_alike_under_every_strategy(place: Path) -> None:
    import datasets
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 255, (120, 8, 8), dtype=np.uint8)
    rows = [{"text": f"number {i % 9}", "image": image.tolist()} for i, image in enumerate(pixels)]
    features = {"text": datasets.Value("string"), "image": datasets.Array2D((8, 8), "uint8")}
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk("pairs")
    found = train(under_all(job("embedding", **{"data.name": "pairs", "model": CLIP}), "clip"))
    assert_close(found, found["clip_one"])


@pytest.mark.nightly
def test_a_cached_contrastive_batch_over_two_ranks_is_that_of_one_process(place: Path) -> None:
    cached = {"gradient_cache.chunk_size": 3, "training.gradient_checkpointing": True}
    assert job("embedding", **cached).batch_plan(2).num_micro_batches == 4  # chunks of 2, which divides 8
    found = train({"one": job("embedding", **ONE)} | under_all(job("embedding", **cached), "cached"))
    assert_close(found, found["one"])


def test_cached_gradients_over_two_ranks_are_those_of_the_whole_batch(place: Path) -> None:
    for strategy, launcher in (("none", []), ("ddp", TWO_RANKS), ("fsdp", TWO_RANKS)):
        start([*launcher, "cached_gradients.py", strategy, f"{strategy}.pt"])
    whole = torch.load("none.pt", weights_only=True)
    assert len(whole) > 30
    assert "sharpness.log" in whole
    expected = torch.cat([each.flatten() for each in whole.values()])
    for strategy in ("ddp", "fsdp"):
        cached = torch.load(f"{strategy}.pt", weights_only=True)
        assert cached.keys() == whole.keys()
        found = torch.cat([cached[name].flatten() for name in whole])
        error = ((found - expected).norm() / expected.norm()).item()
        print(f"{strategy}: relative error of the gradient {error:.1e}")
        assert error < 1e-6


@pytest.mark.nightly
def test_micro_batches_of_unlike_lengths_add_up_to_the_batch(place: Path) -> None:
    small = job("language_modeling", **{"training.max_micro_batch_size": 2})
    found = train({"one": job("language_modeling", **ONE)} | under_all(small, "small"))
    assert_close(found, found["one"])


def test_low_rank_adapters_with_checkpointed_layers_are_the_same_sharded_or_not(place: Path) -> None:
    changes = {"lora": {"r": 2, "target_modules": ["c_attn"]}, "training.gradient_checkpointing": True}
    found = train(under_all(job("language_modeling", **changes), "lora"))
    assert_close(found, found["lora_one"])
    assert_loads_merged_and_as_adapter(RunDir(Path("lora_fsdp")).model)


def assert_loads_merged_and_as_adapter(folder: Path) -> None:
    from peft import PeftConfig
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    assert PeftConfig.from_pretrained(folder / "adapter").r == 2
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {name.rpartition(".lora_")[2] for name in adapter} == {"A.weight", "B.weight"}
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert not any("lora" in name for name, _ in merged.named_parameters())


@pytest.mark.nightly
def test_a_classifier_with_adapters_trains_its_head_whole(place: Path) -> None:
    changes = {"lora": {"r": 2}, "training.epochs": 2}
    found = train(under_all(job("text_classification", **changes), "lora"))
    assert_close(found, found["lora_one"])
    from safetensors.torch import load_file

    adapter = load_file(Path("lora_one/model/adapter/adapter_model.safetensors"))
    assert any("classifier" in name for name in adapter)


@pytest.mark.nightly
def test_mixed_precision_learns_nearly_the_same_under_every_strategy(place: Path) -> None:
    plain = {"full": job("language_modeling", **ONE)}
    mixed = {
        name: config
        for precision in ("bf16-mixed", "16-mixed")
        for name, config in under_all(job("language_modeling", **{"training.precision": precision}), precision).items()
    }
    found = train(plain | mixed)
    assert_close({name: found[name] for name in mixed}, found["full"], TOLERANCE_16_BITS)
    assert all(found[name] != found["full"] for name in mixed)


@pytest.mark.nightly
def test_a_trained_temperature_is_float32_under_fsdp_in_half_precision_too(place: Path) -> None:
    changes = {"training.precision": "bf16-mixed", "embedding.temperature": 0.07}
    train(under_all(job("embedding", **changes), "bf16"))
    saved = [Path(f"bf16_{name}", "model", "embedding.json").read_text() for name in STRATEGIES]
    temperatures = [json.loads(text)["temperature"] for text in saved]
    assert temperatures == pytest.approx([temperatures[0]] * 3, rel=1e-4)
    first = [losses(RunDir(Path(f"bf16_{name}")))[0] for name in STRATEGIES]
    assert first == pytest.approx([first[0]] * 3, rel=1e-3)


def test_a_checkpoint_of_one_strategy_resumes_under_another(place: Path) -> None:
    """For every task, since some leave parameters without a gradient, and so without a state of the optimizer."""
    moves = [("fsdp", "one"), ("fsdp", "ddp"), ("ddp", "fsdp"), ("one", "fsdp"), ("fsdp", "fsdp")]
    jobs = {task: job(task, **{"training.epochs": 2, "output.keep_checkpoint": True}) for task in RESUMED}
    expected = train({f"{task}-whole": config.with_values(ONE) for task, config in jobs.items()})
    Path("stopping.py").write_text(STOPPING_TASK)
    folders = {f"{task}-{before}-{after}": (task, before, after) for task in jobs for before, after in moves}
    train(
        {
            folder: jobs[task].with_values({**STRATEGIES[before], "task": f"stopping:{RESUMED[task]}"})
            for folder, (task, before, _) in folders.items()
        }
    )
    assert all(RunDir(Path(folder)).last_epoch() == 1 for folder in folders)
    resumed = train(
        {folder: jobs[task].with_values(STRATEGIES[after]) for folder, (task, _, after) in folders.items()}, resume=True
    )
    for folder, (task, *_) in folders.items():
        assert_close({folder: resumed[folder]}, expected[f"{task}-whole"])


RESUMED = {"text_classification": "Texts", "embedding": "Pairs"}
STOPPING_TASK = """\
from pathlib import Path
from training.tasks.embedding import Embedding
from training.tasks.text_classification import TextClassification

class Stopping:
    def build_model(self, config, data):
        model = super().build_model(config, data)
        summarize = model.summarize

        def stop_and_summarize(totals):
            for running in {path.parent for path in Path(".").glob("*/metrics.jsonl")}:
                (running / "stop").touch()
            return summarize(totals)

        model.summarize = stop_and_summarize
        return model

class Texts(Stopping, TextClassification):
    pass

class Pairs(Stopping, Embedding):
    pass
"""


def test_half_a_sharded_checkpoint_is_not_taken_for_one(place: Path) -> None:
    run_dir = RunDir(Path("run"))
    (run_dir.checkpoints / ".epoch_0002.tmp").mkdir(parents=True)
    assert run_dir.last_epoch() == 0
    run_dir.prepare(job("embedding"), resume=True)
    assert list(run_dir.checkpoints.iterdir()) == []
