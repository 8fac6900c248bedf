"""The scanner: protocols, where fields lie, and what a scan does to a scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import UsageError
from cspine.phantoms.acquisition import Acquired, acquire
from cspine.phantoms.artefacts import look_over, noise_amplitude
from cspine.phantoms.noise import directional_noise, kernel_plane, kernel_shape, noise_level, white_spectrum
from cspine.phantoms.projector import projector
from cspine.phantoms.scanner import PRESETS, Scanner, disc_of, field_of, sample_scanner
from fake_scene import FakeFracture, FakeScene

QUIET = Scanner(
    pixel=1.0, matrix=(96, 96), spacing=2.0, thickness=2.0, above_c1=10, below_c7=10, dose=1e6,
    beam_hardening=0.0, metal=0.0, sample=1.0,
)  # fmt: skip


def scan(scanner: Scanner = QUIET, *, metal: bool = False, seed: int = 0) -> Acquired:
    return acquire(FakeScene((FakeFracture(5),), metal=metal), scanner, np.random.default_rng(seed))


@given(st.integers(0, 10_000), st.sampled_from(PRESETS))
def test_sampled_protocols_make_fields_that_can_be_drawn(seed: int, preset: str) -> None:
    scanner = sample_scanner(np.random.default_rng(seed), preset=preset)  # type: ignore[arg-type]
    grid = field_of(scanner, FakeScene().spine.poses)
    assert grid.shape[1:] == scanner.matrix
    assert grid.shape[0] * scanner.spacing < 400
    assert scanner == sample_scanner(np.random.default_rng(seed), preset=preset)  # type: ignore[arg-type]


def test_clinical_scans_have_the_size_of_rsna_2022() -> None:
    scanners = [sample_scanner(np.random.default_rng(k), preset="clinical") for k in range(60)]
    slices = [field_of(s, FakeScene().spine.poses).shape[0] for s in scanners]
    assert {s.matrix for s in scanners} == {(512, 512)}
    assert 200 < np.median(slices) < 320
    assert {s.kernel for s in scanners} == {"bone", "soft"}


def test_coarse_fields_vary_from_no_neck_to_all_of_it() -> None:
    poses = FakeScene().spine.poses
    shown = []
    for k in range(400):
        grid = field_of(sample_scanner(np.random.default_rng(k), preset="coarse"), poses)
        bottom = grid.affine[2, 3]
        top = bottom + grid.spacing[2] * (grid.shape[0] - 1)
        shown.append(sum(bottom < poses[label][2, 3] < top for label in range(1, 8)))
    little, whole = np.mean(np.array(shown) <= 1), np.mean(np.array(shown) == 7)
    assert 0.08 < little < 0.25
    assert 0.3 < whole < 0.7


def test_the_field_runs_from_below_c7_to_above_c1() -> None:
    grid = field_of(QUIET, FakeScene().spine.poses)
    ends = grid.affine[2, 3] + np.array([-0.5, grid.shape[0] - 0.5]) * 2.0
    np.testing.assert_allclose(ends, (-51 - 10, 51 + 10), atol=1.0)


@pytest.mark.parametrize(
    "wrong", [{"pixel": 0.0}, {"kernel": "sharp"}, {"tilt": 45.0}, {"storage": "random"}, {"matrix": (0, 5)}]
)
def test_impossible_protocols_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(QUIET, **wrong)  # type: ignore[arg-type]


def test_unknown_preset_and_empty_field_are_refused() -> None:
    with pytest.raises(UsageError, match="preset"):
        sample_scanner(np.random.default_rng(0), preset="huge")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="slices"):
        field_of(replace(QUIET, above_c1=-80, below_c7=-80), FakeScene().spine.poses)


def test_same_seed_same_bytes_and_another_seed_another_noise() -> None:
    noisy = replace(QUIET, dose=1.0, motion=0.5, metal=1.0, beam_hardening=0.5)
    first, again, other = scan(noisy, metal=True), scan(noisy, metal=True), scan(noisy, metal=True, seed=1)
    assert first.volume.hu.tobytes() == again.volume.hu.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert not np.array_equal(first.volume.hu, other.volume.hu)


def test_a_quiet_scan_shows_the_scene_where_it_is() -> None:
    acquired = scan()
    for label in range(1, 8):
        center = FakeScene().spine.poses[label][:3, 3]
        x, y, z = np.round(acquired.volume.to_index(center)).astype(int)
        assert acquired.labels[z, y, x] == label
        if label != 5:
            assert acquired.volume.hu[z, y, x] == pytest.approx(600, abs=90)
    assert acquired.fracture.any()
    assert set(np.unique(acquired.labels[acquired.fracture])) == {5}
    assert acquired.volume.hu.dtype == np.int16
    assert acquired.volume.hu.min() >= -1024


def test_thick_slices_average_what_thin_ones_show() -> None:
    scene = FakeScene()
    thin = acquire(scene, replace(QUIET, spacing=1.0, thickness=1.0), np.random.default_rng(0)).volume
    thick = acquire(scene, replace(QUIET, spacing=1.0, thickness=5.0), np.random.default_rng(0)).volume
    mean = np.mean([thin.hu[k : k + len(thin.hu) - 4] for k in range(5)], axis=0)
    # In air the clip at -1024 makes a mean of thin slices differ.
    tissue = mean > -500
    np.testing.assert_allclose(thick.hu[2:-2][tissue], mean[tissue], atol=8)


@given(st.floats(0.3, 5), st.floats(0.3, 6), st.floats(0.5, 2))
def test_samples_cover_every_voxel_with_weight_one(spacing: float, width: float, largest: float) -> None:
    from cspine.phantoms.acquisition import _Sampling

    sampling = _Sampling.of(spacing, width, largest)
    values = np.ones((sampling.count(4), 1, 1), dtype=np.float32)
    np.testing.assert_allclose(sampling.average(values, 0, 4), 1, atol=1e-5)
    assert len(range(*sampling.centers(4).indices(sampling.count(4)))) == 4


def test_slabs_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scan(replace(QUIET, thickness=4.0))
    monkeypatch.setattr("cspine.phantoms.acquisition.SLAB_VOXELS", 40_000)
    parts = scan(replace(QUIET, thickness=4.0))
    assert np.abs(whole.volume.hu.astype(int) - parts.volume.hu).max() <= 1
    np.testing.assert_array_equal(whole.labels, parts.labels)


def test_outside_the_disc_nothing_is_shown() -> None:
    acquired = scan(replace(QUIET, circle=0.8))
    disc = disc_of(96, 96, 0.8)
    assert disc is not None and not disc[0, 0] and disc[48, 48]
    assert (acquired.volume.hu[:, ~disc] == -1024).all()
    assert not acquired.labels[:, ~disc].any()
    assert disc_of(96, 96, 2.0) is None


def test_a_tilted_gantry_shears_the_grid_and_keeps_places() -> None:
    acquired = scan(replace(QUIET, tilt=15.0, above_c1=40, below_c7=40))
    assert acquired.volume.affine[2, 1] == pytest.approx(np.sin(np.deg2rad(15)))
    x, y, z = np.round(acquired.volume.to_index(FakeScene().spine.poses[3][:3, 3])).astype(int)
    assert acquired.labels[z, y, x] == 3


def test_noise_follows_dose_thickness_and_kernel() -> None:
    assert noise_level("bone", 0.625, 4.0) == pytest.approx(noise_level("bone", 0.625, 1.0) / 2)
    assert noise_level("bone", 2.5, 1.0) == pytest.approx(noise_level("bone", 0.625, 1.0) / 2)
    assert noise_level("soft", 1.0, 1.0) < noise_level("bone", 1.0, 1.0)


def test_noise_of_the_bone_kernel_is_finer_and_coarse_pixels_average_it() -> None:
    rng, ones = np.random.default_rng(0), np.ones(256, dtype=np.float32)

    def field(kernel: str, pixel: float) -> np.ndarray:
        plane = kernel_plane(kernel, 1.0, pixel, 256, 256)  # type: ignore[arg-type]
        return directional_noise(white_spectrum(rng, 256, 256), white_spectrum(rng, 256, 256), plane, ones, ones)

    bone, soft, coarse = field("bone", 0.4), field("soft", 0.4), field("bone", 2.0)
    assert bone.std() == pytest.approx(1, abs=0.05)
    assert soft.std() == pytest.approx(1, abs=0.05)
    assert coarse.std() < 0.4

    def alike(noise: np.ndarray) -> float:
        return float(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1])

    assert alike(soft) > alike(bone) + 0.1


def test_noise_of_rays_along_x_runs_along_x() -> None:
    rng = np.random.default_rng(0)
    plane = kernel_plane("bone", 1.0, 0.4, 256, 256)
    strong, weak = np.full(256, 5.0, dtype=np.float32), np.ones(256, dtype=np.float32)
    noise = directional_noise(white_spectrum(rng, 256, 256), white_spectrum(rng, 256, 256), plane, strong, weak)
    along_x = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    along_y = np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]
    assert along_x > along_y + 0.2


def test_shoulders_are_noisier_than_the_neck() -> None:
    acquired = scan(replace(QUIET, dose=1.0, below_c7=40, matrix=(64, 64)))
    x, y, _ = np.round(acquired.volume.to_index((-18.0, 25.0, 0.0))).astype(int)
    patch = acquired.volume.hu[:, y - 10 : y + 10, x - 3 : x + 4].astype(float)
    height = acquired.volume.affine[2, 3] + 2.0 * np.arange(len(patch))
    spread = patch.std(axis=(1, 2))
    assert spread[height < -68].mean() > 2 * spread[height > 0].mean()


def test_the_kernel_keeps_the_mean_and_the_bone_kernel_overshoots() -> None:
    frequency = np.linspace(0, 2, 200)
    for kernel in ("bone", "soft"):
        transfer = kernel_shape(kernel, 1.0).transfer(frequency)  # type: ignore[arg-type]
        assert transfer[0] == pytest.approx(1)
        assert transfer[-1] < 0.02
    assert kernel_shape("bone", 1.0).transfer(frequency).max() > 1.1
    assert kernel_shape("soft", 1.0).transfer(frequency).max() < 1.05


def test_noise_amplitude_grows_with_attenuation_and_modulation_evens_it_out() -> None:
    attenuation = np.array([0.0, 3.2, 8.0], dtype=np.float32)
    plain, even = noise_amplitude(attenuation, 0.0), noise_amplitude(attenuation, 1.0)
    assert plain[1] == pytest.approx(1, abs=0.02)
    assert plain[0] < 1 < 4 < plain[2] < 6
    np.testing.assert_allclose(even, even[0])


def test_back_projection_undoes_projection() -> None:
    rays = projector(64, 60)
    image = np.zeros((1, 64, 64), dtype=np.float32)
    image[0, 20:40, 24:50] = 1
    back = rays.reconstruct(rays.project(image))
    assert back[0, 30, 36] == pytest.approx(1, abs=0.05)
    assert back[0, 5, 5] == pytest.approx(0, abs=0.05)
    np.testing.assert_allclose(rays.project(image)[0].sum(axis=1), image.sum(), rtol=0.02)


def test_metal_throws_streaks_only_where_it_is() -> None:
    clean, streaky = scan(), scan(replace(QUIET, metal=1.0), metal=True)
    difference = np.abs(streaky.volume.hu.astype(int) - clean.volume.hu).max(axis=(1, 2))
    height = clean.volume.affine[2, 3] + 2.0 * np.arange(len(difference))
    assert difference[np.abs(height - 30) < 2].min() > 100
    assert difference[height < 0].max() < 5


def test_the_overview_finds_dark_bands_between_bones() -> None:
    overview = look_over(FakeScene(), field_of(QUIET, FakeScene().spine.poses))
    assert overview.hardening.shape == overview.grid.shape
    assert np.isfinite(overview.hardening).all()
    assert overview.across[:, 40:60].max() > 2.0


def test_motion_moves_image_and_labels_together() -> None:
    still, moved = scan(), scan(replace(QUIET, motion=1.0), seed=4)
    assert not np.array_equal(still.volume.hu, moved.volume.hu)
    bone = moved.volume.hu > 350
    overlap = (bone & (moved.labels > 0)).sum() / max((moved.labels > 0).sum(), 1)
    assert overlap > 0.7
