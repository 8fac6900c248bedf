"""Many phantoms in a folder: as NIfTI, as DICOM, or laid out as the RSNA 2022 data set.

``<out>/truth/<name>.json`` is written last: a study that has it is finished, so an interrupted run goes on where it
stopped. The tables are made from these files at the end, and again after every run.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from cspine.anatomy import LEVELS
from cspine.cases import Case
from cspine.errors import OutputError, UsageError
from cspine.phantoms.scanner import PRESETS, Preset
from cspine.phantoms.write import output_error, write_dicom, write_nifti, write_rsna_mask, writing

if TYPE_CHECKING:
    from cspine.phantoms.blending import MeshLibrary

Layout = Literal["rsna2022", "nifti", "dicom"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

SETTINGS_FILE = "phantoms.json"
TRUTH_FOLDER = "truth"
# Phantom k of seed s is made from s * SEEDS_PER_SET + k, so sets of different seeds share no phantom.
SEEDS_PER_SET = 100_000
# The public part of RSNA 2022 names three studies to predict.
TEST_STUDIES = 3
Truth = dict[str, Any]
# Share of patients drawn from meshes when there are any.
MESH_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Cohort:
    """A set of phantoms to be made.

    Attributes:
        out: the folder.
        layout: how files are laid out.
        seed: of the set.
        preset: kind of scan.
        multiplier: factor on the prevalence of fractures.
        masks: share of studies that get a segmentation (RSNA 2022 layout only; 87 of 2019 there).
        meshes: folders of vertebra meshes; none draws everybody from sizes.
        mesh_share: share of patients drawn with them.
    """

    out: Path
    layout: Layout = "rsna2022"
    seed: int = 0
    preset: Preset = "clinical"
    multiplier: float = 1.0
    masks: float = 1.0
    meshes: tuple[Path, ...] = ()
    mesh_share: float = MESH_SHARE

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UsageError(f"no layout {self.layout!r}, expected one of {', '.join(LAYOUTS)}", where="--layout")
        if self.preset not in PRESETS:
            raise UsageError(f"no preset {self.preset!r}, expected one of {', '.join(PRESETS)}", where="--preset")
        if not 0 <= self.seed < 2**40 or not 0 <= self.masks <= 1 or self.multiplier < 0:
            raise UsageError("expected a seed of 0 or more, a share of masks in 0..1 and a multiplier of 0 or more")
        if not 0 <= self.mesh_share <= 1:
            raise UsageError(f"expected a share of 0..1 drawn from meshes, got {self.mesh_share}", where="--mesh-share")

    def seed_of(self, k: int) -> int:
        """Seed of phantom ``k`` for ``make_case``."""
        return self.seed * SEEDS_PER_SET + k

    def name_of(self, k: int) -> str:
        """Name of phantom ``k``."""
        return f"phantom-{self.preset}-{self.seed_of(k):06d}"

    def missing(self, count: int) -> list[int]:
        """Which of the first ``count`` phantoms are not finished.

        Raises:
            UsageError: more than one set holds.
        """
        if not 1 <= count <= SEEDS_PER_SET:
            raise UsageError(f"expected 1 to {SEEDS_PER_SET} phantoms, got {count}", where="--count")
        return [k for k in range(count) if not self._truth_file(self.name_of(k)).is_file()]

    def begin(self) -> None:
        """Make the folder and note the settings.

        Raises:
            UsageError: the folder holds phantoms of other settings.
            OutputError: the folder cannot be written.
        """
        settings = {key: value for key, value in asdict(self).items() if key not in ("out", "meshes", "mesh_share")}
        if self.meshes:
            # By content, not by place: the same sets may lie elsewhere when the run goes on.
            settings |= {"meshes": [digest_of(folder) for folder in self.meshes], "mesh_share": self.mesh_share}
        note = self.out / SETTINGS_FILE
        if note.is_file():
            try:
                same = json.loads(note.read_text(encoding="utf-8")) == settings
            except ValueError:
                same = False
            if not same:
                raise UsageError(
                    "the folder holds phantoms made with other settings",
                    where=str(note),
                    fix="Choose another folder, or the same layout, seed, preset, prevalence, masks and meshes",
                )
            return
        with writing(note) as partial:
            partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def make(self, k: int) -> str:
        """Make and write phantom ``k``; returns its name.

        Raises:
            OutputError: it cannot be written.
            ShapeError: a set of meshes cannot be used.
        """
        from cspine.phantoms.case import make_case

        name = self.name_of(k)
        meshes = mesh_library(self.meshes, self.mesh_share) if self.meshes else None
        case = make_case(self.seed_of(k), preset=self.preset, multiplier=self.multiplier, name=name, meshes=meshes)
        self.write(case, self.seed_of(k))
        return name

    def write(self, case: Case, seed: int) -> None:
        """Write one finished case, its truth last."""
        truth = truth_of(case, seed)
        if self.layout == "nifti":
            write_nifti(case.volume.hu, case.volume.affine, self.out / "studies" / f"{case.name}.nii.gz")
            self._write_masks(case)
        elif self.layout == "dicom":
            truth["file_numbers"] = write_dicom(case, self.out / "studies" / case.name)
            self._write_masks(case)
        else:
            truth["file_numbers"] = self._write_rsna(case, truth["study_uid"], seed)
        with writing(self._truth_file(case.name)) as partial:
            partial.write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")

    def _write_masks(self, case: Case) -> None:
        for part, mask in (("labels", case.labels), ("fracture", case.fracture)):
            if mask is not None:
                write_nifti(mask, case.volume.affine, self.out / TRUTH_FOLDER / f"{case.name}.{part}.nii.gz")

    def _write_rsna(self, case: Case, uid: str, seed: int) -> list[int]:
        numbers = write_dicom(case, self.out / "train_images" / uid, shuffle=False)
        chosen = np.random.default_rng([seed, 87]).random() < self.masks
        if case.labels is not None and chosen:
            write_rsna_mask(case.labels, case.volume.affine, self.out / "segmentations" / f"{uid}.nii")
        return numbers

    def finish(self) -> int:
        """Write the tables of all finished phantoms; returns how many there are.

        Raises:
            OutputError: a truth file cannot be read, or a table not written.
        """
        truths = [self._read(path) for path in sorted((self.out / TRUTH_FOLDER).glob("*.json"))]
        tables = {"truth.csv": _truth_rows(truths)}
        if self.layout == "rsna2022":
            tables |= rsna_tables(truths)
        for name, rows in tables.items():
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            with writing(self.out / name) as partial:
                partial.write_text(text.getvalue(), encoding="utf-8")
        return len(truths)

    def _read(self, path: Path) -> Truth:
        try:
            truth: Truth = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise output_error(error, path) from error
        except ValueError as error:
            raise OutputError("the truth is not JSON", where=str(path), fix="Remove it and run again") from error
        return truth

    def _truth_file(self, name: str) -> Path:
        return self.out / TRUTH_FOLDER / f"{name}.json"


@lru_cache(maxsize=2)
def mesh_library(folders: tuple[Path, ...], share: float) -> MeshLibrary:
    """The sets in ``folders``, read once a process.

    Raises:
        ShapeError: a set cannot be used.
    """
    from cspine.phantoms.blending import MeshLibrary

    return MeshLibrary.load(folders, share)


def digest_of(folder: Path) -> str:
    """SHA-256 over the meshes C1..C7 in ``folder``.

    Raises:
        ShapeError: they are not all there.
    """
    import hashlib

    from cspine.phantoms.meshes import mesh_files

    total = hashlib.sha256()
    for path in mesh_files(folder).values():
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def truth_of(case: Case, seed: int) -> Truth:
    """Everything that is true of a case, as JSON holds it."""
    from cspine.phantoms.write import phantom_uid

    levels = {level.name: asdict(truth) for level, truth in case.levels.items()}
    boxes = [{**asdict(box), "level": box.level.name if box.level else None} for box in case.boxes]
    return {
        "name": case.name,
        "seed": seed,
        "study_uid": phantom_uid(case, "study"),
        "shape": list(case.volume.shape),
        "affine_lps": case.volume.affine.tolist(),
        "scanner": case.volume.source.acquisition,
        "fractured": bool(case.patient_fractured),
        "levels": levels,
        "boxes": boxes,
        # T1 is 8 in masks.
        "thoracic_mm": {f"T{label - 7}": list(point) for label, point in sorted((case.thoracic_mm or {}).items())},
    }


def _truth_rows(truths: Iterable[Truth]) -> list[list[object]]:
    head: list[object] = ["name", "study_uid", "level", "visible_fraction", "fractured", "types", "severity"]
    rows = [[*head, "old_fracture", "center_x", "center_y", "center_z"]]
    for truth in truths:
        for name, level in truth["levels"].items():
            center = [f"{v:.2f}" for v in level["body_center_mm"]]
            state = [f"{level['visible_fraction']:.3f}", int(level["fractured"]), ";".join(level["types"])]
            detail = [f"{level['severity']:.2f}", int(level["old_fracture"]), *center]
            rows.append([truth["name"], truth["study_uid"], name, *state, *detail])
    return rows


def rsna_tables(truths: list[Truth]) -> dict[str, list[list[object]]]:
    """The label files of RSNA 2022, with its columns."""
    names = [level.name for level in LEVELS]
    train: list[list[object]] = [["StudyInstanceUID", "patient_overall", *names]]
    boxes: list[list[object]] = [["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]]
    test: list[list[object]] = [["row_id", "StudyInstanceUID", "prediction_type"]]
    sample: list[list[object]] = [["row_id", "fractured"]]
    for truth in truths:
        found = [int(truth["levels"][name]["fractured"]) for name in names]
        train.append([truth["study_uid"], int(any(found)), *found])
        boxes += _rsna_boxes(truth)
    for truth in truths[-TEST_STUDIES:]:
        for kind in ("patient_overall", *names):
            test.append([f"{truth['study_uid']}_{kind}", truth["study_uid"], kind])
            sample.append([f"{truth['study_uid']}_{kind}", 0.5])
    return {
        "train.csv": train,
        "train_bounding_boxes.csv": boxes,
        "test.csv": test,
        "sample_submission.csv": sample,
    }


def _rsna_boxes(truth: Truth) -> list[list[object]]:
    """One box a slice, around all that is broken in it; slices by the number in their file name."""
    whole: dict[int, list[int]] = {}
    for box in truth["boxes"]:
        old = whole.get(box["slice_index"], [10**6, 10**6, 0, 0])
        whole[box["slice_index"]] = [
            min(old[0], box["x_min"]),
            min(old[1], box["y_min"]),
            max(old[2], box["x_max"]),
            max(old[3], box["y_max"]),
        ]
    rows = []
    for index, (x_min, y_min, x_max, y_max) in sorted(whole.items()):
        size = [float(x_max - x_min), float(y_max - y_min)]
        rows.append([truth["study_uid"], float(x_min), float(y_min), *size, truth["file_numbers"][index]])
    return rows
