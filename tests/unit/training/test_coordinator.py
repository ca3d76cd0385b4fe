"""TrainingCoordinator in one process: what it settles, keeps and refuses, and the engine it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.config import JobConfig
from training.coordinator import TrainingCoordinator
from training.data import Batch, PreparedData
from training.distributed import Statistics
from training.errors import ConfigError
from training.run_dir import Event, RunDir
from training.tasks import TrainingModule
from training.trainer import TrainingResult

CONFIG: dict[str, Any] = {
    "training": {"epochs": 2, "global_batch_size": 8},
    "scheduler": {"name": "constant", "warmup_ratio": 0.0},
    "cross_validation": {"stratified": False},
    "distributed": {"accelerator": "cpu"},
}
KEEPING = {**CONFIG, "output": {"keep_checkpoint": True}}
STEPS_PER_EPOCH = 4


class Unsaveable(TrainingModule):
    """y = 2 x, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(self.layers(batch["x"]), 2 * batch["x"])

    def evaluate(self, batch: Batch) -> Statistics:
        return {"squared": self(batch) * len(batch["x"]), "count": torch.tensor(len(batch["x"]))}

    def summarize(self, totals: Statistics) -> dict[str, float]:
        return {"loss": (totals["squared"] / totals["count"]).item()}


class Line(Unsaveable):
    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(self.state_dict(), folder / "model.pt")


@dataclass
class Doubling:
    """A task of which only the last touch to a batch is wanted."""

    batches: int = 0

    def collate(self, batch: Batch) -> Batch:
        self.batches += 1
        return batch


DATA = PreparedData(arrays={"x": np.linspace(-1, 1, 40, dtype=np.float32)[:, None]})


def train(config: Any = CONFIG, model: TrainingModule | None = None, **options: Any) -> TrainingResult:
    places = {name: options.pop(name) for name in ("run_dir", "resume") if name in options}
    task: Any = Doubling()
    return TrainingCoordinator(**options).train(model or Line(), DATA, task, config, **places)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    yield
    torch.set_flush_denormal(False)  # which a training turns on


def test_a_model_is_trained_in_place_and_nothing_is_kept() -> None:
    model, task = Line(), Doubling()
    before = model.layers[0].weight.clone()
    result = TrainingCoordinator().train(model, DATA, task, CONFIG)  # type: ignore[arg-type]
    assert (result.epochs, result.steps, result.stopped) == (2, 2 * STEPS_PER_EPOCH, False)
    assert result.metrics["loss"] < 1.0
    assert not torch.equal(model.layers[0].weight, before)
    assert task.batches == 2 * (STEPS_PER_EPOCH + 1)
    assert list(Path().iterdir()) == []


def test_a_run_directory_gets_what_a_job_leaves() -> None:
    result = train(KEEPING, run_dir="a run")
    run_dir = RunDir(Path("a run"))
    outcome = run_dir.load_result()
    assert outcome is not None
    assert outcome.metrics == result.metrics
    assert [record.event for record in run_dir.records()].count(Event.EVALUATE) == 2
    assert run_dir.last_epoch() == 2
    assert (run_dir.model / "model.pt").is_file()
    assert run_dir.load_config().task == f"{__name__}:Doubling"


def test_without_checkpoints_the_rest_is_kept() -> None:
    train(KEEPING, run_dir="run", enable_checkpointing=False)
    assert RunDir(Path("run")).last_epoch() == 0
    assert RunDir(Path("run")).load_result() is not None


def test_a_training_goes_on_where_it_was_only_when_asked_to() -> None:
    whole = train(KEEPING, run_dir="whole")
    one_epoch = {**KEEPING, "training": {**KEEPING["training"], "epochs": 1}}
    train(one_epoch, run_dir="run")
    resumed = train(KEEPING, run_dir="run", resume=True)
    assert resumed == whole
    starts = [record.epoch for record in RunDir(Path("run")).records() if record.event is Event.START]
    assert starts == [0, 1]
    train(KEEPING, run_dir="run")
    starts = [record.epoch for record in RunDir(Path("run")).records() if record.event is Event.START]
    assert starts == [0]


def test_what_a_keyword_says_wins_and_what_it_does_not_say_stays() -> None:
    given = JobConfig.model_validate({**CONFIG, "training": {**CONFIG["training"], "log_every_n_steps": 3}})
    train(given, run_dir="run", precision="bf16-mixed", devices=1)
    settled = RunDir(Path("run")).load_config()
    assert (settled.training.precision, settled.training.log_every_n_steps) == ("bf16-mixed", 3)
    assert settled.distributed.devices == 1
    assert given.training.precision == "auto"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"devices": 2},
            "asks for 2 ranks, but this script was started as 1; start it as: torchrun --nproc-per-node 2",
        ),
        ({"config": {**CONFIG, "distributed": {"devices": [2, 3]}}}, "say devices=2, .* CUDA_VISIBLE_DEVICES=2,3"),
        ({"config": {"training": {"epoch": 3}}}, "TrainingCoordinator: training.epoch is not .* did you mean 'epochs'"),
        ({"num_nodes": 0}, "TrainingCoordinator: distributed.num_nodes must be .*, not 0"),
        ({"engine": "lightening"}, "training.engine must be 'native' or 'lightning', not 'lightening'"),
        ({"callbacks": [object()]}, "add engine='lightning'"),
        ({"model": Unsaveable(), "run_dir": "run"}, "Unsaveable has no method save"),
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        train(**options)
    assert list(Path().iterdir()) == []


def test_a_strategy_for_several_devices_says_that_there_is_one() -> None:
    with pytest.warns(UserWarning, match="DDP requires multiple devices, falling back to single-process training"):
        train(strategy="ddp")


def test_without_lightning_the_native_loop_trains_and_says_which_extra_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.warns(UserWarning, match=r"pip install 'hpo\[lightning\]'") as warnings:
        result = train(engine="lightning")
    assert len(warnings) == 1
    assert result == train(engine="native")


def test_a_broken_lightning_is_not_taken_for_a_missing_one(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "lightning").mkdir()
    (site / "lightning" / "__init__.py").write_text("raise ImportError('half installed')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lightning"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "training.lightning_engine", raising=False)
    with pytest.raises(ImportError, match="half installed"):
        train(engine="lightning")
