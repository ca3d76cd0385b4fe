"""A process that imports a study and stops where it comes to a function: importing.py FILE URL ROOT FUNCTION"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from hpo.moving import importing
from hpo.moving.archive import open_archive
from hpo.storage import open_storage


def stop(*_: object) -> None:
    print("stopped", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    setattr(importing, sys.argv[4], stop)
    with open_archive(Path(sys.argv[1])) as archive:
        importing.import_study(archive, open_storage(sys.argv[2]), Path(sys.argv[3]))
