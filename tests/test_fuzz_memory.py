"""Small files that claim gigabytes end in one typed error, and the process stays small: measured in a child process.

The peak is the kernel's own (VmHWM), set back before each file. ``getrusage`` would not do: a process inherits the peak
of the one that started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostile_files import BOMBS, MIB, write

# What opening any of them may add to a process: the codecs' own working memory, and what is looked at of a header.
MOST_GROWTH = 200 * MIB
MOST_SECONDS = 20.0

CHILD = """
import json, re, sys, time
from pathlib import Path
import fuzz_reader_target as target
from cspine.errors import CspineError
from cspine.studies import list_series, open_image, open_study

folder, bombs = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
for kind in target.ENDINGS:  # what a usual file takes, libraries included
    for data in target.samples(kind):
        path = folder / f"usual{target.ENDINGS[kind]}"
        path.write_bytes(data)
        for way in (open_study, open_image):
            try:
                way(path)
            except CspineError:
                pass


def peak():
    return 1024 * int(re.search("VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])


for path in bombs:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is what is resident now
    before, begin, codes = peak(), time.monotonic(), []
    for way in (open_study, open_image):
        try:
            way(path)
            codes.append("opened")
        except CspineError as error:
            codes.append(error.code)
        except Exception as error:
            codes.append(f"{type(error).__name__}: {error}")
    print(json.dumps([path.name, codes, peak() - before, time.monotonic() - begin]), flush=True)
"""


pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures with /proc (Linux)")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], int, float]]:
    """By name: how opening it as a study and as an image ended, bytes by which the peak grew, seconds."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = write(folder / "files")
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(folder), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("[")]
    return {name: (codes, grown, seconds) for name, codes, grown, seconds in rows}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(measured: dict[str, tuple[list[str], int, float]], name: str) -> None:
    codes, grown, seconds = measured[name]
    expected = BOMBS[name][1]
    ours = {"damaged-file", "too-large", "geometry", "not-ct", "no-images", "unsafe-archive", "intensity"}
    assert set(codes) <= ours | {"opened"}
    assert set(codes) & set(expected), f"{codes} instead of {expected}"
    assert grown < MOST_GROWTH
    assert seconds < MOST_SECONDS
