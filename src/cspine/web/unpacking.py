"""The files of an upload, out of their archives: each archive is checked first, and only as much is written as may be.

Runs in the confined child. The names of entries only serve messages; on disk everything is a number.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cspine.errors import CspineError, TooLargeError
from cspine.studies.files import MAX_ENTRIES, StoredFile, in_archive, open_archive
from cspine.web.orders import Note, Received
from cspine.web.strings import t

# An archive in an archive in an archive is no export of any PACS.
MAX_NESTING = 3
BLOCK = 2**20
# What systems leave beside the files of people.
_JUNK_NAMES = frozenset(("thumbs.db", "desktop.ini", ".ds_store", "autorun.inf"))
_JUNK_FOLDERS = frozenset(("__macosx", ".git", ".trashes"))
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# Archives that are not read, by how they begin: 7-Zip, RAR, xz, bzip2.
_OTHER_ARCHIVES = (b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\xfd7zXZ\0", b"BZh")
_ENCRYPTED = 0x1


@dataclass(slots=True)
class Unpacker:
    """Unpacks into one folder.

    Attributes:
        folder: made; its files are numbered.
        most_bytes: that may be written in all.
        problems: grows while unpacking.
        junk: files that were left aside without a word.
    """

    folder: Path
    most_bytes: int
    problems: list[Note] = field(default_factory=list)
    junk: int = 0
    _count: int = 0

    def all(self, received: Iterable[Received]) -> Iterator[StoredFile]:
        """The files, archives replaced by what is in them; ``name`` is what the owner knows, ``path`` where it lies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for item in received:
            yield from self._one(StoredFile(item.name, item.path.stat().st_size, item.path), 0)

    def _one(self, file: StoredFile, depth: int) -> Iterator[StoredFile]:
        if _is_junk(file.name):
            self.junk += 1
            return
        if file.size == 0:
            self._problem("empty", file.name)
            return
        head = file.head(8)
        if head.startswith(_OTHER_ARCHIVES) or file.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
            self._problem("archive", file.name)
        elif not head.startswith(_ZIP):
            yield file
        elif depth == MAX_NESTING:
            self._problem("nested", file.name)
        else:
            yield from self._archive(file, depth)

    def _archive(self, file: StoredFile, depth: int) -> Iterator[StoredFile]:
        if file.path is None:
            return
        try:
            with open_archive(file.path) as archive:
                entries = in_archive(archive)
                if any(info.flag_bits & _ENCRYPTED for info in archive.infolist()):
                    self._problem("password", file.name)
                    return
                unpacked = [self._write(entry, file.name) for entry in entries if not self._skipped(entry.name)]
        except TooLargeError:
            raise
        except CspineError as error:
            self._problem(error.code, file.name, error)
            return
        if not entries:
            self._problem("empty-archive", file.name)
        for item in unpacked:
            yield from self._one(item, depth + 1)

    def _skipped(self, name: str) -> bool:
        self.junk += (junk := _is_junk(name))
        return junk

    def _write(self, entry: StoredFile, within: str) -> StoredFile:
        """One entry as a file of its own.

        Raises:
            TooLargeError: there is no more room for this upload.
            DamagedFileError: it cannot be unpacked.
        """
        self._count += 1
        self.most_bytes -= entry.size
        if self.most_bytes < 0 or self._count > MAX_ENTRIES:
            raise TooLargeError(t("uploads.problem.unpacked-too-large"), where=within)
        path = self.folder / f"{self._count:06d}"
        name = f"{within}/{entry.name}"
        written = 0
        with path.open("wb") as out:
            for block in _blocks(entry):
                written += len(block)
                out.write(block)
        return StoredFile(name, written, path)

    def _problem(self, code: str, name: str, error: CspineError | None = None) -> None:
        self.problems.append(note(code, name, error))


def note(code: str, name: str, error: CspineError | None = None) -> Note:
    """What went wrong with a file, in words for its owner.

    Args:
        code: of the catalogue below ``uploads.problem``, unless there is an error, whose own words are taken.
        name: of the file as its owner calls it.
        error: what was raised.
    """
    if error is None:
        return Note(code=code, message=t(f"uploads.problem.{code}"), name=name)
    fix = f" {error.fix}." if error.fix else ""
    return Note(code=error.code, message=f"{sentence(error.message)}{fix}", name=name or error.where or "")


def sentence(text: str) -> str:
    """The text as a sentence: a capital letter, a full stop."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def _is_junk(name: str) -> bool:
    parts = [part.lower() for part in PurePosixPath(name.replace("\\", "/")).parts]
    if not parts:
        return False
    return parts[-1] in _JUNK_NAMES or parts[-1].startswith("._") or bool(_JUNK_FOLDERS & set(parts[:-1]))


def _blocks(entry: StoredFile) -> Iterator[bytes]:
    """An entry a block at a time, never more than its archive says it has.

    Raises:
        DamagedFileError: it cannot be unpacked.
    """
    import struct
    import zlib

    from cspine.errors import DamagedFileError

    left = entry.size
    try:
        with entry.open() as stream:
            while left and (block := stream.read(min(BLOCK, left))):
                left -= len(block)
                yield block
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedFileError("an entry of the archive cannot be unpacked", where=entry.name) from error
