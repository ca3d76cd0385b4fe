"""The flat form of a job becomes the nested one, and keeps its places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.config import JobConfig, Layer, job_config, nested, parse_layer
from training.config.flat import PLACES
from training.errors import ConfigError

CHECKOUT = Path(__file__).parents[4]
ISSUE = """{"task_name": "lm_tiny", "learning_rate": 5e-5, "batch_size": 4, "epochs": 10, "strategy": "ddp",
"devices": 2, "precision": "bf16-mixed", "accumulate_grad_batches": 2}"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str) -> JobConfig:
    return job_config(nested(parse_layer(text, name="flat.json")))


def test_the_flat_form_says_the_same_as_the_nested_one() -> None:
    job = load(ISSUE)
    assert (job.task, job.model.architecture, job.data.max_length) == ("language_modeling", "gpt2", 32)
    assert (job.optimizer.lr, job.training.epochs, job.training.precision) == (5e-5, 10, "bf16-mixed")
    assert (job.distributed.strategy, job.distributed.devices) == ("ddp", 2)


def test_the_example_is_the_flat_form() -> None:
    example = (CHECKOUT / "config" / "examples" / "train_ddp.json").read_text()
    assert load(example) == load(ISSUE)


@pytest.mark.parametrize(
    ("devices", "parts", "expected"),
    [("2", "2", 16), ("1", "2", 8), ('"auto"', "3", 12), ("[0, 1, 3]", "1", 12), ("2", '"auto"', 8)],
)
def test_the_batch_is_of_one_micro_batch_of_one_rank(devices: str, parts: str, expected: int) -> None:
    job = load(f'{{"task_name": "lm_tiny", "batch_size": 4, "devices": {devices}, "accumulate_grad_batches": {parts}}}')
    assert job.training.global_batch_size == expected


def test_what_was_tuned_on_two_ranks_means_the_same_on_eight() -> None:
    job = load(ISSUE).with_values({"training.accumulate_grad_batches": "auto"})
    plans = {ranks: job.batch_plan(ranks) for ranks in (1, 2, 4, 8)}
    assert {ranks * plan.micro_batch_size * plan.num_micro_batches for ranks, plan in plans.items()} == {16}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epochs": 1,\n "learning_rate": "fast"}', "flat.json:2: optimizer.lr must be a valid number, not 'fast'"),
        ('{"batch_size": "big"}', "flat.json:1: training.global_batch_size must be a valid integer, not 'big'"),
        ('{"task_name": "lm_huge"}', "flat.json:1: task 'lm_huge' is not one of text_classification"),
        (
            '{"learning_rate": 1.0,\n "optimizer": {"lr": 2.0}}',
            "flat.json:1: learning_rate and optimizer.lr say the same; keep one",
        ),
        ('{"batch_size": true}', "training.global_batch_size must be a valid integer, not True"),
        ('{"batch_size": -3, "devices": -1}', "training.global_batch_size must be greater than or equal to 1, not -3"),
        ('{"learning_rat": 1}', "flat.json:1: learning_rat is not a known key; did you mean 'learning_rate'?"),
        ('{"optimiser": {}}', "flat.json:1: optimiser is not a known key; did you mean 'optimizer'?"),
        (
            '{"seed": 1,\n"task_name": "lm_tinny"}',
            "flat.json:2: task_name 'lm_tinny' is not known; did you mean 'lm_tiny'?",
        ),
        ('{"task_name": "embeding"}', "did you mean 'embedding'?"),
        (
            '{"seed": 1,\n"learning_rate": 0.1}',
            "task_name is required beside learning_rate: one of bert_tiny,",
        ),
    ],
)
def test_mistakes_are_told_where_they_stand(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert message in str(caught.value)


def test_nested_keys_stay_where_they_are_beside_flat_ones() -> None:
    job = load('{"task_name": "vit_tiny", "learning_rate": 0.1, "optimizer": {"name": "sgd"}, "seed": 3}')
    assert (job.optimizer.name, job.optimizer.lr, job.seed, job.task) == ("sgd", 0.1, 3, "image_classification")


def test_a_layer_without_flat_keys_is_untouched() -> None:
    layer = parse_layer("task: embedding\ntraining: {epochs: 2}\n", name="job.yaml")
    moved = nested(layer)
    assert (moved.values, moved.places[("training", "epochs")]) == (layer.values, "job.yaml:2")
    assert nested(Layer()).values == {}


def test_every_flat_key_leads_to_a_key_of_the_schema() -> None:
    for path in PLACES.values():
        values: Any = JobConfig().model_dump()
        for key in path:
            values = values[key]


@pytest.mark.parametrize("preset", sorted((CHECKOUT / "config" / "tasks").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_a_valid_job(preset: Path) -> None:
    assert load(f'{{"task_name": "{preset.stem}"}}').task
