"""A saved ensemble, loaded: the mean of what its members say, each of what its training made of the input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import JobConfig
from training.run_dir import ENSEMBLE
from training.seeding import seed_everything
from training.tasks import load_task
from training.tasks.classifier import Classifier
from training.tasks.ensemble import load_ensemble
from training.tasks.image_input import fit_to, write_input_format

TEXTS = ["a cat sat", "a dog ran to the far end of the field", "cats and dogs", "no animal at all"]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 1.0}
"""With weights so large that an untrained network tells inputs apart."""
BERT = {"architecture": "bert", "vocab_size": 100, **TINY}
VIT = {"architecture": "vit", "patch_size": 4, **TINY}
SMALL = {"architecture": "mlp", "hidden_size": 16}


def saved(folder: Path, config: JobConfig) -> list[Classifier]:
    """Two untrained members, as ``hpo train-best`` would leave them in `folder`."""
    task, members = load_task(config.task), []
    data = task.prepare(config)
    for number in range(2):
        seed_everything(number)
        member = task.build_model(config, data).eval()
        assert isinstance(member, Classifier)
        member.save(folder / f"member_{number}" / "model")
        members.append(member)
    listed = {"task": config.task, "members": [{"model": f"member_{number}/model"} for number in range(2)]}
    (folder / ENSEMBLE).write_text(json.dumps(listed))
    return members


@torch.no_grad()
def mean_of(members: list[Classifier], **inputs: torch.Tensor) -> torch.Tensor:
    said = [member.network(**inputs).logits.softmax(dim=-1) for member in members]
    assert not torch.allclose(said[0], said[1], atol=1e-2)
    assert (said[0].std(dim=0) > 1e-3).any()
    return (said[0] + said[1]) / 2


def test_texts_are_cut_as_in_training_and_their_probabilities_averaged(tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    table.write_text("text,label\n" + "".join(f"{text},{number % 2}\n" for number, text in enumerate(TEXTS)))
    data = {"name": str(table), "max_length": 6}
    config = {"task": "text_classification", "data": data, "model": BERT, "output": {"root": str(tmp_path)}}
    job = JobConfig.model_validate(config)
    members = saved(tmp_path, job)
    arrays = load_task(job.task).prepare(job).arrays
    tokens = {name: torch.from_numpy(np.array(arrays[name])) for name in ("input_ids", "attention_mask")}
    assert tokens["input_ids"].shape == (4, 6)
    expected = mean_of(members, **tokens)
    assert torch.allclose(load_ensemble(tmp_path)(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("model", [SMALL, VIT], ids=["ours", "transformers"])
def test_images_are_averaged_whatever_the_network(tmp_path: Path, model: dict[str, object]) -> None:
    config = {"task": "image_classification", "data": {"name": "digits", "max_samples": 20}, "model": model}
    job = JobConfig.model_validate({**config, "output": {"root": str(tmp_path)}})
    members = saved(tmp_path, job)
    images = np.array(load_task(job.task).prepare(job).arrays["pixel_values"])
    expected = mean_of(members, pixel_values=torch.from_numpy(images))
    assert torch.allclose(load_ensemble(str(tmp_path))(images), expected, atol=1e-6)


def test_images_are_brought_to_the_format_of_a_pretrained_network(tmp_path: Path) -> None:
    config = {"task": "image_classification", "data": {"name": "digits", "max_samples": 20}, "model": VIT}
    job = JobConfig.model_validate({**config, "output": {"root": str(tmp_path)}})
    members = saved(tmp_path, job)
    wanted = {"image_mean": [0.5], "image_std": [0.25], "size": {"height": 8, "width": 8}}
    for number in range(2):
        write_input_format(wanted, tmp_path / f"member_{number}" / "model")
    images = np.random.default_rng(0).random((3, 1, 16, 16), dtype=np.float32)
    expected = mean_of(members, pixel_values=torch.from_numpy(fit_to(wanted, images)))
    assert torch.allclose(load_ensemble(tmp_path)(images), expected, atol=1e-6)
