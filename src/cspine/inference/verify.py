"""Is a bundle here what it was where it was made: the same bytes, and the same findings on a phantom it carries.

A bundle may hold a small synthetic scan and what its networks said of it. ``verify`` judges that scan again, in every
runtime and precision that would be used here, and compares. The scan itself is carried, not drawn again, so that
neither another processor nor a later phantom can be taken for a changed model.
"""

from __future__ import annotations

import gzip
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cspine.errors import BundleError
from cspine.findings import Findings, LevelFinding, LevelName, Point, Probability
from cspine.inference.bundle import STAGES, Bundle, Precision, write_bundle
from cspine.inference.predictor import Predictor
from cspine.inference.runtime import RUNTIMES, RuntimeName
from cspine.volume import Volume

EXPECTATION, PHANTOM = "verify.json", "verify.nii.gz"
VERIFY_FILES = (EXPECTATION, PHANTOM)
# The first patient whose phantom is carried.
SEED = 11
# The reference is float32 in the runtime that users get; others differ by rounding, bf16 by what its gate allows.
REFERENCE: tuple[RuntimeName, Precision] = ("openvino", "f32")
PROBABILITY_TOLERANCE: dict[Precision, float] = {"f32": 0.01, "bf16": 0.1}
CENTRE_TOLERANCE_MM: dict[Precision, float] = {"f32": 0.5, "bf16": 2.0}
EVIDENCE_TOLERANCE_MM = 6.0
MAX_VOXELS = 1 << 26
# The phantom is stored in steps of this, which is far below its noise and saves a third of its bytes.
STEP_HU = 8.0
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExpectedLevel(_Model):
    """What was said of one level; fields as in ``findings.LevelFinding``, evidence as the middle of its best box."""

    level: LevelName
    visible: bool
    body_center_mm: Point | None
    probability: Probability | None
    fracture: bool | None
    threshold: Probability | None
    evidence_mm: Point | None


class Expectation(_Model):
    """The content of verify.json.

    Attributes:
        schema_version: of this file.
        phantom: what the scan is, for a person.
        status: of the findings.
        patient: probability of any fracture.
        levels: C1 to C7.
    """

    schema_version: Literal["1"] = "1"
    phantom: str
    status: str
    patient: Probability | None
    levels: Annotated[tuple[ExpectedLevel, ...], Field(min_length=7, max_length=7)]


@dataclass(frozen=True, slots=True)
class Run:
    """One verification in one runtime.

    Attributes:
        runtime: name of the library and its version.
        precision: what was asked for.
        seconds: of the whole study.
        largest: difference of any probability from what was expected.
        mismatches: one sentence each; empty when all is as expected.
    """

    runtime: str
    precision: Precision
    seconds: float
    largest: float
    mismatches: tuple[str, ...]


def expectation_of(bundle: Bundle) -> tuple[Expectation, Volume]:
    """What a bundle says of the phantom that it carries.

    Raises:
        BundleError: it carries none, or what it carries cannot be read.
    """
    if not bundle.manifest.judges_volumes:
        raise BundleError(
            "the bundle judges single pictures, and no phantom can be judged with it",
            where=bundle.manifest.name,
            fix="Its digests are right; there is nothing else to verify",
        )
    missing = [name for name in VERIFY_FILES if name not in bundle.files]
    if missing:
        raise BundleError(
            "the bundle carries no phantom to verify it with",
            where=missing[0],
            fix="Its digests are right; add a phantom with: cspine bundle record DIR",
        )
    try:
        expected = Expectation.model_validate_json(bundle.files[EXPECTATION])
    except ValidationError as error:
        raise BundleError(f"invalid expectation: {error.errors()[0]['msg']}", where=EXPECTATION) from error
    return expected, _volume(bundle.files[PHANTOM])


def _volume(content: bytes) -> Volume:
    """The phantom as ``Volume`` in HU."""
    try:
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
        if len(image.shape) != 3 or math.prod(image.shape) > MAX_VOXELS:
            raise BundleError(f"expected a small volume, got shape {image.shape}", where=PHANTOM)
        hu = np.asarray(image.dataobj, dtype=np.int16).transpose(2, 1, 0)
    except (OSError, EOFError, ValueError, ImageFileError, HeaderDataError) as error:
        raise BundleError(f"cannot read the phantom: {error}", where=PHANTOM, fix="Get the bundle again") from error
    return Volume(np.ascontiguousarray(hu), _LPS_TO_RAS @ np.asarray(image.affine))


