"""What a rank refuses before it joins the others."""

from __future__ import annotations

import pytest
import torch

from training.config import JobConfig
from training.distributed import run_context
from training.errors import ConfigError


def test_ranks_of_another_launcher_are_told_to_use_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ConfigError, match="start the ranks with torchrun"), run_context(JobConfig()):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU that is here")
def test_a_gpu_that_torch_cannot_use_is_told() -> None:
    config = JobConfig().with_values({"distributed.accelerator": "cuda"})
    with pytest.raises(ConfigError, match="install a CUDA build"), run_context(config):
        pass
