"""Where the agent of a job on one machine meets its ranks: a store on the loopback interface, on a free port.

torchelastic's own meeting of agents waits up to 0.3 s before it begins and listens on all interfaces; one agent has
nobody to wait for.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

LOCAL = "local"
"""Name for torchelastic's ``rdzv_backend``."""
_HOST = "127.0.0.1"


class LocalRendezvous(RendezvousHandler):
    """A rendezvous of one agent, which is complete at once."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        with socket.create_server((_HOST, 0)) as listening:
            self._port = listening.getsockname()[1]
            self._store = TCPStore(
                _HOST,
                self._port,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=parameters.get_as_int("timeout", 60) or 60),
                master_listen_fd=listening.detach(),
            )

    @property
    def use_agent_store(self) -> bool:
        """The ranks meet in the same store."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """The only round there is."""
        store = PrefixStore(self._run_id, self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(_HOST, self._port))

    def get_backend(self) -> str:
        """Its name."""
        return LOCAL

    def get_run_id(self) -> str:
        """That of the job."""
        return self._run_id

    def num_nodes_waiting(self) -> int:
        """Nobody else comes."""
        return 0

    def is_closed(self) -> bool:
        """It ends with the agent."""
        return False

    def set_closed(self) -> None:
        """It ends with the agent."""

    def shutdown(self) -> bool:
        """It ends with the agent."""
        return True


rendezvous_handler_registry.register(LOCAL, LocalRendezvous)
