"""`hpo plan` on real jobs of every task, and a sweep that does not launch what will not fit."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from hpo.definition import load_definition
from tests.integration.conftest import CHECKOUT, run_hpo

GIB = 2**30
TRAIN = str(CHECKOUT / "config" / "train.yaml")


def test_a_plan_compares_the_strategies_and_prints_what_to_write(workplace: Path) -> None:
    config = str(CHECKOUT / "config" / "examples" / "train_ddp.json")
    large = [f"--set=model.{key}" for key in ("n_embd=512", "n_layer=8", "n_head=8")]
    options = ("--gpus", "4x2GiB", "--set", "data.max_samples=200", "--set", "distributed.devices=4", *large)
    plan = json.loads(run_hpo("plan", "--config", config, *options, "--json").stdout)
    rows = {(row["strategy"], row["gradient_checkpointing"], row["cpu_offload"]): row for row in plan["rows"]}
    one, ddp, fsdp = (rows[strategy, False, False] for strategy in ("none", "ddp", "fsdp"))
    for row in plan["rows"]:
        parts = ("parameters_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes")
        assert sum(row[part] for part in parts) == row["peak_bytes"]
    assert one["parameters_bytes"] == ddp["parameters_bytes"]
    assert one["optimizer_bytes"] == pytest.approx(2 * one["parameters_bytes"], rel=0.01)  # AdamW has two
    for part in ("parameters_bytes", "gradients_bytes", "optimizer_bytes"):
        assert fsdp[part] == pytest.approx(ddp[part] / 4, rel=0.05)
    assert plan["changes"]["distributed.strategy"] == plan["recommended"]["strategy"] == "ddp"

    text = run_hpo("plan", "--config", config, *options).stdout
    assert "take: ddp; it leaves" in text
    assert "distributed:\n  strategy: ddp\n" in text


def test_a_contrastive_loss_takes_the_square_of_the_batch_however_small_its_chunks(workplace: Path) -> None:
    """The gradient cache holds the encoder's activations down, not the matrix of similarities."""
    config = str(CHECKOUT / "config" / "examples" / "embedding_gradient_cache.yaml")
    peaks = {}
    for batch in (1024, 8192):
        options = ("--set", f"training.global_batch_size={batch}", "--set", "gradient_cache.chunk_size=64")
        plan = json.loads(run_hpo("plan", "--config", config, "--gpus", "2x80GB", *options, *FEW, "--json").stdout)
        peaks[batch] = {(row["strategy"], row["gradient_checkpointing"]): row["peak_bytes"] for row in plan["rows"]}
    for way in (("none", False), ("ddp", False)):
        ranks = 1 if way[0] == "none" else 2
        assert peaks[8192][way] - peaks[1024][way] > 2 * 4 * (8192**2 - 1024**2) / ranks


FEW = ("--set", "data.max_samples=200", "--set", "training.accumulate_grad_batches=auto")


@pytest.mark.nightly
@pytest.mark.parametrize("study", ["embedding_strategies", "vision_strategies"])
def test_a_study_is_planned_for_its_largest_configuration(study: str, workplace: Path) -> None:
    path = str(CHECKOUT / "studies" / f"{study}.yaml")
    plan = json.loads(
        run_hpo("plan", "--study", path, "--gpus", "8GB", "--set", "data.max_samples=200", "--json").stdout
    )
    assert [row["strategy"] for row in plan["rows"]] == ["none", "none"]
    assert plan["recommended"]["fits"]
    assert set(plan["largest"]) == set(load_definition(path).config.search_space)
    assert plan["price"]["jobs"] == 6 * 3


def test_a_plan_for_two_machines_counts_the_ranks_of_both(workplace: Path) -> None:
    config = str(CHECKOUT / "config" / "train.yaml")
    small = ("task=image_classification", "data.name=digits", "model={architecture: mlp}", "distributed.num_nodes=2")
    options = [part for setting in small for part in ("--set", setting)]
    plan = json.loads(run_hpo("plan", "--config", config, "--gpus", "2x8GB", *options, "--json").stdout)
    assert plan["recommended"]["world_size"] == 4
    assert plan["changes"]["distributed.devices"] == 2


def test_mistakes_end_with_status_2(workplace: Path) -> None:
    for arguments, says in (
        ((), "give either --config FILE or --study STUDY"),
        (("--study", "digits", "--gpus", "big"), "must read like 4x24GB"),
        (("--config", TRAIN, "--set", "distributed.accelerator=cpu"), "there is no GPU here to plan for"),
    ):
        assert says in run_hpo("plan", *arguments, status=2).stderr


def test_a_sampled_configuration_that_will_not_fit_is_a_violated_constraint_and_not_launched(workplace: Path) -> None:
    study = Path("studies/digits.yaml")
    text = study.read_text().replace("num_hidden_layers: 1", "num_hidden_layers: 2")
    study.write_text(text.replace("search_space:", "search_space:\n  model.hidden_size: {choice: [16, 4096]}"))
    limit = ("--set", "distributed.memory_limit=150MB")
    out = run_hpo("sweep", "--study", "digits", "--trials", "4", *limit)
    trials = optuna.load_study(study_name="digits", storage="sqlite:///runs/studies.db").trials
    assert {trial.params["model.hidden_size"] for trial in trials} == {16, 4096}
    for trial in trials:
        folds = list(Path(f"runs/digits/trial_{trial.number:04d}").glob("fold_*"))
        if trial.params["model.hidden_size"] == 4096:
            assert (trial.state.name, folds) == ("PRUNED", [])
            assert trial.constraints["memory"] > 0
        else:
            assert (trial.state.name, len(folds)) == ("COMPLETE", 2)
            assert trial.constraints["memory"] < 0
    assert "so it was not launched" in out.stderr
