"""``prepare_view``: what the reading room shows of a judged CT, written once, where the pixels are decoded anyway."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import OutputError
from cspine.findings import Evidence, LevelFinding
from cspine.reports import figures
from cspine.reports.images import ScalarField
from cspine.reports.inputs import Predicted, ReportInput
from cspine.volume import Volume
from cspine.web.viewing_facts import (
    FACTS_FILE,
    VIEW_FOLDER,
    Point,
    SpineMap,
    SpineMark,
    ViewEvidence,
    ViewFacts,
    ViewGrid,
    ViewLevel,
)
from cspine.web.viewing_grid import MAX_VOXELS, Shown, evidence_on, labels_on, shown_part, vertebra
from cspine.web.viewing_mesh import surface_net, to_mz3

__all__ = ["VIEW_FOLDER", "prepare_view"]

# For browsers with WebGL.
CT_FILE, LABELS_FILE, EVIDENCE_FILE = "ct.nii.gz", "labels.nii.gz", "evidence.nii.gz"
# The same voxels for pictures that the server draws; opened without reading them.
CT_ARRAY, LABELS_ARRAY, EVIDENCE_ARRAY = "ct.npy", "labels.npy", "evidence.npy"
# The slices of the CT itself, each on its own.
SLICES_FILE = "slices.zip"
MAP_FILE, MAP_OVERLAY = "map.jpg", "map.png"
NEIGHBOURS, NEIGHBOURS_FILE = 8, "below.mz3"
# The mask's own staircase is about as wide as its voxels.
MESH_SMOOTH_MM = 0.9
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where things are written, and how large what browsers fetch became."""

    folder: Path
    sizes: dict[str, int]

    def put(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        self.sizes[name] = len(data)
        return name


def prepare_view(volume: Volume, prediction: Predicted, folder: Path, *, max_voxels: int = MAX_VOXELS) -> ViewFacts:
    """Write what the reading room needs; ``view.json`` comes last: where it is, the folder is whole.

    Args:
        volume: the CT that was judged, HU.
        prediction: from ``Predictor.predict_full``.
        folder: made when missing; by custom ``results / VIEW_FOLDER``.
        max_voxels: of the volume that browsers fetch.

    Returns:
        What ``view.json`` holds.

    Raises:
        OutputError: the folder cannot be written.
    """
    report = ReportInput.of(prediction, volume)
    canonical, labels = volume.reoriented(), report.labels
    if labels is None:
        labels = ScalarField(np.zeros((1, 1, 1), np.uint8), np.eye(4))
    shown = shown_part(canonical, labels, max_voxels=max_voxels)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FACTS_FILE).unlink(missing_ok=True)
        place = _Place(folder, {})
        _write_volumes(place, shown, labels, _maps(report, canonical))
        _write_slices(folder / SLICES_FILE, canonical)
        facts = _facts(place, report, canonical, shown, labels)
        (folder / FACTS_FILE).write_text(facts.model_dump_json(), encoding="utf-8")
    except OSError as error:
        raise OutputError("the pictures of the reading room cannot be written", fix="Look at the disk") from error
    return facts


def _maps(report: ReportInput, volume: Volume) -> dict[str, ScalarField]:
    """Evidence by level; of a level with boxes and no map, the boxes."""
    maps = dict(report.evidence)
    for item in report.findings.levels:
        if item.level not in maps and item.evidence:
            maps[item.level] = _boxes(item, volume, report)
    return maps


def _boxes(item: LevelFinding, volume: Volume, report: ReportInput) -> ScalarField:
    """The boxes of a level as a map of their scores, on the CT's own voxels around them."""
    places = [(one.score, *report.place_of(one)) for one in item.evidence]
    low = np.array([[at, box[1], box[0]] for _, at, box in places]).min(axis=0).astype(int) - 1
    high = np.array([[at, box[3], box[2]] for _, at, box in places]).max(axis=0).astype(int) + 3
    low, high = np.maximum(low, 0), np.minimum(high, volume.shape)
    values = np.zeros(np.maximum(high - low, 1), dtype=np.float32)
    for score, at, box in places:
        x0, y0, x1, y1 = (round(value) for value in box)
        part = values[at - low[0], max(y0 - low[1], 0) : y1 - low[1], max(x0 - low[2], 0) : x1 - low[2]]
        np.maximum(part, score, out=part)
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_world(low[::-1])
    return ScalarField(values, affine)


def _write_volumes(place: _Place, shown: Shown, labels: ScalarField, maps: Mapping[str, ScalarField]) -> None:
    """CT, outlines and evidence on one grid, as NIfTI for browsers and as arrays for the server."""
    grid = shown.volume
    arrays: list[tuple[str, str, NDArray[Any]]] = [
        (CT_FILE, CT_ARRAY, grid.hu),
        (LABELS_FILE, LABELS_ARRAY, labels_on(grid, labels)),
        (EVIDENCE_FILE, EVIDENCE_ARRAY, evidence_on(grid, dict(maps))),
    ]
    for nifti, array, values in arrays:
        np.save(place.folder / array, values, allow_pickle=False)
        place.put(nifti, to_nifti(values, grid.affine, labels=nifti == LABELS_FILE))


