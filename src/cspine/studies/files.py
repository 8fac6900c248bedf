"""The files of a study, wherever they lie: a folder, a single file, or a zip that is never unpacked to disk."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from cspine.errors import DamagedFileError, NoImagesError, StudyError, TooLargeError, UnsafeArchiveError

# An archive with more entries, or more inflated bytes, than this is refused: no CT study is that large.
MAX_ENTRIES = 100_000
MAX_UNPACKED_BYTES = 16 * 2**30
# Deflate reaches 1030:1 on zeros; images of CT stay below 10:1, mostly empty ones below 100:1.
MAX_RATIO = 200
# Small entries may be as compressible as they like.
RATIO_CHECKED_FROM_BYTES = 2**20
# The list of entries of an archive, before it is read: room for names of 300 characters.
MAX_DIRECTORY_BYTES = MAX_ENTRIES * 350
# Ways of packing that take no more memory than they are given: LZMA takes what its header claims.
_UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
# End of central directory, APPNOTE.TXT 4.3.16, and its 64-bit form, 4.3.14 and 4.3.15.
_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _LOCATOR_BYTES, _COMMENT_BYTES = 22, 20, 2**16


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of the input.

    Attributes:
        name: path relative to what was opened, with ``/``.
        size: bytes.
        path: where it lies on disk, or None for a zip entry.
        archive: the open zip it lies in, or None.
    """

    name: str
    size: int
    path: Path | None = None
    archive: zipfile.ZipFile | None = None

    def open(self) -> IO[bytes]:
        """A binary stream from the start."""
        if self.archive is not None:
            return self.archive.open(self.name)
        if self.path is None:
            raise NoImagesError("the file has no place", where=self.name)
        return self.path.open("rb", buffering=0)

    def head(self, count: int) -> bytes:
        """The first ``count`` bytes, fewer when the file is shorter."""
        return self._read(min(count, self.size))

    def read(self) -> bytes:
        """All bytes."""
        return self._read(self.size)

    def _read(self, count: int) -> bytes:
        try:
            with self.open() as stream:
                data = stream.read(count)
                # Raw files and zip streams may return less than asked before the end.
                while len(data) < count and (more := stream.read(count - len(data))):
                    data += more
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error) as error:
            raise DamagedFileError("the zip entry cannot be unpacked", where=self.name) from error
        except MemoryError as error:
            raise TooLargeError("there is not enough memory for this file", where=self.name) from error
        except (RuntimeError, NotImplementedError) as error:
            raise DamagedFileError(
                "the zip entry is encrypted or packed in an unknown way",
                where=self.name,
                fix="Unpack the archive and open the folder",
            ) from error
        except OSError as error:
            raise DamagedFileError(
                f"the file cannot be read: {error.strerror or 'damaged'}", where=self.name
            ) from error
        return data


