"""docs/notebooks: the local one runs, those for Colab and Kaggle say only what can be said to this command line."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.integration.conftest import CHECKOUT

NOTEBOOKS = CHECKOUT / "docs" / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_of(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def commands_in(cell: str) -> list[list[str]]:
    """The arguments of each call of hpo: ``!hpo ...``, ``!{ENV}/bin/hpo ...``, and lists that begin with one."""
    lists = re.findall(r"\[f?\"(?:\S*/)?hpo\", ([^\]]*)\]", cell)
    lines = re.findall(r"^!(?:\S*/)?hpo (.*?)(?: 2>&1.*)?$", cell, re.MULTILINE)
    return [re.findall(r"[\w./-]+", each) for each in lists] + [shlex.split(each) for each in lines]


@pytest.mark.quick
def test_there_is_a_notebook_for_each_place() -> None:
    assert [path.stem for path in PATHS] == ["colab", "kaggle", "local"]


@pytest.mark.quick
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.quick
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_calls_only_commands_and_options_that_exist(path: Path) -> None:
    import typer

    from hpo.cli import app

    known = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    called = [command for cell in code_of(path) for command in commands_in(cell)]
    assert {command[0] for command in called} == {"validate", "sweep", "best", "train-best"}
    for name, *arguments in called:
        assert {argument for argument in arguments if argument.startswith("-")} <= known[name]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_notebook_trains_in_its_own_process(path: Path) -> None:
    for cell in code_of(path):
        imports = re.findall(r"^\s*(?:from|import) (\w+)", cell, re.MULTILINE)
        assert not {"torch", "training", "transformers"} & set(imports)


@pytest.mark.parametrize("name", ["colab", "kaggle"])
def test_the_torch_of_the_platform_stays(name: str) -> None:
    [install] = [cell for cell in code_of(NOTEBOOKS / f"{name}.ipynb") if "pip install" in cell]
    assert "--system-site-packages" in install
    assert 'grep -v "^torch=="' in install
    assert re.search("^torch==", (CHECKOUT / "config" / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.nightly
def test_the_local_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config", "studies"):
        shutil.copytree(CHECKOUT / name, tmp_path / name)
    for key, value in {"HPO_NOTEBOOK_TRIALS": "2", "HPO_NOTEBOOK_FOLDS": "2"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    cells = [cell for cell in executed(NOTEBOOKS / "local.ipynb", tmp_path).cells if cell.cell_type == "code"]

    def shown_by(part: str) -> str:
        [text] = [text_of(cell) for cell in cells if part in cell.source]
        return text

    assert "study: digits_cv" in shown_by(".read_text()")
    assert "Hardware(gpus=" in shown_by("detect_hardware()")
    assert "valid" in shown_by("!hpo validate")
    assert "2/2 trials" in shown_by("!hpo sweep")
    assert "optimizer.lr" in shown_by('"best"')
    assert shown_by("load_study").count("COMPLETE") == 1, "the better one of two was trained to its end"
    assert re.search("image/png|matplotlib is not installed", shown_by("plot.scatter"))
    assert re.search(r"scored on +test split", shown_by("!hpo train-best"))


def executed(path: Path, folder: Path) -> Any:
    """The notebook as it is after its cells ran in `folder`, in a kernel of its own."""
    from nbclient import NotebookClient

    notebook = read(path)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def text_of(cell: Any) -> str:
    """What the cell shows, and which kinds of data."""
    shown = []
    for output in cell.outputs:
        data = output.get("data", {})
        shown.append(output.get("text", "") + "\n".join([data.get("text/plain", ""), *data]))
    return "\n".join(shown)
