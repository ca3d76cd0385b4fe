"""What must not stand in the code, and names that must not lead out of the folder of all output."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from hpo.definition import load_definition
from hpo.masking import masked, visible
from training.config import JobConfig
from training.errors import ConfigError
from training.predictions import is_row_name
from training.run_dir import RunDir

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    [*(path for package in ("hpo", "training") for path in (ROOT / package).rglob("*.py"))]
    + [path for path in (ROOT / "scripts").iterdir() if path.read_text().startswith("#!/usr/bin/env python")]
)


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Place, full name and syntax of everything that is called anywhere in the code."""
    nodes = [(path.relative_to(ROOT), node) for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]
    return [(f"{path}:{n.lineno}", ast.unparse(n.func), n) for path, n in nodes if isinstance(n, ast.Call)]


def given(call: ast.Call, name: str) -> object:
    """The constant that an argument is given; None for anything else."""
    return next((getattr(each.value, "value", None) for each in call.keywords if each.arg == name), None)


def test_pickles_are_read_as_weights_alone() -> None:
    loads = [(place, call) for place, name, call in calls() if name == "torch.load"]
    assert loads
    assert [place for place, call in loads if given(call, "weights_only") is not True] == []


def test_models_are_read_from_safetensors_and_bring_no_code() -> None:
    names = [(place, name, call) for place, name, call in calls()]
    assert [place for place, _, call in names if given(call, "trust_remote_code") or given(call, "allow_pickle")] == []
    source = (ROOT / "training/tasks/pretrained.py").read_text()
    assert '"use_safetensors": True' in source


@pytest.mark.parametrize(
    "forbidden",
    ["eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "yaml.load", "yaml.full_load"]
    + ["yaml.unsafe_load", "tempfile.mktemp", "mlflow.pyfunc.load_model", "mlflow.pytorch.load_model"],
)
def test_nothing_calls_what_runs_text_as_code(forbidden: str) -> None:
    assert [place for place, name, _ in calls() if name == forbidden] == []


def test_no_process_is_started_by_a_shell() -> None:
    assert [place for place, _, call in calls() if given(call, "shell")] == []


def test_yaml_is_parsed_by_the_safe_loader() -> None:
    parsed = [ast.unparse(call) for _, name, call in calls() if name == "yaml.parse"]
    assert parsed == ["yaml.parse(text, Loader=yaml.CSafeLoader)"]


def test_nothing_listens_on_all_interfaces() -> None:
    assert [str(path) for path in SOURCES if '"0.0.0.0"' in path.read_text() or "INADDR_ANY" in path.read_text()] == []


# Names

STEPS = [
    "..",
    "../",
    "..\\",
    "/",
    "//",
    "/etc/passwd",
    "~",
    "~root",
    ".",
    "%2e%2e%2f",
    "..%2f",
    "\0",
    "\n",
    "C:\\",
    "\\\\h\\s",
]
TRAVERSALS = sorted(
    {f"{before}{step}{after}" for step in STEPS for before in ("", "a", "..") for after in ("", "/x", "x/..", "\n")}
)


def test_there_are_enough_names_that_lead_out() -> None:
    assert len(TRAVERSALS) > 150


@pytest.mark.parametrize("kind", ["study", "row"])
def test_a_name_that_leads_out_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    template = (ROOT / "studies/digits_cv.yaml").read_text().replace("study: digits_cv\n", "study: {}\n", 1)
    assert "study: {}\n" in template
    taken = []
    for name in TRAVERSALS:
        if kind == "row":
            taken += [name] if is_row_name(name) else []
            continue
        Path("study.yaml").write_text(template.replace("{}", json.dumps(name), 1))
        try:
            load_definition("study.yaml", environment="local")
        except ConfigError:
            continue
        taken.append(name)
    assert [name for name in taken if not (tmp_path / name).resolve().is_relative_to(tmp_path)] == []
    assert not {"/", "\\", "\0", "\n"} & {letter for name in taken for letter in name}


def test_a_link_in_the_place_of_a_run_directory_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(elsewhere)
    RunDir.create(tmp_path / "runs", "demo").prepare(JobConfig())
    assert list(elsewhere.iterdir()) == []


# What is shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m\n  next\tline", "red\n  next\tline"),
        ("\x1b]0;title\x07a\x00\x08\x9b2Jb\u202e", "ab"),
        ("plain: é 😀", "plain: é 😀"),
    ],
)
def test_what_a_terminal_would_obey_is_left_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere ps shows what was typed")
def test_ps_does_not_show_a_password_that_was_typed() -> None:
    url = "postgresql://me:cänary@host/db"
    code = "from hpo.masking import mask_command_line; mask_command_line(); print(flush=True); input()"
    arguments = [sys.executable, "-c", code, "status", "--storage", url, f"--storage={url}?password=canary2", "end"]
    with subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        shown = psutil.Process(process.pid).cmdline()
        process.communicate(b"\n")
    assert shown[3:5] == ["status", "--storage"] and shown[-1] == "end"
    assert "nary" not in " ".join(shown)
    assert shown[5].startswith(masked(url))


# The pins

ADVISORIES = {
    "GHSA-1": {"id": "GHSA-1", "aliases": ["CVE-1"], "summary": "runs code", "affected": [
        {"package": {"name": "Some_Package"}, "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "1.2"}]}]}
    ]},
    "GHSA-2": {"id": "GHSA-2", "affected": [
        {"package": {"name": "some-package"}, "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}]}
    ]},
    "GHSA-3": {"id": "GHSA-3", "withdrawn": "2026-01-01T00:00:00Z"},
}  # fmt: skip


class Advisories(BaseHTTPRequestHandler):
    known: tuple[str, ...] = ()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        found = {"vulns": [{"id": each} for each in self.known]}
        self.answer({"results": [found if each["package"]["name"] == "some-package" else {} for each in asked]})

    def do_GET(self) -> None:
        self.answer(ADVISORIES[self.path.rpartition("/")[2]])

    def answer(self, values: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(values).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("known", "status", "told"),
    [
        ((), 0, "2 pinned versions, 0 known vulnerabilities"),
        (("GHSA-1",), 1, "some-package 1.0: GHSA-1, CVE-1: runs code; fixed in 1.2"),
        (("GHSA-2", "GHSA-3"), 0, "some-package 1.0: GHSA-2: no summary; no version fixes it"),
        (None, 0, "whether the 2 pinned versions have known vulnerabilities was NOT checked"),
    ],
)
def test_the_pins_are_asked_about_and_it_is_said_when_they_were_not(
    known: tuple[str, ...] | None, status: int, told: str, tmp_path: Path
) -> None:
    (tmp_path / "pins.txt").write_text("# pins\nSome_Package==1.0\nother==2\n")
    with HTTPServer(("127.0.0.1", 0), type("Handler", (Advisories,), {"known": known or ()})) as server:
        url = f"http://127.0.0.1:{server.server_port if known is not None else 9}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [sys.executable, "scripts/audit", str(tmp_path / "pins.txt")],
            cwd=ROOT, env={"OSV_URL": url, "no_proxy": "*"}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        server.shutdown()
    assert done.returncode == status, done.stderr
    assert told in done.stdout + done.stderr