def in_folder(folder: Path) -> list[StoredFile]:
    """All files below ``folder`` in the order of their paths; links to folders are not followed.

    Raises:
        StudyError: the folder cannot be listed.
    """
    found: list[StoredFile] = []

    def refuse(error: OSError) -> None:
        raise StudyError(f"the folder cannot be listed: {error.strerror}", where=Path(error.filename).name)

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        base = os.path.relpath(parent, folder)
        prefix = "" if base == "." else PurePosixPath(*Path(base).parts).as_posix() + "/"
        for name in sorted(names):
            path = Path(parent, name)
            try:
                info = path.stat()
            except OSError:
                continue  # a dangling link
            if stat.S_ISREG(info.st_mode):
                found.append(StoredFile(prefix + name, info.st_size, path))
    return found


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip, opened; its list of entries is read only when it is not too long.

    Raises:
        DamagedFileError: it cannot be read.
        UnsafeArchiveError: its list of entries is longer than ``MAX_DIRECTORY_BYTES``.
    """
    try:
        length = _directory_bytes(path)
        if length > MAX_DIRECTORY_BYTES:
            raise UnsafeArchiveError(
                f"the archive's list of entries has {length} bytes, at most {MAX_DIRECTORY_BYTES} are read",
                where=path.name,
            )
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, EOFError, OverflowError, struct.error) as error:
        raise DamagedFileError(
            "the zip archive cannot be read", where=path.name, fix="Pack or copy it again"
        ) from error


def _directory_bytes(path: Path) -> int:
    """What the end of a zip says of the length of its list of entries; 0 when it has no end that says so."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _END_BYTES - _COMMENT_BYTES - _LOCATOR_BYTES))
        tail = stream.read()
        last = len(tail) - _END_BYTES
        at = last if tail[max(0, last) :].startswith(_END) and tail.endswith(b"\0\0") else tail.rfind(_END)
        if at < 0 or at + _END_BYTES > len(tail):
            return 0
        length: int = struct.unpack_from("<I", tail, at + 12)[0]
        locator = tail[max(0, at - _LOCATOR_BYTES) : at]
        if locator.startswith(_LOCATOR_64) and len(locator) == _LOCATOR_BYTES:
            # zipfile looks right before the locator, whatever place that names.
            stream.seek(max(0, size - len(tail) + at - _LOCATOR_BYTES - 56))
            end = stream.read(56)
            if end.startswith(_END_64) and len(end) == 56:
                length = max(length if length != 0xFFFFFFFF else 0, struct.unpack_from("<Q", end, 40)[0])
    return length


def in_archive(archive: zipfile.ZipFile) -> list[StoredFile]:
    """The files of an open zip in the order of their names, after checking that reading them is safe.

    Raises:
        UnsafeArchiveError: an entry leaves the archive's folder, is a link, or the archive explodes.
    """
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise UnsafeArchiveError(f"the archive has {len(entries)} entries, at most {MAX_ENTRIES} are read")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKED_BYTES:
        raise UnsafeArchiveError(
            f"the archive unpacks to {total / 2**30:.1f} GiB, at most {MAX_UNPACKED_BYTES / 2**30:.0f} GiB is read"
        )
    for entry in entries:
        if not entry.filename:
            raise UnsafeArchiveError("an entry has no name", fix="Pack it again")
        _check_entry(entry)
    files = [StoredFile(e.filename, e.file_size, archive=archive) for e in entries if not e.is_dir()]
    if len({file.name for file in files}) != len(files):
        raise UnsafeArchiveError("the archive holds two entries of the same name", fix="Pack it again")
    return sorted(files, key=lambda file: file.name)


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or (len(name) > 1 and name[1] == ":") or "\0" in name:
        raise UnsafeArchiveError(
            "an entry points outside the archive", where=entry.filename, fix="Do not unpack this file"
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise UnsafeArchiveError("an entry is a link", where=entry.filename, fix="Pack the files themselves")
    if entry.compress_type not in _UNPACKED:
        raise UnsafeArchiveError(
            "an entry is packed in a way that is not read", where=entry.filename, fix="Unpack it and open the folder"
        )
    packed = max(entry.compress_size, 1)
    if entry.file_size > RATIO_CHECKED_FROM_BYTES and entry.file_size / packed > MAX_RATIO:
        raise UnsafeArchiveError(
            f"an entry unpacks to {entry.file_size / packed:.0f} times its size, at most {MAX_RATIO} is read",
            where=entry.filename,
        )


def check_bytes(needed: int, allowed: int, what: str, *, where: str | None = None) -> None:
    """Refuse before memory is taken.

    Raises:
        TooLargeError: ``needed`` bytes are more than ``allowed``.
    """
    if needed > allowed:
        raise TooLargeError(
            f"{what} would take {needed / 2**30:.2f} GiB, {allowed / 2**30:.2f} GiB is allowed",
            where=where,
            fix="Allow more memory, or check the file's size fields",
        )