def to_nifti(values: NDArray[Any], affine: NDArray[np.float64], *, labels: bool = False) -> bytes:
    """Gzipped NIfTI-1 of ``[z, y, x]`` with an affine to LPS millimetres. Same input, same bytes.

    Args:
        values: int16 or uint8.
        affine: index ``(x, y, z, 1)`` → LPS millimetres.
        labels: whether the values are names and no amounts; NiiVue outlines such volumes alone.
    """
    import nibabel

    image: Any = nibabel.Nifti1Image(values.transpose(2, 1, 0), _LPS_TO_RAS @ affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    if labels:
        image.header.set_intent("label")
    # The weakest level: noise hardly gets smaller by more work, and this stands between a person and the result.
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _write_slices(path: Path, volume: Volume) -> None:
    """Every slice of the CT, packed on its own: low bytes, then high bytes, which is smaller and faster."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, slice_hu in enumerate(volume.hu):
            whole = np.clip(np.rint(slice_hu), -32768, 32767).astype("<i2")
            planes = np.ascontiguousarray(whole).view(np.uint8).reshape(-1, 2).T
            archive.writestr(str(number), np.ascontiguousarray(planes).tobytes())


def read_slice(path: Path, number: int, shape: tuple[int, int]) -> NDArray[np.int16]:
    """One slice of the CT, int16 HU ``[y, x]``.

    Raises:
        KeyError: there is no such slice.
        OSError: the file cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        planes = np.frombuffer(archive.read(str(number)), dtype=np.uint8).reshape(2, -1)
    return np.ascontiguousarray(planes.T).view("<i2").reshape(shape).astype(np.int16, copy=False)


def _facts(place: _Place, report: ReportInput, volume: Volume, shown: Shown, labels: ScalarField) -> ViewFacts:
    z, y, x = shown.volume.shape
    grid = ViewGrid(
        shape=(z, y, x),
        spacing=shown.volume.spacing,
        affine=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in shown.volume.affine.tolist()),
        first_slice=shown.first_slice,
        slices=shown.slices,
    )
    evidence = tuple(found for item in report.findings.levels for found in _evidence(item, report, grid))
    levels = tuple(_level(place, item, labels, evidence, shown.volume) for item in report.findings.levels)
    below = _mesh(place, NEIGHBOURS_FILE, labels, NEIGHBOURS)
    return ViewFacts(
        source_shape=volume.shape,
        source_spacing=volume.spacing,
        grid=grid,
        levels=levels,
        evidence=evidence,
        neighbours=below,
        map=_map(place, report),
        files=place.sizes,
    )


def _evidence(item: LevelFinding, report: ReportInput, grid: ViewGrid) -> list[ViewEvidence]:
    """Evidence of a level from head to feet."""

    def middle(one: Evidence) -> Point:
        x0, y0, z0, x1, y1, z1 = one.box_mm
        return (x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2

    found = []
    for one in item.evidence:
        at, box = report.place_of(one)
        found.append(
            ViewEvidence(
                level=item.level,
                slice_index=at,
                view_slice=grid.slice_of(at),
                at_mm=middle(one),
                box_px=box,
                score=one.score,
            )
        )
    return sorted(found, key=lambda one: (-one.slice_index, -one.score))


def _level(
    place: _Place, item: LevelFinding, labels: ScalarField, evidence: tuple[ViewEvidence, ...], view: Volume
) -> ViewLevel:
    own = [one for one in evidence if one.level == item.level]
    strongest = max(own, key=lambda one: one.score, default=None)
    jump = item.body_center_mm if strongest is None else strongest.at_mm
    if jump is not None:
        index = view.to_index(jump)
        if ((index < -0.5) | (index > np.asarray(view.shape[::-1]) - 0.5)).any():
            jump = None  # it lies outside the scan
    mesh = _mesh(place, f"{item.level}.mz3", labels, int(item.level[1:]))
    return ViewLevel(level=item.level, center_mm=item.body_center_mm, jump_mm=jump, mesh=mesh)


def _mesh(place: _Place, name: str, labels: ScalarField, value: int) -> str | None:
    piece = vertebra(labels, value, smooth_mm=MESH_SMOOTH_MM)
    surface = None if piece is None else surface_net(piece)
    return None if surface is None else place.put(name, to_mz3(surface))


def _map(place: _Place, report: ReportInput) -> SpineMap | None:
    """The curved sagittal picture of the HTML report; None when no level was located."""
    pictures = figures.glance(report)
    if not pictures or not pictures[0].marks:
        return None
    picture = pictures[0]
    overlay = place.put(MAP_OVERLAY, picture.overlays[0]) if picture.overlays else None
    marks = tuple(SpineMark(level=m.level, x=m.x, y=m.y, label_x=m.label_x) for m in picture.marks)
    return SpineMap(
        file=place.put(MAP_FILE, picture.base),
        overlay=overlay,
        width=picture.width,
        height=picture.height,
        alt=picture.alt,
        marks=marks,
    )
