"""optuna-dashboard on the study's storage, with the artifacts of its trials; for this machine only."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from optuna.storages import BaseStorage
from optuna_dashboard import run_server

from hpo.errors import HpoError
from hpo.storage import artifact_store

HOST = "127.0.0.1"
"""The dashboard knows no users: whoever reaches it can delete studies. Use an SSH tunnel from elsewhere."""


def serve(storage: BaseStorage, root: Path, port: int) -> None:
    """Serve until interrupted. Raises HpoError when the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise HpoError(f"port {port} is taken ({error.strerror}); choose another with --port") from error
    sys.stderr.write(f"optuna-dashboard on http://{HOST}:{port}/ (Ctrl-C ends it)\n")
    run_server(storage, host=HOST, port=port, artifact_store=artifact_store(root))
