"""How many studies an hour a node judges, from the first slice that is sent to the last result that arrives.

A phantom scan of some 270 slices of 512 x 512 (``cspine phantom``) is sent under as many identities as there are
studies, by 1, 2 and 4 senders (DCMTK's ``storescu``). The node judges them with the bundle that comes with cspine and
sends SEG and SR of each to DCMTK's ``storescp``. The peer is ``cspine predict`` on the same files in the same run, with
the same results: what it is faster by is what receiving, queueing, a process a study and sending cost.

    python benchmarks/node_studies.py [--studies 4] [--senders 1 2 4]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pydicom
from pydicom.misc import is_dicom
from pydicom.uid import generate_uid

from node import ENVIRONMENT, free_port, running

CSPINE = str(Path(sys.executable).with_name("cspine"))
# The node takes a study as complete after this; it counts in the time.
QUIET_SECONDS = 2
RESULTS = ("seg", "sr")
PATIENCE_SECONDS = 1800.0


def write_studies(root: Path, count: int) -> list[Path]:
    """One phantom as several studies of several patients."""
    subprocess.run([CSPINE, "phantom", "--layout", "dicom", "-n", "1", "-o", str(root / "phantom"), "-q"], check=True)
    files = [path for path in sorted((root / "phantom").rglob("*")) if path.is_file() and is_dicom(path)]
    studies = [root / f"study-{number}" for number in range(count)]
    for number, folder in enumerate(studies):
        folder.mkdir()
        for path in files:
            ds = pydicom.dcmread(path)
            for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
                setattr(ds, name, generate_uid(entropy_srcs=[getattr(ds, name), str(number)]))
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            ds.PatientID = f"BENCH{number}"
            ds.save_as(folder / path.name)
    return studies


def by_node(root: Path, studies: list[Path], senders: int) -> float:
    """Seconds until the last result has arrived."""
    root.mkdir()
    archive = root / "archive"
    archive.mkdir()
    port, sink = free_port(), free_port()
    settings = root / "node.toml"
    settings.write_text(
        f'data = "data"\nport = {port}\nquiet_seconds = {QUIET_SECONDS}\n[[destinations]]\nkind = "cstore"\n'
        f'name = "archive"\nae_title = "ARCHIVE"\nhost = "127.0.0.1"\nport = {sink}\n'
        f"formats = [{', '.join(repr(name) for name in RESULTS)}]\n",
        encoding="utf-8",
    )
    sent = ["storescu", "-aec", "CSPINE", "+sd", "127.0.0.1", str(port)]
    with (
        running(["storescp", "--fork", "-od", str(archive), str(sink)], sink),
        running([CSPINE, "node", "run", str(settings)], port),
    ):
        start = time.perf_counter()
        lots = [studies[number::senders] for number in range(senders)]
        senders_now = [
            subprocess.Popen(
                [*sent, *map(str, lot)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT
            )
            for lot in lots
            if lot
        ]
        for sender in senders_now:
            _, said = sender.communicate()
            if sender.returncode:
                raise SystemExit(f"storescu failed: {said.decode()}")
        while len(list(archive.iterdir())) < len(RESULTS) * len(studies):
            if time.perf_counter() - start > PATIENCE_SECONDS:
                raise SystemExit("results are missing")
            time.sleep(0.1)
        return time.perf_counter() - start


def by_predict(root: Path, studies: list[Path]) -> float:
    """Seconds of one command over all studies."""
    start = time.perf_counter()
    command = [CSPINE, "predict", *map(str, studies), "-o", str(root), "--formats", ",".join(("json", *RESULTS)), "-q"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4)
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 2, 4])
    wanted = parser.parse_args()
    for program in ("storescu", "storescp"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed (Debian: apt install dcmtk)")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        studies = write_studies(root, wanted.studies)
        slices = len(list(studies[0].iterdir()))
        print(f"{os.cpu_count()} processors, load before {os.getloadavg()[0]:.1f}; studies of {slices} slices an hour")
        alone = by_predict(root / "predicted", studies)
        print(f"cspine predict, one command: {3600 * len(studies) / alone:.0f}")
        print(f"{'senders':>8} {'node':>8} {'ratio':>7}")
        for senders in wanted.senders:
            seconds = by_node(root / f"node-{senders}", studies, senders)
            print(f"{senders:>8} {3600 * len(studies) / seconds:>8.0f} {alone / seconds:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
