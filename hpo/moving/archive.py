"""The file that a study is exported to: a zip whose manifest knows the sha256 of each other member.

    manifest.json                        format, versions, study, members
    study.json                           its Snapshot
    trials/trial_0003/config.yaml        and its folds, as in the study's folder
    artifacts/<id>                       what optuna-dashboard shows with it

A damaged file is refused as a whole. What a file of someone else's may do: it is never extracted by the names that it
gives, unless they are of this form.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from hpo.errors import HpoError
from hpo.moving.checking import understood
from hpo.moving.snapshot import Snapshot

FORMAT = 1
MANIFEST, STUDY = "manifest.json", "study.json"
CHUNK_BYTES = 1 << 20
PART = r"(?!\.\.?(?:/|\Z))[^/\\:\x00-\x1f]+"
"""Of a path: neither ``.`` nor ``..``."""
NAME = re.compile(rf"study\.json|artifacts/[0-9a-f-]{{36}}|trials/trial_\d+(?:/fold_\d+)?(?:/{PART}){{1,3}}")
"""Of a member."""
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
)
"""What zipfile and json raise of what they cannot read."""


class ArchiveWriter:
    """Writes a new archive; it ends with `finish`."""

    def __init__(self, opened: zipfile.ZipFile) -> None:
        self._zip = opened
        self._members: dict[str, str] = {}

    def add(self, name: str, source: BinaryIO, *, is_packed: bool = True) -> None:
        """A member, read to its end; not packed where that saves nothing."""
        info, digest = zipfile.ZipInfo(name), hashlib.sha256()
        info.compress_type = zipfile.ZIP_DEFLATED if is_packed else zipfile.ZIP_STORED
        info.external_attr = (stat.S_IFREG | 0o600) << 16
        with self._zip.open(info, "w", force_zip64=True) as target:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        self._members[name] = digest.hexdigest()

    def finish(self, snapshot: Snapshot, about: dict[str, Any]) -> None:
        """Write what the members belong to, and the manifest."""
        values = {"study": snapshot.study, "tables": snapshot.tables}
        self.add(STUDY, io.BytesIO(json.dumps(values).encode()))
        manifest = {"format": FORMAT, "study": snapshot.study, **about, "members": self._members}
        self.add(MANIFEST, io.BytesIO(json.dumps(manifest, indent=1).encode()))


class Archive:
    """An archive that is read."""

    def __init__(self, path: Path, opened: zipfile.ZipFile) -> None:
        """Raises HpoError when it is damaged, of another format, or says what is not understood here."""
        self._path, self._zip = path, opened
        with self._refusing():
            self.about: dict[str, Any] = json.loads(opened.read(MANIFEST))
            self._format = int(self.about["format"])
        if self._format != FORMAT:
            by = f"hpo {self.about.get('hpo', '?')}"
            raise HpoError(f"{path} has format {self._format}, and this hpo reads {FORMAT}: import it with {by}")
        with self._refusing():
            self.members: dict[str, str] = dict(self.about["members"])
            self._require_sound_names()
        self.snapshot = self._understood()
        """The study in its database."""

    def _require_sound_names(self) -> None:
        infos = [info for info in self._zip.infolist() if info.filename != MANIFEST]
        for info in infos:
            if not NAME.fullmatch(info.orig_filename) or stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(f"a member {info.orig_filename!r} has no place in a study's folder")
        if sorted(info.filename for info in infos) != sorted(self.members):
            raise ValueError("its members are not those of its manifest")
        folders = {str(parent) for name in self.members for parent in PurePosixPath(name).parents}
        if both := folders & self.members.keys():
            raise ValueError(f"{min(both)} is a file and a folder")

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a member. Raises HpoError, at its end, when they are not those that were written."""
        digest = hashlib.sha256()
        with self._refusing():
            source = self._zip.open(name)
        with source:
            while chunk := self._read(source):
                digest.update(chunk)
                yield chunk
        with self._refusing():
            if digest.hexdigest() != self.members[name]:
                raise ValueError(f"{name} has changed")

    def _read(self, source: Any) -> bytes:
        with self._refusing():
            chunk: bytes = source.read(CHUNK_BYTES)
        return chunk

    def read(self, name: str) -> bytes:
        """All of a member. Raises HpoError as `chunks` does."""
        return b"".join(self.chunks(name))

    def _understood(self) -> Snapshot:
        data = self.read(STUDY)
        with self._refusing():
            values = json.loads(data)
        try:
            snapshot = understood(values)
            if snapshot.study != (named := self.about.get("study")):
                raise ValueError(f"{STUDY} is of study {snapshot.study!r}, and {MANIFEST} of {named!r}")
        except ValueError as error:
            by = f"hpo {self.about.get('hpo', '?')} and Optuna {self.about.get('optuna', '?')}"
            here = f"hpo {version('hpo')} and Optuna {version('optuna')}"
            raise HpoError(
                f"{self._path} says what is not understood here: {error}; it was written by {by}, and read by {here}:"
                " upgrade if those are newer, or export the study again; nothing was imported"
            ) from error
        return snapshot

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise damaged(self._path, error) from error


def damaged(path: Path, error: Exception) -> HpoError:
    """What is said of a file that is no archive, or not any more."""
    return HpoError(f"{path} is no export of a study, or damaged ({error}); nothing was imported: take another copy")


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Raises HpoError when it cannot be read, is damaged or was written by a newer version."""
    if not path.is_file():
        raise HpoError(f"{path}: there is no such file")
    try:
        opened = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise damaged(path, error) from error
    with opened:
        yield Archive(path, opened)
