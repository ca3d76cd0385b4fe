"""User-visible errors of the study side. The command line prints them without a traceback and exits with 2.

    HpoError
    ├── StudyNotFoundError    no such study in this storage, or no such study file
    ├── StudyChangedError     the study's definition no longer matches what is stored
    ├── NoBestTrialError      the study has no completed trial yet (exits with 1)
    ├── MismatchError         a recorded fold does not give its score again (exits with 1)
    ├── StorageError          the storage cannot be reached or opened
    ├── DiskFullError         a disk is full or broken; nothing is at fault that ran (exits with 1)
    └── DeviceError           the devices asked for do not exist or cannot be leased

What is wrong in a YAML file is a ``training.errors.ConfigError`` and is handled the same way.
"""

from __future__ import annotations


class HpoError(Exception):
    """Base of every error this package raises on purpose; its text names place, rule and next step."""


class StudyNotFoundError(HpoError):
    """No study of that name."""


class StudyChangedError(HpoError):
    """The study in the storage was made from another definition."""


class NoBestTrialError(HpoError):
    """There is no completed trial to take."""


class MismatchError(HpoError):
    """A fold that was trained again has not its recorded score."""


class StorageError(HpoError):
    """The database cannot be used."""


class DiskFullError(HpoError):
    """A disk takes no more."""


class DeviceError(HpoError):
    """The machine has not what was asked for, or no safe place to keep the locks on it."""
