"""How fast a node accepts slices, against DCMTK's ``storescp`` in the same run.

Both receive the same CT slices of 512 x 512 over loopback from 1, 2 and 4 senders at once (DCMTK's ``storescu``, each
with a study of its own). In turns, each in a process of its own, on the same disk, after one study that is not counted.
The node has each instance on the disk before it answers; ``storescp`` leaves that to the system. What this costs shows
in a third way: a node that, for this measurement alone, also leaves it to the system.

DCMTK runs with ``TCP_NODELAY=1``: without it (``--nagle``) each slice costs ``storescp`` a delayed acknowledgment of
40 ms, about 20 slices a second, and the comparison would say little. The node acknowledges at once.

Prints slices a second (medians), and the node's share of ``storescp``'s, with durability and without.

    python benchmarks/node.py [--slices 60] [--senders 1 2 4] [--repeats 3] [--nagle]
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

GOAL_RATIO = 0.5
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
START_SECONDS = 30.0


def write_study(folder: Path, number: int, slices: int) -> None:
    """A CT series of noise with UIDs of its own; no patient."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 4096, (512, 512), dtype=np.uint16)
    for k in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = UID(f"2.25.{number + 1}000{k + 1}")
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"2.25.{number + 1}", f"2.25.{number + 1}0"
        ds.PatientName = ds.PatientID = ""
        ds.Modality, ds.InstanceNumber = "CT", str(k + 1)
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, k], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept = [0.4, 0.4], "1", "-1024"
        ds.Rows = ds.Columns = 512
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PixelData = np.roll(pixels, k).tobytes()
        ds.save_as(folder / f"{k:04d}.dcm", enforce_file_format=True)


def free_port() -> int:
    """A TCP port on loopback that nobody uses at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


NOT_DURABLE = """
import functools
from cspine.cli.app import main
from cspine.node import node
node.Spool = functools.partial(node.Spool, durable=False)
main()
"""


@contextmanager
def node(folder: Path, command: Sequence[str] = (str(Path(sys.executable).with_name("cspine")),)) -> Iterator[int]:
    """A node that receives; studies are not complete before the measurement is over."""
    port = free_port()
    settings = folder / "node.toml"
    settings.write_text(f'data = "data"\nport = {port}\nquiet_seconds = 3600\n', encoding="utf-8")
    with running([*command, "node", "run", str(settings)], port):
        yield port


def careless(folder: Path) -> AbstractContextManager[int]:
    """A node that answers before what it holds is on the disk; nobody but this benchmark can ask for that."""
    return node(folder, (sys.executable, "-c", NOT_DURABLE))


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """DCMTK's receiver, a process for each sender, as it is run by default with several."""
    port = free_port()
    with running(["storescp", "--fork", "-dhl", "-od", str(folder), str(port)], port):
        yield port


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """A server, from when its port answers; killed in the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"did not start: {' '.join(command)}") from None
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def rate(port: int, studies: list[Path], slices: int) -> float:
    """Slices a second, from the start of the first sender to the end of the last."""
    start = time.perf_counter()
    command = ["storescu", "-aec", "CSPINE", "+sd", "127.0.0.1", str(port)]
    senders = [subprocess.Popen([*command, str(study)], stderr=subprocess.PIPE, env=ENVIRONMENT) for study in studies]
    for sender in senders:
        _, said = sender.communicate()
        if sender.returncode:
            raise SystemExit(f"storescu failed: {said.decode()}")
    return slices * len(studies) / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=60, help="of each study")
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nagle", action="store_true", help="senders as DCMTK has them, without TCP_NODELAY")
    wanted = parser.parse_args()
    if wanted.nagle:
        ENVIRONMENT.pop("TCP_NODELAY")
    for program in ("storescu", "storescp"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed (Debian: apt install dcmtk)")
    ways = {"storescp": storescp, "node": node, "careless": careless}
    print(f"{os.cpu_count()} processors, load before {os.getloadavg()[0]:.1f}; slices of 512 x 512 a second")
    print(f"{'senders':>8} {'storescp':>10} {'node':>10} {'ratio':>7} {'not durable':>12} {'ratio':>7}")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        *studies, warming = [root / f"study-{number}" for number in range(max(wanted.senders) + 1)]
        write_study(warming, len(studies), wanted.slices)
        for number, study in enumerate(studies):
            write_study(study, number, wanted.slices)
        for senders in wanted.senders:
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for repeat in range(wanted.repeats):
                for way, receiver in ways.items():
                    folder = root / f"{way}-{senders}-{repeat}"
                    folder.mkdir()
                    with receiver(folder) as port:
                        rate(port, [warming], wanted.slices)
                        rates[way].append(rate(port, studies[:senders], wanted.slices))
                    shutil.rmtree(folder)
            theirs, ours, loose = (statistics.median(rates[way]) for way in ways)
            shares = f"{ours:>10.1f} {ours / theirs:>7.2f} {loose:>12.1f} {loose / theirs:>7.2f}"
            print(f"{senders:>8} {theirs:>10.1f} {shares}", flush=True)
    print(f"goal: a ratio of at least {GOAL_RATIO}")


if __name__ == "__main__":
    main()
