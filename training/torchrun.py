"""``torchrun``, but it dies with the process that started it: ``python -m training.torchrun ARGUMENTS``."""

from __future__ import annotations

from training.process import die_with_parent, ignore_user_signals, no_garbage_collection


def main() -> None:
    """Run the torchrun command line."""
    die_with_parent()
    ignore_user_signals()
    with no_garbage_collection():
        from torch.distributed.run import main as torchrun

    torchrun()


if __name__ == "__main__":
    main()
