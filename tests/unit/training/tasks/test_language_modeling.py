"""The language model's loss is transformers' own, and counts by tokens."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from training.distributed import RunContext
from training.gradients import backward
from training.tasks.language_modeling import LanguageModel
from training.tasks.tokens import cut_padding

BATCH = {
    "input_ids": torch.tensor([[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]),
}


def language_model() -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 10, "bos_token_id": 2, "eos_token_id": 3}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes, **quiet))
    return LanguageModel(network, save=lambda network, folder: None)


def test_the_loss_is_that_of_transformers() -> None:
    model = language_model()
    labels = BATCH["input_ids"].masked_fill(BATCH["attention_mask"] == 0, -100)
    expected = model.network(**BATCH, labels=labels).loss
    torch.testing.assert_close(model(BATCH), expected)


def test_its_weight_is_the_number_of_predicted_tokens() -> None:
    assert language_model().weight(BATCH).item() == 3 + 2


def test_a_step_of_texts_of_one_token_changes_nothing() -> None:
    model, text = language_model(), {"input_ids": torch.tensor([[2]]), "attention_mask": torch.tensor([[1]])}
    loss = backward(model, model, [text, text], RunContext.alone(), lambda loss: loss)
    assert loss.item() == 0.0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_metrics_follow_from_sums_over_any_batches() -> None:
    model = language_model()
    with torch.no_grad():
        whole = model.evaluate(BATCH)
        parts = [model.evaluate({name: value[i : i + 1] for name, value in BATCH.items()}) for i in range(2)]
        loss = model(BATCH).item()
    for name in whole.keys() - set(model.row_names):
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name])
    metrics = model.summarize(whole)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["perplexity"] == math.exp(metrics["loss"])
    assert 0 <= metrics["accuracy"] <= 1


def test_a_hopeless_loss_has_a_finite_perplexity() -> None:
    totals = {"loss_sum": torch.tensor(1e6), "tokens": torch.tensor(1.0), "hits": torch.tensor(0.0)}
    assert math.isfinite(language_model().summarize(totals)["perplexity"])


def test_padding_that_no_text_needs_is_cut_in_any_shape() -> None:
    assert cut_padding(BATCH)["input_ids"].tolist() == [[2, 5, 6, 3], [2, 7, 3, 0]]
    pairs = {name: torch.stack([value, value], dim=1) for name, value in BATCH.items()}
    pairs["pixel_values"] = torch.zeros(2, 1, 4, 9)
    cut = cut_padding(pairs)
    assert (cut["input_ids"].shape, cut["attention_mask"].shape) == ((2, 2, 4), (2, 2, 4))
    assert cut["pixel_values"].shape == (2, 1, 4, 9)