def _packed(volume: Volume) -> bytes:
    """NIfTI bytes of int16 HU in steps of ``STEP_HU``, the same for the same volume."""
    data = (np.round(volume.hu / STEP_HU) * STEP_HU).astype(np.int16).transpose(2, 1, 0)
    image = nibabel.Nifti1Image(data, _LPS_TO_RAS @ volume.affine)  # type: ignore[no-untyped-call]
    return gzip.compress(image.to_bytes(), mtime=0)


def draw_phantom(seed: int = SEED) -> tuple[Volume, str]:
    """A small scan of a whole synthetic neck with a broken dens and a burst C6, and a sentence on it."""
    from dataclasses import replace

    from cspine.phantoms.acquisition import acquire
    from cspine.phantoms.fracture_types import FractureType
    from cspine.phantoms.fractures import plan_fracture
    from cspine.phantoms.scanner import Scanner
    from cspine.phantoms.scene import make_scene

    patient, breaks, noise = np.random.SeedSequence(seed).spawn(3)
    whole = make_scene(int(patient.generate_state(1)[0]), fractures="none")
    rng = np.random.default_rng(breaks)
    planted = ((2, FractureType.DENS_II), (6, FractureType.BURST))
    broken = tuple(
        plan_fracture(rng, level, whole.spine.landmarks[level], type=kind, severity=0.7) for level, kind in planted
    )
    scene = replace(whole, fractures=broken)
    scanner = Scanner(pixel=0.9, matrix=(144, 128), spacing=1.5, thickness=1.5, above_c1=25.0, below_c7=30.0)
    acquired = acquire(scene, scanner, np.random.default_rng(noise))
    return acquired.volume, f"synthetic neck CT, seed {seed}, C2 {planted[0][1]} and C6 {planted[1][1]}"


def recorded(bundle: Bundle, volume: Volume, phantom: str, *, threads: int | None = None) -> dict[str, bytes]:
    """The two files that make a bundle verifiable, by name.

    Args:
        bundle: whose networks judge.
        volume: HU; what is stored is rounded to ``STEP_HU``, and that is what is judged.
        phantom: one sentence on it.
        threads: processor threads.
    """
    packed = _packed(volume)
    runtime, precision = REFERENCE
    findings = Predictor(bundle, runtime, threads, precision=precision).predict(_volume(packed))
    expected = Expectation(
        phantom=phantom,
        status=findings.status,
        patient=findings.patient.probability,
        levels=tuple(_expected(item) for item in findings.levels),
    )
    return {EXPECTATION: (expected.model_dump_json(indent=2) + "\n").encode(), PHANTOM: packed}


def _expected(item: LevelFinding) -> ExpectedLevel:
    return ExpectedLevel(
        level=item.level,
        visible=item.visible,
        body_center_mm=item.body_center_mm,
        probability=item.probability,
        fracture=item.fracture,
        threshold=item.threshold,
        evidence_mm=_middles(item)[0] if item.fracture and item.evidence else None,
    )


