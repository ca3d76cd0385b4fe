"""Which kind of machine this is, by the variables its platform sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.environment import ENVIRONMENTS, detect_environment, detect_platform
from training.config import job_config, read_layer

CHECKOUT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("variable", "environment"),
    [
        ("KAGGLE_KERNEL_RUN_TYPE", "kaggle"),
        ("KAGGLE_URL_BASE", "kaggle"),
        ("COLAB_RELEASE_TAG", "colab"),
        ("COLAB_GPU", "colab"),
        ("SLURM_JOB_ID", "cluster"),
        ("RAY_ADDRESS", "cluster"),
        ("PBS_JOBID", "cluster"),
        ("LSB_JOBID", "cluster"),
        ("CI", "local"),
        ("HOME", "local"),
    ],
)
def test_an_environment_is_known_by_the_variable_its_platform_sets(variable: str, environment: str) -> None:
    assert detect_environment({variable: ""}) == environment


@pytest.mark.parametrize(("variable", "platform"), [("SLURM_JOB_ID", "slurm"), ("RAY_ADDRESS", "ray"), ("X", "local")])
def test_a_scheduler_is_known_by_its_name(variable: str, platform: str) -> None:
    assert detect_platform({variable: "1"}) == platform


def test_a_machine_without_signs_is_local() -> None:
    assert detect_environment({}) == "local"


def test_kaggle_is_kaggle_though_it_sets_colabs_variables_too() -> None:
    assert detect_environment({"COLAB_GPU": "1", "SLURM_JOB_ID": "1", "KAGGLE_URL_BASE": "x"}) == "kaggle"


def test_the_variables_of_this_process_are_looked_at_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_URL_BASE", "COLAB_RELEASE_TAG", "COLAB_GPU"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert detect_environment() == "cluster"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_environment_has_a_valid_overlay(environment: str) -> None:
    job_config(read_layer(CHECKOUT / f"config/env/{environment}.yaml"))
