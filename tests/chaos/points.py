"""A sweep that dies just before its Nth durable step: a commit of a database, or a change of its folder's names.

What is on the disk changes at these steps alone, so dying before each of them is dying anywhere.
"""

from __future__ import annotations

import random
import signal
from dataclasses import replace

from tests.chaos.sweeps import NUM_FOLDS, Setting

COUNTING = """
import itertools, os, signal, sys, threading
from sqlalchemy import event
from sqlalchemy.engine import Engine

COUNT, PLACE, TURN = itertools.count(1), os.getcwd(), threading.Lock()
STEPS = os.open("steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}

def step(name):
    frame = sys._getframe()
    while frame.f_back and not frame.f_globals.get("__name__", "").startswith(("hpo.", "training.")):
        frame = frame.f_back
    with TURN:
        os.write(STEPS, f"{name} in {frame.f_globals['__name__']}.{frame.f_code.co_qualname}\\n".encode())
        if next(COUNT) == LAST:
            os.kill(os.getpid(), signal.SIGKILL)

def hear(name, arguments):
    if name in CHANGES and any(str(each).startswith(PLACE) for each in arguments):
        step(name)

sys.addaudithook(hear)
event.listen(Engine, "commit", lambda connection: step("commit"))
"""


def steps(setting: Setting) -> list[str]:
    """Those of a sweep that nothing befalls."""
    setting.write()
    if status := setting.start(first=f"LAST = 0{COUNTING}").wait():
        raise RuntimeError(f"the sweep ended with {status}; see {setting.folder}/said")
    return (setting.folder / "steps").read_text().splitlines()


def dies_before(setting: Setting, number: int) -> tuple[str | None, list[str]]:
    """Which step it was, None where the sweep had fewer; and what went wrong by the end of the next one."""
    setting.write()
    status = setting.start(first=f"LAST = {number}{COUNTING}").wait()
    where = (setting.folder / "steps").read_text().splitlines()[-1]
    if status == 0:
        return None, []
    wrong = [] if status == -signal.SIGKILL else [f"exit status {status} where it was to be killed"]
    if status := setting.start().wait():
        return where, [*wrong, f"exit status {status} of the next sweep; see {setting.folder}/said"]
    history = setting.history()
    wrong += history.violations(num_trials=setting.trials, num_folds=NUM_FOLDS)
    history.close()
    return where, wrong


def dies_before_some(setting: Setting, *, num_faults: int, seed: int) -> tuple[list[str], list[str]]:
    """The steps before which it died, and what went wrong, scores that are not those without faults included."""
    undisturbed = replace(setting, folder=setting.folder / "undisturbed")
    known = steps(undisturbed)
    expected, died, wrong = undisturbed.history().scores(), list[str](), list[str]()
    for number in sorted(random.Random(seed).sample(range(1, len(known) + 1), min(num_faults, len(known)))):
        one = replace(setting, folder=setting.folder / f"step_{number:04d}")
        where, found = dies_before(one, number)
        if where is None:  # what MLflow's thread does is not always as much
            continue
        died.append(where)
        wrong += [f"{where} (step {number} of {len(known)}): {each}" for each in found]
        wrong += [] if found or one.history().scores() == expected else [f"{where}: other scores"]
    return died, wrong
