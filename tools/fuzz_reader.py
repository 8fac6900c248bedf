"""Look for inputs that the reader cannot stand, for as long as you like.

    python tools/fuzz_reader.py [--seconds 600] [--kind dicom zip nifti packed picture] [--seed 0]
    python tools/fuzz_reader.py --atheris [libFuzzer options] --kind dicom

Valid files of every kind are spoiled (``tests/fuzz_mutations.py``) and opened in a process of their own, with limits of
memory and time. What ends in anything but success or a typed error, also a crash of a decoder, a hang, or too much
memory, is saved in ``tests/corpus/<kind>/``, where the suite opens it again from then on. Fix the fault, keep the file.

With ``--atheris`` the coverage-guided fuzzer of that name (not among cspine's requirements) chooses the inputs.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
KINDS = ("dicom", "zip", "nifti", "packed", "picture")
# A case is small; its opening needs little. What is beyond is a finding.
MEMORY_BYTES = 6 * 2**30
GROWTH_BYTES = 700 * 2**20
HANG_SECONDS = 40.0
_CURRENT = "current"


def main(arguments: list[str]) -> int:
    """Fuzz; returns 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=ROOT / "tests" / "corpus")
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(arguments)
    if options.atheris:
        return guided(options.kind[0], rest)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if options.worker:
        return work(options.worker, options.kind, options.seed, options.seconds)
    return watch(options.kind, options.seed, options.seconds, options.corpus)


def say(text: str) -> None:
    """Tell at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def watch(kinds: list[str], seed: int, seconds: float, corpus: Path) -> int:
    """Keep a worker going, and find out what ended it."""
    found: list[Path] = []
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 1:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            command = [sys.executable, __file__, "--worker", name, "--seed", str(seed), "--seconds", str(left)]
            with subprocess.Popen([*command, "--kind", *kinds]) as worker:
                reason = _wait(worker, folder)
            current = next(folder.glob(f"{_CURRENT}.*"), None)
            if reason and current is None:
                say(f"no case could be made: {reason}")
                return 2
            if reason and current is not None:
                found.append(_keep(current, reason, corpus))
        seed += 1_000_003  # the next worker must not meet the same case
    say(f"{len(found)} findings")
    return 1 if found else 0


def _wait(worker: subprocess.Popen[bytes], folder: Path) -> str:
    """Why the worker ended; empty when its time was over."""
    last, since = b"", time.monotonic()
    while worker.poll() is None:
        time.sleep(0.2)
        beat = (folder / "beat").read_bytes() if (folder / "beat").exists() else b""
        if beat != last:
            last, since = beat, time.monotonic()
        if time.monotonic() - since > HANG_SECONDS:
            worker.kill()
            return f"no end after {HANG_SECONDS:.0f} s"
    if worker.returncode == 0:
        return ""
    reason = folder / "reason"
    return reason.read_text() if reason.exists() else f"the process died with status {worker.returncode}"


def _keep(current: Path, reason: str, corpus: Path) -> Path:
    from fuzz_reader_target import Case

    path = Case(current.suffix[1:], current.read_bytes()).save(corpus)
    say(f"{path.relative_to(corpus)}: {reason}")
    return path


def work(folder: Path, kinds: list[str], seed: int, seconds: float) -> int:
    """Try cases until one is a finding (status 1) or the time is over (0)."""
    from fuzz_reader_target import FindingError, check, spoiled

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    begin, usual, tried = time.monotonic(), 0, 0
    while time.monotonic() - begin < seconds:
        kind = kinds[tried % len(kinds)]
        case = spoiled(kind, Random(seed + tried))
        current = folder / f"{_CURRENT}.{kind}"
        for old in folder.glob(f"{_CURRENT}.*"):
            old.unlink()
        current.write_bytes(case.data)
        (folder / "beat").write_bytes(str(tried).encode())
        tried += 1
        try:
            check(case, folder)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            usual = usual or peak
            if peak - usual > GROWTH_BYTES:
                raise FindingError(f"memory grew by {(peak - usual) / 2**20:.0f} MiB")
        except FindingError as finding:
            (folder / "reason").write_text(str(finding))
            return 1
    say(f"{tried} cases, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")
    return 0


def guided(kind: str, options: list[str]) -> int:
    """Let atheris choose, guided by what of cspine each case reaches."""
    import atheris

    with atheris.instrument_imports(include=["cspine.studies"]):
        import cspine.studies.nifti
        import cspine.studies.study  # noqa: F401
    from fuzz_mutations import MOST_BYTES
    from fuzz_reader_target import _MUTATIONS, Case, FindingError, check, samples

    folder = Path(tempfile.mkdtemp())

    def one(data: bytes) -> None:
        case = Case(kind, data)
        try:
            check(case, folder)
        except FindingError as finding:
            say(f"{case.save()}: {finding}")
            raise

    def change(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        start = data if len(data) > 8 else random.choice(samples(kind))
        if random.random() < 0.3:
            return bytes(atheris.Mutate(start, most))
        return random.choice(_MUTATIONS[kind])(start, random)[:most]

    atheris.Setup(
        [sys.argv[0], f"-max_len={MOST_BYTES}", f"-artifact_prefix={folder}/", *options], one, custom_mutator=change
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
