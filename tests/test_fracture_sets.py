"""Test sets of the classifier: what is in them, that they share nothing with training, and that they resume."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case, SliceBox
from cspine.cli.app import app
from cspine.errors import StudyError, UsageError
from cspine.evaluation import fracture_sets, labelling
from cspine.evaluation.fracture_metrics import (
    displacement_class,
)
from cspine.evaluation.fracture_sets import FracturePhantoms, PlantedFractures, RealScan, StudyKind
from cspine.evaluation.kept_cases import KeptCases
from cspine.evaluation.phantoms import PhantomSet
from cspine.evaluation.running import evaluate_cases, stored_record
from cspine.phantoms.acquisition import acquire
from cspine.phantoms.breakage import Extent, Motion, Piece, Surface
from cspine.phantoms.case import case_of
from cspine.phantoms.confounders import ConfounderKind, kinds_of, plan_confounder, possible_confounders
from cspine.phantoms.crush import Chips, Crush
from cspine.phantoms.displacement import FACE_MM, displacement_mm
from cspine.phantoms.fractures import plan_fracture
from cspine.phantoms.scanner import Scanner
from cspine.phantoms.shatter import Shatter
from cspine.phantoms.spine import build_spine, sample_anatomy
from cspine.volume import Volume
from fake_predictor import findings_of
from fake_scene import FakeFracture, FakeScene
from training_factory import block_case


@pytest.fixture(scope="module")
def landmarks() -> dict[int, Any]:
    return build_spine(sample_anatomy(np.random.default_rng(3)), 3.0).landmarks


# How far a fracture is displaced.


STILL = Motion()


def parted(motion: Motion = STILL, *, gap: float = 0.0, sign: int = 1) -> Shatter:
    surface = Surface((1.0, 2.0, 3.0), (0.0, 0.0, 1.0), gap)
    extent = Extent(((1.0, 2.0, 3.0), (1.0, 2.0, 9.0)), radius=9.0)
    return Shatter((Piece(((surface, sign),), extent, motion),))


def test_displacement_is_cleft_plus_movement() -> None:
    assert displacement_mm([]) == 0
    assert displacement_mm([parted(gap=0.4)]) == pytest.approx(0.4)
    assert displacement_mm([parted(Motion(shift=(0.0, 2.0, 0.0)))]) == pytest.approx(2.0)
    assert displacement_mm([parted(Motion(shift=(0.0, 3.0, 0.0)), gap=4.0)]) == pytest.approx(5.0)
    # A piece on the other side of the cut parts the other way.
    assert displacement_mm([parted(Motion(shift=(0.0, 0.0, -1.0)), gap=1.0, sign=-1)]) == pytest.approx(2.0)
    assert displacement_mm([parted(Motion(shift=(0.0, 0.0, -1.0)), gap=1.0)]) == pytest.approx(0.0, abs=1e-9)


def test_displacement_of_a_tilted_piece_is_that_at_the_edge_of_its_face() -> None:
    tilted = parted(Motion(turn=(10.0, 0.0, 0.0), pivot=(1.0, 2.0, 3.0)))
    assert displacement_mm([tilted]) == pytest.approx(2 * FACE_MM * np.sin(np.radians(5.0)), abs=1e-6)


def test_displacement_of_crushed_bone_is_its_lost_height_and_splinters_do_not_count() -> None:
    crush = Crush(endplate=6, floor=2, front=-8, back=8, half_width=9, loss_front=3.5, loss_back=0.5)
    chips = Chips(((0.0, 0.0, 0.0),), ((2.0, 2.0, 2.0),), ((0.0, 0.0, 0.0),), (True,))
    assert displacement_mm([crush, chips, parted(gap=0.5)]) == 3.5


@pytest.mark.parametrize(("level", "kind"), [(2, "dens-ii"), (2, "hangman"), (5, "facet"), (6, "spinous-process")])
def test_planned_hairlines_and_displaced_fractures_fall_in_their_classes(
    landmarks: dict[int, Any], level: int, kind: str
) -> None:
    def of(severity: float, seed: int) -> float:
        rng = np.random.default_rng(seed)
        return displacement_mm(plan_fracture(rng, level, landmarks[level], type=kind, severity=severity).changes)

    assert all(displacement_class(of(0.0, seed)) == "below 1 mm" for seed in range(8))
    assert all(displacement_class(of(1.0, seed)) == "2 mm and more" for seed in range(8))


def test_displacement_classes_meet_at_their_bounds() -> None:
    assert [displacement_class(x) for x in (0, 0.999, 1.0, 2.0)] == [
        "below 1 mm", "below 1 mm", "1 to 2 mm", "2 mm and more",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="0 mm or more"):
        displacement_class(-0.1)


# What looks like a fracture.


@pytest.mark.parametrize("level", range(1, 8))
def test_every_possible_confounder_can_be_planned_and_is_named(landmarks: dict[int, Any], level: int) -> None:
    for kind in possible_confounders(level):
        planned = plan_confounder(np.random.default_rng(1), level, landmarks[level], kind)
        assert kinds_of((planned, parted())) == (str(kind),)
    wrong = ConfounderKind.SPUR if level < 3 else ConfounderKind.CLEFT
    with pytest.raises(UsageError, match="cannot have"):
        plan_confounder(np.random.default_rng(1), level, landmarks[level], wrong)


def test_the_truth_of_a_phantom_names_displacement_and_confounders(landmarks: dict[int, Any]) -> None:
    acute = FakeFracture(3, changes=(parted(gap=0.5),)), FakeFracture(3, changes=(parted(gap=1.5),))
    scene = FakeScene((*acute, FakeFracture(5, chronic=True, changes=(parted(gap=3.0),))))
    scene.confounders[6] = (plan_confounder(np.random.default_rng(0), 6, landmarks[6], ConfounderKind.LIMBUS),)
    scene.spine.anatomy.fused = (4,)
    scanner = Scanner(pixel=1.0, matrix=(90, 90), spacing=1.5, thickness=1.5, above_c1=15, below_c7=15)
    levels = case_of(scene, acquire(scene, scanner, np.random.default_rng(0)), name="fake").levels
    assert {level: truth.displacement_mm for level, truth in levels.items() if truth.displacement_mm is not None} == {
        Level.C3: 1.5
    }
    named = {level: truth.confounders for level, truth in levels.items() if truth.confounders}
    assert named == {Level.C4: ("fused",), Level.C5: ("fused",), Level.C6: ("limbus",)}


# The sets.


def test_no_set_shares_a_seed_with_another_or_with_training() -> None:
    from cspine.training.generate import SEED_BASE

    largest = fracture_sets.SEEDS - 1, fracture_sets.CASES_PER_SEED - 1
    ranges = [
        range(fracture_sets.case_seed(name, 0, 0), fracture_sets.case_seed(name, *largest) + 1)
        for name in fracture_sets.SEED_BASE
    ]
    ordered = sorted(ranges, key=lambda r: r.start)
    assert all(a.stop <= b.start for a, b in pairwise(ordered))
    assert ordered[0].start > PhantomSet(seed=100_000).phantom_seed(9_999) > max(SEED_BASE.values()) + 10_000_000


def test_names_say_what_makes_a_study(tmp_path: Path) -> None:
    sets = [FracturePhantoms(8), FracturePhantoms(8, 1), FracturePhantoms(8, preset="clinical")]
    sets.append(FracturePhantoms(8, meshes=tmp_path))
    names = [one.name(k) for one in sets for k in range(8)]
    assert len(set(names)) == len(names)
    kinds = [sets[0].kind(k) for k in range(8)]
    assert kinds.count(StudyKind.FRACTURED) == 4
    assert kinds.count(StudyKind.CONFOUNDED) == kinds.count(StudyKind.PLAIN) == 2


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": 10_001}, {"count": 1, "seed": -1}, {"count": 1, "preset": "x"}]
)
def test_sets_refuse_what_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        FracturePhantoms(**wrong)
    with pytest.raises(UsageError, match="scan"):
        PlantedFractures(3)


@dataclass(frozen=True)
class BareScene:
    spine: Any
    confounders: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    fractures: tuple[Any, ...] = ()


def test_a_confounded_scene_is_unbroken_and_full_of_confounders(landmarks: dict[int, Any]) -> None:
    bare: Any = BareScene(SimpleNamespace(landmarks=landmarks), {3: (parted(),)})
    kinds = set()
    for seed in range(40):
        scene = fracture_sets.confounded(bare, np.random.default_rng(seed))
        assert [f.chronic for f in scene.fractures] == [True]
        assert scene.fractures[0].severity >= 0.2
        old = scene.fractures[0].level
        assert not kinds_of(scene.confounders.get(old, ()))
        assert scene.confounders[3][0] == parted()
        kinds |= {kind for level in range(1, 8) for kind in kinds_of(scene.confounders.get(level, ()))}
    assert kinds >= {"spur", "limbus", "unfused-apophysis", "arch-cleft"}


def test_training_phantoms_have_what_is_taken_for_a_fracture_beside_fractures(landmarks: dict[int, Any]) -> None:
    from cspine.training.generate import eventful

    acute = old = both = odd = 0
    for seed in range(20):
        bare: Any = BareScene(SimpleNamespace(landmarks=landmarks))
        scene = eventful(bare, np.random.default_rng(seed), 0.4)
        broken = {f.level for f in scene.fractures if not f.chronic}
        healed = {f.level for f in scene.fractures if f.chronic}
        named = {level for level in range(1, 8) if kinds_of(scene.confounders.get(level, ()))}
        assert not broken & healed
        acute, old = acute + len(broken), old + len(healed)
        both, odd = both + len(broken & named), odd + len(named)
    # Of 140 vertebrae: .4 broken, .15 of the rest broken long ago, .35 with a confounder, broken or not.
    assert 36 <= acute <= 76
    assert 4 <= old <= 26
    assert 30 <= odd <= 68
    assert both >= 8


@pytest.mark.parametrize("number", [0, 1])
def test_phantoms_are_fractured_or_whole_by_turn(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    asked: list[dict[str, Any]] = []

    def make_scene(seed: int, **options: Any) -> str:
        asked.append({"seed": seed, **options})
        return "scene"

    monkeypatch.setattr("cspine.phantoms.scene.make_scene", make_scene)
    monkeypatch.setattr("cspine.phantoms.acquisition.acquire", lambda *given: given[-1].random())
    monkeypatch.setattr("cspine.phantoms.case.case_of", lambda _, acquired, name: (name, acquired))
    phantoms = FracturePhantoms(4, seed=2)
    assert phantoms.case(number) == phantoms.case(number)
    assert (asked[0]["multiplier"] > 0) is (number == 0)
    assert "meshes" not in asked[0]


# Real scans.


class Labeller:
    """Answers every scan with the labels of a block case."""

    def __init__(self, labels: np.ndarray, affine: np.ndarray) -> None:
        self.answer = SimpleNamespace(labels=labels, labels_affine=affine)
        self.asked = 0

    def predict_full(self, volume: Volume) -> SimpleNamespace:
        self.asked += 1
        return self.answer


def test_a_scan_is_labelled_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = block_case(1)
    monkeypatch.setattr(labelling, "_opened", lambda *_: case.volume)
    assert case.labels is not None
    labeller: Any = Labeller(case.labels, case.volume.affine)
    first = labelling.label_scan(tmp_path / "neck.nii.gz", tmp_path / "labels", labeller)
    assert labelling.label_scan(tmp_path / "neck.nii.gz", tmp_path / "labels", labeller) == first
    assert labeller.asked == 1
    volume, mask = labelling.labelled_scan(tmp_path / "neck.nii.gz", first[0])
    assert volume is case.volume
    assert (mask.hu == case.labels).all()
    empty: Any = Labeller(np.zeros_like(case.labels), case.volume.affine)
    with pytest.raises(StudyError, match="no cervical vertebra"):
        labelling.label_scan(tmp_path / "other.nii.gz", tmp_path / "labels", empty)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(StudyError, match="cannot be read"):
        labelling.labelled_scan(tmp_path / "neck.nii.gz", tmp_path / "bad.npz")


@pytest.mark.parametrize("seed", range(4))
def test_a_scan_seen_anew_keeps_its_labels_on_the_bone(seed: int) -> None:
    case = block_case(2, fractured=False)
    assert case.labels is not None
    volume, labels = labelling.seen_anew(
        case.volume, Volume(case.labels, case.volume.affine), np.random.default_rng(seed)
    )
    assert volume.hu.dtype == np.int16
    assert (np.diag(labels.affine)[:3] > 0).all()
    mask = labels.resampled_to(volume.affine, volume.shape, order=0, fill=0).hu
    for level in LEVELS:
        inside = volume.hu[mask == level]
        assert np.median(inside) == pytest.approx(400 + 40 * level.value, abs=40)
    assert not np.array_equal(volume.hu, case.volume.hu)


def test_scans_are_given_with_or_without_a_scale(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert labelling.parse_scan(str(tmp_path / "a=b")) == (tmp_path / "a=b", None)
    assert labelling.parse_scan(f"{tmp_path}=2400,-1000") == (tmp_path, (2400.0, -1000.0))
    with pytest.raises(UsageError, match="no such"):
        labelling.parse_scan(str(tmp_path / "missing"))


def test_planted_studies_alternate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = block_case(1)
    rates = []

    def planted_case(volume: Volume, labels: Volume, *, seed: int, rate: float, name: str) -> Case:
        rates.append(rate)
        return Case(name, volume)

    monkeypatch.setattr("cspine.phantoms.planting.planted_case", planted_case)
    monkeypatch.setattr(labelling, "labelled_scan", lambda *_: (case.volume, Volume(case.labels, case.volume.affine)))
    scans = tuple(RealScan(tmp_path / name, tmp_path / "labels.npz", digest="0123456789") for name in ("a.nii.gz", "b"))
    planted = PlantedFractures(8, scans)
    cases = [planted.case(k) for k in range(4)]
    assert rates == [planted.rate, planted.rate, 0.0, 0.0]
    assert [c.name for c in cases] == [planted.name(k) for k in range(4)]
    assert cases[0].name == "planted-a-01234567-00000-0000-fractured"
    assert (planted.case(0).volume.hu == cases[0].volume.hu).all()


# Running them.


class BlockSet:
    """Two block cases that count how often they are made."""

    count = 2

    def __init__(self) -> None:
        self.made = 0

    def name(self, number: int) -> str:
        return f"blocks-{number}"

    def case(self, number: int) -> Case:
        self.made += 1
        made = block_case(number)
        return Case(
            made.name, made.volume, made.labels, made.fracture, made.levels, (SliceBox(3, 1, 2, 8, 9, Level.C2),)
        )


class Judge:
    """Says the same of every volume."""

    def __init__(self) -> None:
        self.bundle = SimpleNamespace(sha256="")

    def predict_full(self, volume: Volume) -> SimpleNamespace:
        return SimpleNamespace(
            findings=findings_of(volume, neck=True), labels=np.zeros((4, 4, 4), np.uint8),
            labels_affine=np.diag([2.0, 2.0, 2.0, 1.0]), evidence={}, logits={},
        )  # fmt: skip


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    cases, judge = BlockSet(), Judge()
    steps: list[tuple[int, int]] = []
    first = evaluate_cases(cases, judge, folder=tmp_path, progress=lambda *step: steps.append(step))  # type: ignore[arg-type]
    assert (cases.made, steps) == (2, [(1, 2), (2, 2)])
    (tmp_path / "blocks-1.json").write_text("{")
    assert evaluate_cases(cases, judge, folder=tmp_path) == first  # type: ignore[arg-type]
    assert cases.made == 3
    assert stored_record(tmp_path, "blocks-0", "") == first[0]
    assert stored_record(tmp_path, "blocks-0", "another bundle") is None


def test_a_kept_case_is_what_was_made(tmp_path: Path) -> None:
    cases = BlockSet()
    kept = KeptCases(cases, tmp_path / "kept")
    made, read = kept.case(1), kept.case(1)
    assert cases.made == 1
    assert (read.name, read.levels, read.boxes) == (made.name, made.levels, made.boxes)
    for now, then in ((read.volume.hu, made.volume.hu), (read.labels, made.labels), (read.fracture, made.fracture)):
        assert now is not None and then is not None
        assert now.dtype == then.dtype and np.array_equal(now, then)
    assert np.array_equal(read.volume.affine, made.volume.affine)
    # A file cut short is made again.
    path = tmp_path / "kept" / f"{kept.name(1)}.npz"
    path.write_bytes(path.read_bytes()[:1000])
    assert kept.case(1).levels == made.levels
    assert cases.made == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set", "other"], "no test set"),
        (["--set", "mesh"], "--meshes DIR belongs"),
        (["--set", "parametric", "--meshes", "x"], "--meshes DIR belongs"),
        (["--set", "planted"], "--scan FILE belongs"),
        (["--set", "parametric", "--scan", "x"], "--scan FILE belongs"),
        (["--set", "planted", "--scan", "x", "--preset", "spine"], "--preset is of phantoms"),
        (["--set", "parametric", "--landmarks", "x.json"], "--set and --landmarks"),
    ],
)
def test_the_command_says_which_flag_is_wrong(tmp_path: Path, flags: list[str], words: str) -> None:
    answer = CliRunner().invoke(app, ["evaluate", *flags, "-o", str(tmp_path)])
    assert answer.exit_code == 2
    assert words in answer.output
