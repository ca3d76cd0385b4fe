import random

import numpy as np
import pytest
import torch

from training.seeding import seed_everything, set_arithmetic


@pytest.mark.usefixtures("ordinary_arithmetic")
def test_numbers_too_small_to_be_normal_are_zero() -> None:
    tiny = torch.tensor([1e-30])
    assert (tiny * 1e-10).item() > 0
    set_arithmetic(torch.device("cpu"))
    assert (tiny * 1e-10).item() == 0


def test_the_same_key_draws_the_same_numbers_and_another_others() -> None:
    def draw(*key: int) -> tuple[float, float, float]:
        seed_everything(*key)
        return random.random(), float(np.random.random()), torch.rand(1).item()

    assert draw(0, 1, 0) == draw(0, 1, 0)
    first, *others = draw(0, 1, 0), draw(0, 1, 1), draw(0, 2, 0), draw(1, 1, 0)
    assert all(a != b for other in others for a, b in zip(first, other, strict=True))
    assert all(a != b for a, b in zip(draw(3), draw(3, 0, 0), strict=True))  # weights, and the first rank's epoch
