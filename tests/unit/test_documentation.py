"""The documentation is what the code says: generated pages are up to date, links lead somewhere, examples are valid."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpo.definition import load_definition, load_job
from training.config import JobConfig, flatten
from training.config.schema import LoraConfig

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")])


def output_of(*command: str) -> str:
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_configuration_reference_is_the_schema_s() -> None:
    printed = output_of(sys.executable, "scripts/document_configuration")
    assert (CHECKOUT / "docs" / "configuration.md").read_text() == printed, "run make docs"


def test_the_command_line_reference_is_the_help_s() -> None:
    printed = output_of(sys.executable, "-m", "typer", "hpo.cli", "utils", "docs", "--name", "hpo")
    assert (CHECKOUT / "docs" / "cli.md").read_text().strip() == printed.strip(), "run make docs"


def test_the_readme_is_a_page_or_three() -> None:
    assert len((CHECKOUT / "README.md").read_text().splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index() -> None:
    index = (CHECKOUT / "docs" / "index.md").read_text()
    assert [
        page.name for page in (CHECKOUT / "docs").glob("*.md") if page.name not in index and page.stem != "index"
    ] == []


def test_the_guide_names_only_keys_that_exist() -> None:
    known = {key for key, _ in flatten(JobConfig().model_dump())} | {f"lora.{key}" for key in LoraConfig.model_fields}
    sections = "|".join(sorted({key.partition(".")[0] for key in known if "." in key}))
    text = (CHECKOUT / "docs" / "distributed-training.md").read_text()
    named = {f"{section}.{key}" for section, key in re.findall(rf"(?<![\w/])({sections})\.([a-z_]+)", text)}
    assert len(named) > 10
    assert named - known == set()


@pytest.mark.parametrize("path", sorted(CHECKOUT.glob("config/examples/*")), ids=lambda path: path.name)
def test_example_configurations_are_valid(path: Path) -> None:
    load_job(path, environment="local")


@pytest.mark.parametrize("path", sorted(CHECKOUT.glob("studies/*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("environment", ["local", "colab", "kaggle", "cluster", "ci"])
def test_studies_are_valid_everywhere(path: Path, environment: str) -> None:
    assert load_definition(str(path), environment=environment).config.study == path.stem
