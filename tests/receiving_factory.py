"""A node's receiving half for tests: small instances, clocks that obey, and a service on loopback."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import FileDataset
from pydicom.filewriter import dcmwrite as write_dataset

from cspine.node.arrivals import Arrivals
from cspine.node.audit import AuditTrail
from cspine.node.instances import dataset_start
from cspine.node.privacy import Pseudonyms
from cspine.node.service import Service
from cspine.node.settings import Limits, NodeSettings
from cspine.node.spool import Spool, Stored
from cspine.studies import tags
from dicom_factory import ROOT, Grid, make_slice

SMALL = Grid(count=4, rows=8, columns=10)
PSEUDONYMS = Pseudonyms(bytes(range(32)))


@dataclass
class FakeClock:
    """Seconds that go where the test says."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


def instance(number: int = 0, *, study: str = "1", value: int | None = None, **attributes: Any) -> FileDataset:
    """One small CT slice of a study; ``value`` fills its pixels."""
    hu = None if value is None else np.full((SMALL.rows, SMALL.columns), value, np.int16)
    ds = make_slice(SMALL, number, number, hu=hu)
    ds.StudyInstanceUID = f"{ROOT}{study}"
    ds.SeriesInstanceUID = f"{ROOT}{study}.1"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}{study}.1.{number + 1}"
    for name, content in attributes.items():
        setattr(ds, name, content)
    return ds


def encoded(ds: FileDataset) -> bytes:
    """The data set alone, explicit little endian, as it goes over the network."""
    stream = io.BytesIO()
    write_dataset(stream, ds, enforce_file_format=True)
    data = stream.getvalue()
    return data[dataset_start(data) :]


def put(spool: Spool, ds: FileDataset, *, sender: str = "CT1", **changed: str) -> Stored:
    """Store one instance, as if it had come in an association."""
    facts = {"sop_class": str(ds.SOPClassUID), "sop": str(ds.SOPInstanceUID), "syntax": tags.EXPLICIT_LITTLE}
    return spool.store(encoded(ds), sender=sender, **{**facts, **changed})


def open_spool(folder: Path, clock: FakeClock | None = None, **options: Any) -> Spool:
    """A spool that has recovered, with a clock and a time of day that obey."""
    clock = clock or FakeClock()
    spool = Spool(folder, PSEUDONYMS, clock=clock, now=lambda: datetime.fromtimestamp(1.7e9 + clock(), UTC), **options)
    spool.recover()
    return spool


@dataclass
class Receiver:
    """A running service with everything behind it."""

    service: Service
    spool: Spool
    arrivals: Arrivals
    trail: AuditTrail
    settings: NodeSettings

    @property
    def port(self) -> int:
        return self.service.port

    @property
    def where(self) -> list[str]:
        """What DCMTK's programs want to know."""
        return ["-aec", self.settings.ae_title, "127.0.0.1", str(self.port)]

    def lines(self) -> list[str]:
        return self.trail.current.read_text().splitlines()


@contextmanager
def receiver(folder: Path, *, limits: Limits | None = None, **settings: Any) -> Iterator[Receiver]:
    """Run a service at a free port."""
    chosen = NodeSettings(port=0, data=folder, limits=limits or Limits(free_bytes=0), **settings)
    spool = Spool(folder / "spool", PSEUDONYMS, limits=chosen.limits)
    spool.recover()
    trail = AuditTrail(folder / "audit")
    service = Service(chosen, spool, trail, PSEUDONYMS)
    try:
        with service:
            yield Receiver(service, spool, Arrivals(spool, quiet_seconds=chosen.quiet_seconds), trail, chosen)
    finally:
        spool.close()


def write_instances(folder: Path, count: int, *, study: str = "1") -> list[Path]:
    """Small slices of one study as Part 10 files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{number:04d}.dcm"
        dcmwrite(path, instance(number, study=study), enforce_file_format=True)
        paths.append(path)
    return paths


def pixels_of(path: Path) -> bytes:
    """The pixel bytes of a file as they lie there."""
    return bytes(dcmread(path).PixelData)
