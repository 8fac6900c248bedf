"""Decoding the planes of a layout into one array on all cores, while the files are hashed in order."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import TooLargeError
from cspine.studies.files import StoredFile
from cspine.studies.frames import PixelSource, Stored, check_size, read_file
from cspine.studies.geometry import Layout
from cspine.studies.intensity import Scale, to_hu
from cspine.studies.regrid import evened, fill_between, shifted

# Files kept in memory ahead of the hash, per thread.
AHEAD = 3
# What files and frames under way may take together, beside the volume; one is always under way.
IN_FLIGHT_BYTES = 2**30
# Copies of a frame while it is decoded and put into the volume.
_FRAME_COPIES = 4

Array = NDArray[Any]


def cores() -> int:
    """Cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def decode(layout: Layout, scales: list[Scale], dtype: np.dtype[Any], threads: int | None) -> tuple[Array, str]:
    """Volume array and the SHA-256 of the files in slice order.

    Workers read and decode; this thread hashes the bytes of each file in order, so that at most ``AHEAD`` files a
    thread are in memory next to the volume.
    """
    shape = layout.shape if layout.slots is not None else (len(layout.planes), *layout.shape[1:])
    hu = np.empty(shape, dtype)
    slots = layout.slots or tuple(range(len(layout.planes)))
    files: dict[int, list[int]] = {}
    for k, plane in enumerate(layout.planes):
        files.setdefault(id(plane.instance), []).append(k)

    def write(k: int, stored: Stored) -> None:
        plane, fmt = layout.planes[k], layout.planes[k].instance.format
        target = hu[slots[k]]
        if layout.shifts is None:
            to_hu(stored, fmt, scales[k], plane.padding, target)
            return
        straight = np.empty((fmt.rows, fmt.columns), dtype)
        to_hu(stored, fmt, scales[k], plane.padding, straight)
        shifted(straight, layout.shifts[k], layout.margin, target)

    workers = max(1, min(threads or cores(), IN_FLIGHT_BYTES // _working_bytes(layout)))
    with ThreadPoolExecutor(workers) as pool:
        if len(files) == 1:
            digest = _decode_frames(layout, pool, write)
        else:
            largest = max(plane.instance.file.size for plane in layout.planes)
            ahead = max(1, min(AHEAD * workers, IN_FLIGHT_BYTES // max(1, largest)))
            digest = _decode_files(layout, files, pool, ahead, write)
    if layout.slots is None:
        return evened(hu, layout.depths, layout.step, layout.count), digest
    fill_between(hu, slots)
    return hu, digest


def _working_bytes(layout: Layout) -> int:
    """About what decoding one frame takes beside the volume."""
    _, rows, columns = layout.shape
    return _FRAME_COPIES * 4 * rows * columns


def _decode_files(
    layout: Layout,
    files: dict[int, list[int]],
    pool: ThreadPoolExecutor,
    ahead: int,
    write: Callable[[int, Stored], None],
) -> str:
    """One task a file, at most ``ahead`` files in memory."""

    def work(indices: list[int]) -> bytes:
        instance = layout.planes[indices[0]].instance
        data = read_file(instance)
        source = PixelSource(data, instance.header, instance.format)
        for k in indices:
            write(k, source.frame(layout.planes[k].frame))
        return data

    digest = hashlib.sha256()
    for data in _in_order(pool, work, list(files.values()), ahead):
        digest.update(data)
    return digest.hexdigest()


def _decode_frames(layout: Layout, pool: ThreadPoolExecutor, write: Callable[[int, Stored], None]) -> str:
    """One task a frame of the single file, which is mapped rather than read when it lies on disk."""
    instance = layout.planes[0].instance
    check_size(instance)
    with _mapped(instance.file) as data:
        source = PixelSource(data, instance.header, instance.format)
        hashed = pool.submit(lambda: hashlib.sha256(data).hexdigest())
        list(pool.map(lambda k: write(k, source.frame(layout.planes[k].frame)), range(len(layout.planes))))
        return hashed.result()


@contextmanager
def _mapped(file: StoredFile) -> Iterator[bytes | memoryview]:
    """All bytes of a file: a read-only memory map on disk, bytes from a zip."""
    if file.path is None:
        yield file.read()
        return
    try:
        with file.path.open("rb") as stream:
            # Never closed here: arrays may still look at it when an error leaves; the last view closes it.
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # no address space left, or the file is gone
        raise TooLargeError("the file cannot be mapped into memory", where=file.name) from error
    yield memoryview(mapped)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[list[int]], bytes], jobs: list[list[int]], ahead: int
) -> Iterator[bytes]:
    """Results of ``work`` in the order of ``jobs``, with at most ``ahead`` of them under way or waiting."""
    waiting: deque[Future[bytes]] = deque()
    try:
        for job in jobs:
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, job))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
