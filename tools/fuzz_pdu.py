"""Look for conversations that a node cannot stand, for as long as you like.

    python tools/fuzz_pdu.py [--seconds 600] [--seed 0]

Obedient conversations (association request, C-ECHO, C-STORE, storage commitment, release) are spoiled
(``tests/fuzz_pdu_target.py``) and sent to a node on loopback. What stops it from answering the next C-ECHO, ends one of
its threads, or brings a name into its log, is saved in ``tests/corpus/pdu/``, where the suite sends it again from then
on. Fix the fault, keep the file.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
GROWTH_BYTES = 500 * 2**20


def main(arguments: list[str]) -> int:
    """Fuzz; returns 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=ROOT / "tests" / "corpus")
    options = parser.parse_args(arguments)
    found = tried = 0
    deadline = time.monotonic() + options.seconds
    while time.monotonic() < deadline:
        count, reason, data = until_found(options.seed + tried, deadline)
        tried += count
        if reason:
            from fuzz_pdu_target import save

            found += 1
            say(f"{save(data, options.corpus).relative_to(options.corpus)}: {reason}")
    say(f"{tried} conversations, {found} findings")
    return 1 if found else 0


def until_found(seed: int, deadline: float) -> tuple[int, str, bytes]:
    """Try conversations with one node; returns how many, and what the last one did when it is a finding."""
    from fuzz_pdu_target import TIGHT, FindingError, check, spoiled, watched
    from receiving_factory import receiver

    tried, usual, data = 0, 0, b""
    with tempfile.TemporaryDirectory() as folder, watched() as watcher, receiver(Path(folder), limits=TIGHT) as node:
        while time.monotonic() < deadline:
            data = spoiled(Random(seed + tried))
            tried += 1
            try:
                check(node, data, watcher)
            except FindingError as finding:
                return tried, str(finding), data
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            usual = usual or peak
            if peak - usual > GROWTH_BYTES:
                return tried, f"memory grew by {(peak - usual) / 2**20:.0f} MiB", data
    return tried, "", data


def say(text: str) -> None:
    """Tell at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