def _middles(item: LevelFinding) -> list[Point]:
    """Middles of a level's evidence boxes, best first."""
    middles = []
    for box in item.evidence:
        x0, y0, z0, x1, y1, z1 = box.box_mm
        middles.append(((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2))
    return middles


def record_into(folder: Path, seed: int = SEED, *, threads: int | None = None) -> Bundle:
    """Draw a phantom and put it into the bundle in ``folder``, with what the bundle says of it.

    Raises:
        BundleError: no usable bundle there, or it does not judge the phantom.
    """
    bundle = Bundle.load(folder)
    volume, phantom = draw_phantom(seed)
    files = {name: content for name, content in bundle.files.items() if name not in VERIFY_FILES}
    files |= recorded(bundle, volume, phantom, threads=threads)
    fields = bundle.manifest.model_dump(exclude={"schema_version", "files"}, mode="json")
    return write_bundle(folder, files, fields)


def forget(folder: Path) -> None:
    """Remove what was recorded with networks or calibrations that are about to be replaced."""
    for name in VERIFY_FILES:
        (folder / name).unlink(missing_ok=True)


def _nearest(wanted: Point, item: LevelFinding) -> Point | None:
    """The middle of the evidence box next to a point."""
    return min(_middles(item), key=lambda place: math.dist(place, wanted), default=None)


def verify(bundle: Bundle, *, threads: int | None = None) -> Iterator[Run]:
    """Judge the bundle's phantom in OpenVINO and ONNX Runtime in float32, and in the precision in use here.

    Args:
        bundle: loaded, so its digests are right.
        threads: processor threads; None for all.

    Raises:
        BundleError: it carries no phantom, or a runtime cannot load it.
    """
    expected, volume = expectation_of(bundle)
    for runtime in RUNTIMES:
        yield _run(bundle, runtime, "f32", expected, volume, threads)
        used = Predictor(bundle, runtime, threads)
        if any(used.precision_of(stage) == "bf16" for stage in STAGES if stage in bundle.manifest.stages):
            yield _run(bundle, runtime, "bf16", expected, volume, threads)


def _run(
    bundle: Bundle,
    runtime: RuntimeName,
    precision: Precision,
    expected: Expectation,
    volume: Volume,
    threads: int | None,
) -> Run:
    """Judge once; bf16 means what ``auto`` chooses, stage by stage."""
    start = time.perf_counter()
    predictor = Predictor(bundle, runtime, threads, precision="auto" if precision == "bf16" else "f32")
    findings = predictor.predict(volume)
    seconds = time.perf_counter() - start
    source = findings.provenance.bundle
    differences = [abs(a - b) for a, b in _probabilities(expected, findings)]
    return Run(
        runtime=runtime if source is None else source.runtime,
        precision=precision,
        seconds=seconds,
        largest=max(differences, default=0.0),
        mismatches=tuple(compare(expected, findings, precision)),
    )


def _probabilities(expected: Expectation, found: Findings) -> Iterator[tuple[float, float]]:
    pairs = [(expected.patient, found.patient.probability)]
    pairs += [(a.probability, b.probability) for a, b in zip(expected.levels, found.levels, strict=True)]
    yield from ((a, b) for a, b in pairs if a is not None and b is not None)


def compare(expected: Expectation, found: Findings, precision: Precision = "f32") -> Iterator[str]:
    """What differs by more than the precision explains, one sentence each."""
    near = PROBABILITY_TOLERANCE[precision]
    if expected.status != found.status:
        yield f"status: expected {expected.status}, got {found.status}"
    yield from _probability("patient", expected.patient, found.patient.probability, near)
    for wanted, got in zip(expected.levels, found.levels, strict=True):
        name = wanted.level
        if wanted.visible != got.visible:
            yield f"{name}: expected visible {wanted.visible}, got {got.visible}"
            continue
        yield from _probability(name, wanted.probability, got.probability, near)
        yield from _place(f"{name} centre", wanted.body_center_mm, got.body_center_mm, CENTRE_TOLERANCE_MM[precision])
        # A probability that lies at the threshold may fall to either side of it.
        apart = abs((wanted.probability or 0.0) - (wanted.threshold or 0.0)) > near
        if wanted.fracture != got.fracture and apart:
            yield f"{name}: expected fracture {wanted.fracture}, got {got.fracture}"
        elif wanted.evidence_mm is not None and got.fracture:
            yield from _place(
                f"{name} evidence", wanted.evidence_mm, _nearest(wanted.evidence_mm, got), EVIDENCE_TOLERANCE_MM
            )


def _probability(name: str, wanted: float | None, got: float | None, near: float) -> Iterator[str]:
    if (wanted is None) != (got is None) or (wanted is not None and got is not None and abs(wanted - got) > near):
        yield f"{name}: expected probability {_number(wanted)} within {near:g}, got {_number(got)}"


def _place(name: str, wanted: Point | None, got: Point | None, near: float) -> Iterator[str]:
    if wanted is None and got is None:
        return
    away = math.inf if wanted is None or got is None else math.dist(wanted, got)
    if away > near:
        yield f"{name}: expected within {near:g} mm, got {away:.1f} mm away"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
