"""The arrows between packages, and the sizes and names of their parts, read from the source without running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for package in ("hpo", "training") for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PACKAGES = {path.parent for path in SOURCES if path.name == "__init__.py"}

HEAVY = {"torch", "transformers"}
MEETING_POINTS = tuple(
    f"training.{name}"
    for name in ("atomic_files", "config", "errors", "full_disk", "job_processes", "predictions", "run_dir")
)
"""All that hpo may know of training, with their submodules."""

VAGUE_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers"}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported anywhere in the file: at the top, in functions, for type checkers.

    ``from package import name`` gives ``package.name``, since the name may be a module.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                depth = len(package) - node.level + (path.name == "__init__.py")
                base = ".".join([*package[:depth], *filter(None, [base])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def within(package: str) -> set[str]:
    return {module for module in MODULES if is_within(module, package)}


def forbidden(modules: set[str], *barred: str, but: tuple[str, ...] = ()) -> list[str]:
    """``file:line imports name`` for each import in `modules` of something in `barred` and not in `but`."""
    return [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for module in sorted(modules)
        for line, name in imports(MODULES[module])
        if any(is_within(name, outside) for outside in barred) and not any(is_within(name, ok) for ok in but)
    ]


def loads(module: str) -> set[str]:
    """`module`, and those of ours that an import of it may load: parents, and what each of them imports."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        while name and name not in MODULES:  # a class or function: the module is what comes before it
            name = name.rpartition(".")[0]
        if name and name not in seen:
            seen.add(name)
            waiting += [name.rpartition(".")[0], *(imported for _, imported in imports(MODULES[name]))]
    return seen


def test_there_is_something_to_check() -> None:
    assert {"hpo", "training", "training.config", "training.run_dir", "training.errors"} <= MODULES.keys()
    assert "training.config.schema" in loads("training.config")


def test_hpo_knows_only_the_meeting_points_of_training() -> None:
    assert forbidden(within("hpo"), "training", but=MEETING_POINTS) == []


def test_training_never_imports_hpo() -> None:
    assert forbidden(within("training"), "hpo") == []


def test_hpo_never_imports_torch() -> None:
    assert forbidden(within("hpo"), *HEAVY) == []


@pytest.mark.parametrize("module", MEETING_POINTS)
def test_meeting_points_are_free_of_torch(module: str) -> None:
    assert forbidden(loads(module), *HEAVY) == []


def test_the_command_line_starts_without_heavy_libraries() -> None:
    if "hpo.cli" not in MODULES:
        pytest.skip("hpo/cli.py does not exist yet")
    slow = HEAVY | {"mlflow", "optuna"}
    program = f"import hpo.cli, sys; print(*sorted({slow!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_module_has_a_name_of_the_standard_library() -> None:
    names = {path: path.stem for path in SOURCES if not path.stem.startswith("__")}
    names |= {package: package.name for package in PACKAGES}
    assert [str(path.relative_to(ROOT)) for path, name in names.items() if name in sys.stdlib_module_names] == []


def test_no_module_has_a_vague_name() -> None:
    vague = [path for path in [*SOURCES, *PACKAGES] if VAGUE_NAMES & set(path.stem.split("_"))]
    assert [str(path.relative_to(ROOT)) for path in vague] == []


def test_files_stay_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in [*SOURCES, *TESTS]}
    assert [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > MAX_FILE_LINES] == []


def test_functions_stay_short() -> None:
    assert [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ] == []
