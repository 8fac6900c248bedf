"""What ``cspine doctor`` looks at. Each check tries the thing itself; that it is installed proves nothing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np

from cspine import __version__
from cspine.cli.extras import EXTRAS
from cspine.errors import BundleError, CspineError, DamagedFileError, MissingExtraError

SAMPLES = resources.files("cspine.cli") / "samples"
# A study of 300 slices of 512 x 512, its networks and the report stay below this.
WANTED_MEMORY = 2 * 2**30

# Every sample shows this ramp: HU = start + 40 x + 17 y.
SAMPLE_START, SAMPLE_STEP_X, SAMPLE_STEP_Y = -1024, 40, 17
LOSSY_HU = 8
RELU_FILE = "relu.onnx"

# File, name in DICOM PS3.6, lossy.
SYNTAXES: tuple[tuple[str, str, bool], ...] = (
    ("implicit.dcm", "Implicit VR Little Endian", False),
    ("explicit.dcm", "Explicit VR Little Endian", False),
    ("big-endian.dcm", "Explicit VR Big Endian", False),
    ("deflated.dcm", "Deflated Explicit VR Little Endian", False),
    ("rle.dcm", "RLE Lossless", False),
    ("jpeg-extended.dcm", "JPEG Extended, 12 bits", True),
    ("jpeg-lossless.dcm", "JPEG Lossless, process 14", False),
    ("jpeg-lossless-sv1.dcm", "JPEG Lossless, first-order prediction", False),
    ("jpeg-ls.dcm", "JPEG-LS Lossless", False),
    ("jpeg-ls-near.dcm", "JPEG-LS Near-Lossless", True),
    ("jpeg-2000.dcm", "JPEG 2000 Lossless", False),
    ("jpeg-2000-lossy.dcm", "JPEG 2000", True),
)


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question.

    Attributes:
        group: the heading it stands under.
        name: what was looked at.
        good: it works.
        detail: what was found.
        fix: what to do when it does not.
        fault: the error that predicting would end in; None when predicting works without it.
    """

    group: str
    name: str
    good: bool
    detail: str = ""
    fix: str = ""
    fault: type[CspineError] | None = None


def everything(bundle: Path | None = None) -> list[Check]:
    """All checks, in the order in which they are shown."""
    return [*machine(), *decoders(), *runtimes(), *bundles(bundle), *extras()]


def _attempt(group: str, name: str, trial: Callable[[], str], fix: str, fault: type[CspineError]) -> Check:
    """Run one trial; whatever goes wrong is the finding."""
    try:
        return Check(group, name, True, trial())
    except CspineError as error:
        return Check(group, name, False, error.message, error.fix or fix, error.__class__)
    except Exception as error:  # noqa: BLE001 a broken library may raise anything, and that is the answer
        return Check(group, name, False, f"{type(error).__name__}: {error}", fix, fault)


def machine() -> list[Check]:
    """Versions, processor and memory."""
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    total, free = memory()
    size = "unknown" if total is None else f"{total / 2**30:.1f} GiB"
    size += "" if free is None else f", {free / 2**30:.1f} GiB free"
    enough = free is None or free >= WANTED_MEMORY
    return [
        Check("this machine", "cspine", True, __version__),
        Check(
            "this machine", "Python", sys.version_info >= (3, 11), python, "Use Python 3.11 or newer", MissingExtraError
        ),
        Check("this machine", "processor", True, f"{os.cpu_count()} threads; {', '.join(cpu_features()) or 'no list'}"),
        Check("this machine", "memory", enough, size, "Close other programs: a study takes up to 2 GiB"),
    ]


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory in all and free, None where the system does not say."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total: int | None = page * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        total = None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return total, None
    return total, free


def cpu_features() -> list[str]:
    """Instruction sets that make the networks faster, of those this processor has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags]


def decoders() -> list[Check]:
    """Decode a small image in each transfer syntax and compare its pixels."""
    fix = "Reinstall: pip install --force-reinstall cspine"
    return [
        _attempt("decoders", title, partial(decode_sample, file, lossy), fix, MissingExtraError)
        for file, title, lossy in SYNTAXES
    ]


def decode_sample(file: str, lossy: bool) -> str:
    """Open one of the samples as any image is opened.

    Raises:
        DamagedFileError: its pixels are not what was stored.
    """
    from cspine.studies import open_image

    with resources.as_file(SAMPLES / file) as path:
        hu = open_image(path).pixels
    y, x = np.mgrid[:16, :16]
    off = float(np.abs(hu - (SAMPLE_STEP_X * x + SAMPLE_STEP_Y * y + SAMPLE_START)).max())
    if off > (LOSSY_HU if lossy else 0):
        raise DamagedFileError(f"pixels are off by up to {off:.0f} HU", where=file)
    return "decodes" if not lossy else f"decodes, within {off:.0f} HU"


def runtimes() -> list[Check]:
    """Run a network of one layer in each runtime, as the predictor runs its networks."""
    fix = "Reinstall: pip install --force-reinstall cspine"
    return [
        _attempt("runtimes", title, partial(run_sample, name), fix, MissingExtraError)
        for name, title in (("openvino", "OpenVINO"), ("onnxruntime", "ONNX Runtime"))
    ]


def run_sample(name: str) -> str:
    """Load and run the one-layer network; returns the runtime's version and precisions.

    Raises:
        BundleError: it cannot be loaded, or computes something else.
        MissingExtraError: the runtime is not installed.
    """
    from cspine.inference.runtime import make_runtime

    runtime = make_runtime(name)
    network = runtime.load((SAMPLES / RELU_FILE).read_bytes())
    answer = network({"x": np.array([[-1, 2]], dtype=np.float32)})["y"]
    if answer.tolist() != [[0.0, 2.0]]:
        raise BundleError("the runtime computes wrong results", fix="Reinstall it, or use the other one (--runtime)")
    return f"{runtime.name}, computes in f32{' and bf16' if runtime.supports('bf16') else ''}"


def bundles(folder: Path | None = None) -> list[Check]:
    """Load the built-in bundle, or another: every file must have the digest that the bundle states."""

    def load() -> str:
        from cspine.inference.bundle import Bundle

        bundle = Bundle.default() if folder is None else Bundle.load(folder)
        known = bundle.manifest
        return f"{known.name} {known.version}, {known.trained_on}; digests match"

    name = "built in" if folder is None else str(folder)
    return [_attempt("model bundles", name, load, "Reinstall cspine, or get the bundle again", BundleError)]


def extras() -> list[Check]:
    """Which optional parts are installed."""
    return [
        Check("optional parts", extra.name, not extra.missing, extra.purpose, "" if not extra.missing else extra.pip)
        for extra in EXTRAS
    ]
