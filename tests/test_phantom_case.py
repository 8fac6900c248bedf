"""Phantom cases: truth of a scan, and that a seed determines every byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case
from cspine.phantoms.acquisition import acquire
from cspine.phantoms.case import case_of, make_case
from cspine.phantoms.scanner import Scanner
from fake_scene import FakeFracture, FakeScene

SMALL = Scanner(pixel=1.0, matrix=(90, 90), spacing=1.5, thickness=1.5, above_c1=15, below_c7=15)
TINY = Scanner(pixel=2.0, matrix=(52, 52), spacing=3.0, thickness=3.0, above_c1=15, below_c7=15, sample=2.0)


def fake_case(*fractures: FakeFracture, scanner: Scanner = SMALL) -> Case:
    scene = FakeScene(fractures)
    return case_of(scene, acquire(scene, scanner, np.random.default_rng(0)), name="fake")


def test_all_levels_in_the_field_are_wholly_visible_and_centred() -> None:
    case = fake_case()
    assert set(case.levels) == set(LEVELS)
    for level, truth in case.levels.items():
        assert truth.visible_fraction == 1
        assert truth.body_center_mm == (0.5 * level, float(level), (4 - level) * 17.0)
        assert not truth.fractured
        assert not truth.old_fracture
        assert truth.types == ()
    assert case.patient_fractured is False
    assert case.boxes == ()


def test_a_field_cut_in_the_middle_of_a_vertebra_shows_half_of_it() -> None:
    case = fake_case(scanner=replace(SMALL, above_c1=-2 * 17.0))
    assert case.levels[Level.C1].visible_fraction == 0
    assert case.levels[Level.C2].visible_fraction == 0
    assert case.levels[Level.C3].visible_fraction == pytest.approx(0.5, abs=0.1)
    assert case.levels[Level.C4].visible_fraction == 1


def test_the_reconstructed_disc_limits_what_is_visible() -> None:
    case = fake_case(scanner=replace(SMALL, circle=0.3))
    assert case.levels[Level.C4].visible_fraction < 0.7


def test_fractures_are_named_located_and_boxed() -> None:
    case = fake_case(FakeFracture(5, "burst", 0.4), FakeFracture(5, "lamina", 0.9), FakeFracture(2, "dens-ii", 0.2))
    truth = case.levels[Level.C5]
    assert truth.fractured
    assert truth.types == ("burst", "lamina")
    assert truth.severity == 0.9
    assert case.levels[Level.C2].types == ("dens-ii",)
    assert case.patient_fractured
    assert {box.level for box in case.boxes} == {Level.C2, Level.C5}
    assert case.fracture is not None
    for box in case.boxes:
        part = case.fracture[box.slice_index, box.y_min : box.y_max, box.x_min : box.x_max]
        assert part.any()
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
    covered = np.zeros_like(case.fracture)
    for box in case.boxes:
        covered[box.slice_index, box.y_min : box.y_max, box.x_min : box.x_max] = True
    assert not (case.fracture & ~covered).any()


def test_a_fracture_outside_the_field_and_an_old_one_are_no_positives() -> None:
    cut = replace(SMALL, above_c1=-2 * 17.0)
    case = fake_case(FakeFracture(1, "jefferson"), FakeFracture(6, chronic=True), scanner=cut)
    assert not case.levels[Level.C1].fractured
    assert case.levels[Level.C1].types == ()
    assert case.levels[Level.C1].severity == 0
    assert case.levels[Level.C6].old_fracture
    assert not case.levels[Level.C6].fractured
    assert case.patient_fractured is False


def test_thoracic_fractures_do_not_count() -> None:
    assert fake_case(FakeFracture(8)).patient_fractured is False


def test_same_seed_same_bytes() -> None:
    first, again = (make_case(7, scanner=TINY, multiplier=4.0) for _ in range(2))
    assert first.volume.hu.tobytes() == again.volume.hu.tobytes()
    assert first.labels is not None
    assert again.labels is not None
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.levels == again.levels
    assert first.boxes == again.boxes


def test_a_made_case_agrees_with_itself() -> None:
    case = make_case(11, scanner=replace(SMALL, pixel=1.2, matrix=(75, 75)), fractures="sample", multiplier=8.0)
    assert case.labels is not None
    assert case.fracture is not None
    assert case.volume.shape == case.labels.shape == case.fracture.shape
    assert case.volume.source.kind == "phantom"
    assert case.volume.source.name == case.name
    for level in LEVELS:
        truth = case.levels[level]
        assert truth.body_center_mm is not None
        x, y, z = np.round(case.volume.to_index(truth.body_center_mm)).astype(int)
        if level not in (Level.C1, Level.C2):
            # Canals of vessels and gaps of fractures may leave the very centre without bone.
            assert (case.labels[z - 3 : z + 4, y - 3 : y + 4, x - 3 : x + 4] == level).mean() > 0.5
        assert truth.fractured == bool(truth.types)
    assert {box.level for box in case.boxes} == {level for level in LEVELS if case.levels[level].fractured}
    bone = case.volume.hu[(case.labels >= 1) & (case.labels <= 7)]
    assert 150 < bone.mean() < 900


def test_without_fractures_there_are_none() -> None:
    case = make_case(7, scanner=TINY, fractures="none", name="intact")
    assert case.name == case.volume.source.name == "intact"
    assert case.patient_fractured is False
    assert case.fracture is not None
    assert not case.fracture.any()
