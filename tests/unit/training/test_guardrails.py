"""What is told of a job before it starts, and what keeps it from starting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.config import JobConfig
from training.data import Batch
from training.distributed import DistributedContext, RunContext
from training.errors import ConfigError
from training.fsdp import ShardedContext
from training.guardrails import errors, inspect
from training.run_dir import Finding, RunDir
from training.tasks.task import ContrastiveModule, TrainingModule

CPU = torch.device("cpu")
ALONE = RunContext.alone()


class Saveable(TrainingModule):
    def save(self, folder: Path) -> None:
        raise NotImplementedError


class Layered(Saveable):
    """Two repeated layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

    def forward(self, batch: Batch) -> Tensor:
        raise NotImplementedError


class Flat(Saveable):
    """No repeated layers, but batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


class Contrastive(Saveable, ContrastiveModule):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(2, 2)


def two_ranks(kind: type[DistributedContext]) -> DistributedContext:
    return kind(config=JobConfig().distributed, rank=0, world_size=2, device=CPU)


def found(model: TrainingModule, context: RunContext = ALONE, **changes: Any) -> list[str]:
    config = JobConfig().with_values({key.replace("__", "."): value for key, value in changes.items()})
    return [finding.key for finding in inspect(model, config, context)]


def refused(model: TrainingModule, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        found(model, **changes)
    return str(caught.value)


def test_a_plain_job_needs_no_word() -> None:
    assert found(Layered()) == []
    assert found(Layered(), two_ranks(DistributedContext)) == []


def test_a_gradient_cache_for_a_plain_loss_is_refused() -> None:
    assert "is not contrastive" in refused(Layered(), gradient_cache__enabled=True)
    assert "is not contrastive" in refused(Layered(), gradient_cache__chunk_size=4)
    assert found(Contrastive(), gradient_cache__enabled=True) == []


def test_adapters_that_no_layer_got_are_refused() -> None:
    assert "has no adapters" in refused(Layered(), lora={"r": 2})


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = Layered()
    model.requires_grad_(False)
    assert "no parameter is to be trained" in refused(model)


def test_compiling_for_a_cpu_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert found(Layered(), training__compile=True) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "takes a C++ compiler" in refused(Layered(), training__compile=True)
    assert list(errors(Layered(), JobConfig().with_values({"training.compile": True}))) == []  # it may be for a GPU


def test_a_model_that_cannot_be_saved_is_refused_before_it_is_trained() -> None:
    class Unsaveable(TrainingModule):
        pass

    model = Unsaveable()
    model.weight_to_train = nn.Parameter(torch.zeros(1))
    assert "Unsaveable has no method save" in refused(model)
    assert found(model, output__save_model=False) == []


def test_an_engine_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(Layered(), training__engine="lightning") == []
    monkeypatch.setattr("training.guardrails.lightning_is_installed", lambda: False)
    (finding,) = inspect(Layered(), JobConfig().with_values({"training.engine": "lightning"}), ALONE)
    assert finding.advice == "pip install 'hpo[lightning]'"


def test_all_errors_are_told_at_once() -> None:
    assert len(refused(Layered(), lora={"r": 2}, gradient_cache__enabled=True).splitlines()) == 2


def test_sharding_too_little_is_told() -> None:
    (few,) = inspect(Layered(), JobConfig(), two_ranks(ShardedContext))
    assert few.message == "0.0 M parameters are few to shard over 2 ranks"
    (no_layers,) = inspect(Flat(), JobConfig(), two_ranks(ShardedContext))
    assert "no repeated layers" in no_layers.message


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (Flat(), {"distributed.sync_batchnorm": True}),
        (Layered(), {"distributed.cpu_offload": True}),
        (Flat(), {"training.gradient_checkpointing": True}),
    ],
)
def test_what_has_no_effect_is_told(model: TrainingModule, changes: dict[str, Any]) -> None:
    (finding,) = inspect(model, JobConfig().with_values(changes), ALONE)
    assert finding.key in changes
    assert finding.message.startswith("has no effect here: ")
    assert finding.advice == "remove it"


def test_half_precision_on_a_cpu_is_told() -> None:
    assert found(Layered(), training__precision="16-mixed") == ["training.precision"]
    assert found(Layered(), training__precision="bf16-mixed") == []


def test_adapters_beside_random_weights_are_told() -> None:
    model = Layered()
    model.lora_A = nn.Parameter(torch.zeros(2))
    assert found(model, lora={"r": 2}) == ["lora"]
    assert "would be lost" in refused(model, lora={"r": 2, "merge": False})
    assert found(model, lora={"r": 2}, model__pretrained="somewhere") == []


def test_a_contrastive_loss_over_micro_batches_alone_is_told() -> None:
    changes = {"gradient_cache__enabled": False, "training__max_micro_batch_size": 4}
    assert found(Contrastive(), **changes) == ["gradient_cache.enabled"]


def test_findings_are_kept_in_the_run_directory(tmp_path: Path) -> None:
    run_dir, finding = RunDir(tmp_path), Finding(key="a.b", message="is changed", advice="do this")
    run_dir.add_findings([])
    assert run_dir.load_findings() == []
    run_dir.add_findings([finding])
    run_dir.add_findings([finding])
    assert run_dir.load_findings() == [finding]
    assert str(finding) == "a.b: is changed; do this"
    run_dir.prepare(JobConfig())
    assert run_dir.load_findings() == []
