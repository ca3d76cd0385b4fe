"""A process that exports the study `demo` and stops while it writes: exporting.py URL FILE"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from hpo.moving import exporting
from hpo.storage import open_storage
from hpo.study import load_study


def stop(*_: object) -> None:
    print("stopped", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    setattr(exporting, "_add_files", stop)  # noqa: B010 - mypy
    exporting.export_study(load_study("demo", open_storage(sys.argv[1])), Path(sys.argv[2]))
