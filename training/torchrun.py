"""``torchrun``, but it dies with the process that started it: ``python -m training.torchrun ARGUMENTS``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from training.errors import RANK_KILLED
from training.process import die_with_parent, ignore_user_signals, leave, no_garbage_collection


def main() -> None:
    """Run the torchrun command line."""
    die_with_parent()
    ignore_user_signals()
    with no_garbage_collection():
        from torch.distributed.run import main as torchrun

    with killed_ranks_told():
        torchrun()


@contextlib.contextmanager
def killed_ranks_told() -> Iterator[None]:
    """Around an agent's work: it leaves with RANK_KILLED when a rank was killed."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        yield
    except ChildFailedError as error:
        if any(failure.exitcode == -signal.SIGKILL for failure in error.failures.values()):
            print(error, flush=True)
            leave(RANK_KILLED)
        raise


if __name__ == "__main__":
    main()
