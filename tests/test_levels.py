"""Levels are ordered, unique and consecutive whatever the network says; masks and visibility follow."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.anatomy import OTHER_BONE
from cspine.inference.chain import STATES, THORACIC_STATE, ChainSettings, build_problem, posterior, solve
from cspine.inference.levels import LevelMap, LevelSettings, find_levels
from cspine.inference.locate import Located, body_box, locate, locator_input, padded, windows
from cspine.inference.visibility import Field, geometric_fraction
from cspine.volume import Volume
from oracle import Patient, located_of, make_patient

COARSE = (2.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def patient() -> Patient:
    return make_patient(spacing=COARSE)


@pytest.fixture(scope="module")
def clean(patient: Patient) -> LevelMap:
    return find_levels(located_of(patient))


def names(result: LevelMap) -> list[int]:
    return [item.label for item in result.found]


def check_consecutive(result: LevelMap) -> None:
    labels = names(result)
    assert labels == list(range(labels[0], labels[0] + len(labels))) if labels else True
    heights = [item.center_mm[2] for item in result.found]
    assert heights == sorted(heights, reverse=True)


def test_a_clear_scan_is_read_to_the_millimetre(patient: Patient, clean: LevelMap) -> None:
    assert names(clean)[:9] == list(range(1, 10))
    for item in clean.found[:10]:
        assert np.linalg.norm(np.subtract(item.center_mm, patient.centers[item.label])) < 0.7
        assert item.confidence > 0.95
        assert not item.interpolated


def test_masks_agree_with_the_truth_on_a_clear_scan(patient: Patient, clean: LevelMap) -> None:
    truth = patient.labels.resampled_to(clean.affine, clean.labels.shape, order=0, fill=0).hu
    for label in range(1, 8):
        a, b = truth == label, clean.labels == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 14),
    st.floats(0, 3),
)
def test_no_answer_of_a_network_doubles_or_skips_a_level(seed: int, peaks: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    positions = np.stack([rng.normal(0, 6, peaks), rng.normal(0, 10, peaks), -rng.uniform(0, 200, peaks)], axis=1)
    positions = positions[np.argsort(-positions[:, 2])]
    emission = rng.normal(1, 1 + sharpness, (peaks, STATES))
    middle = -rng.uniform(0, 3, (peaks, peaks, STATES))
    zeros = np.zeros((peaks, STATES))
    chain_settings = ChainSettings()
    problem = build_problem(positions, emission, middle, zeros, zeros, zeros[:, 0], chain_settings)
    links, _ = solve(problem, chain_settings)
    for above, below in itertools.pairwise(links):
        assert below.state == min(above.state + 1, THORACIC_STATE)
        assert below.position[2] < above.position[2]
        assert not (above.candidate is None and below.candidate is None)
    if links:
        assert links[0].candidate is not None
        assert links[-1].candidate is not None
        assert all(0 <= link.confidence <= 1 for link in links)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 8))
def test_noise_never_breaks_the_order(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (11, 60, 16, 16)
    located = Located(
        classes=_softmax(rng.normal(0, noise, (10, *shape[1:]))),
        heat=rng.uniform(0, 1, shape[1:]).astype(np.float16),
        void=np.zeros(shape[1:], bool),
        affine=np.diag([2.0, 2.0, 2.0, 1.0]),
        field_affine=np.diag([2.0, 2.0, 2.0, 1.0]),
        field_shape=shape[1:],
    )
    result = find_levels(located)
    check_consecutive(result)
    assert set(np.unique(result.labels)) <= set(range(10))


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=0))
    return (e / e.sum(axis=0)).astype(np.float16)


@pytest.mark.parametrize("lost", [3, 5, 7])
def test_one_missing_peak_is_bridged_with_low_confidence(patient: Patient, lost: int) -> None:
    gone = patient.centers[lost]

    def forget(logits: np.ndarray, points: np.ndarray) -> None:
        logits[10][np.linalg.norm(points - gone, axis=-1) < 9] = -9

    result = find_levels(located_of(patient, forget))
    assert names(result)[:9] == list(range(1, 10))
    item = result.found[lost - 1]
    assert item.interpolated
    assert item.confidence <= 0.5
    assert np.linalg.norm(np.subtract(item.center_mm, gone)) < 3


def test_a_false_peak_between_two_vertebrae_is_left_out(patient: Patient) -> None:
    false = (patient.centers[4] + patient.centers[5]) / 2

    def invent(logits: np.ndarray, points: np.ndarray) -> None:
        near = np.exp(-0.5 * ((points - false) ** 2).sum(axis=-1) / 9)
        logits[10] = np.maximum(logits[10], np.where(near > 0.05, 6 * near - 4.5, -9))

    result = find_levels(located_of(patient, invent))
    assert names(result)[:9] == list(range(1, 10))
    assert abs(result.found[4].center_mm[2] - patient.centers[5][2]) < 2


def test_a_network_that_drifts_by_one_level_is_corrected_and_whole_masks_move(patient: Patient) -> None:
    """From C5 down every voxel is called one level too high, as if C4 were there twice."""
    height = (patient.centers[4][2] + patient.centers[5][2]) / 2

    def drift(logits: np.ndarray, points: np.ndarray) -> None:
        low = points[..., 2] < height
        for label in range(4, 8):
            logits[label][low] = logits[label + 1][low]

    result = find_levels(located_of(patient, drift))
    check_consecutive(result)
    assert names(result)[:9] == list(range(1, 10))
    truth = patient.labels.resampled_to(result.affine, result.labels.shape, order=0, fill=0).hu
    for label in range(2, 8):
        values = result.labels[(truth == label) & (result.labels > 0)]
        assert (values == label).mean() > 0.9


def test_a_field_cut_above_and_below(patient: Patient) -> None:
    cut = make_patient(spacing=COARSE, z_mm=(-100.0, -30.0))
    result = find_levels(located_of(cut))
    cervical = result.cervical()
    # C7's centre is 5 mm below the field: its heat reaches into it, and must not make it visible.
    assert [int(level) for level, item in cervical.items() if item.visible_fraction >= 0.5] == [3, 4, 5, 6]
    assert set(result.partial) <= {2, 7}
    assert all(share < 0.5 for share in result.partial.values())


def test_a_chest_has_no_cervical_level() -> None:
    chest = make_patient(spacing=COARSE, z_mm=(-230.0, -135.0), count=14)
    result = find_levels(located_of(chest))
    assert result.found == ()
    assert not ((result.labels > 0) & (result.labels < OTHER_BONE)).any()


def test_an_empty_answer_gives_an_empty_map(patient: Patient) -> None:
    def silence(logits: np.ndarray, points: np.ndarray) -> None:
        logits[:] = -8
        logits[0] = 8

    assert find_levels(located_of(patient, silence)).found == ()


def test_weak_evidence_is_not_a_spine(patient: Patient) -> None:
    def fade(logits: np.ndarray, points: np.ndarray) -> None:
        logits[10] -= 6.0
        logits[0] += 6.0

    assert find_levels(located_of(patient, fade)).found == ()


def test_hot_temperatures_lower_confidence(patient: Patient, clean: LevelMap) -> None:
    hot = find_levels(located_of(patient), LevelSettings(chain=ChainSettings(temperature=30.0)))
    assert names(hot) == names(clean)
    assert hot.found[3].confidence < clean.found[3].confidence


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 20))
def test_the_posterior_is_one(seed: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    positions = np.stack([np.zeros(6), np.zeros(6), -np.arange(6) * 17.0], axis=1)
    zeros = np.zeros((6, STATES))
    problem = build_problem(
        positions, rng.normal(0, 3, (6, STATES)), np.zeros((6, 6, STATES)), zeros, zeros, zeros[:, 0], ChainSettings()
    )
    np.testing.assert_allclose(posterior(problem, temperature).sum(axis=1), 1.0)


def test_the_posterior_is_that_of_all_chains() -> None:
    """Two candidates one step apart: all chains can be written down."""
    positions = np.array([[0.0, 0, 0], [0.0, 0, -17.0]])
    rng = np.random.default_rng(0)
    emission = rng.normal(0, 1, (2, STATES))
    zeros = np.zeros((2, STATES))
    problem = build_problem(
        positions, emission, np.full((2, 2, STATES), -np.inf), zeros, zeros, zeros[:, 0], ChainSettings()
    )
    weight = np.exp(emission[0])
    for state in range(STATES):
        below = min(state + 1, THORACIC_STATE)
        weight[state] += np.exp(emission[0, state] + problem.direct[state, 0, 1] + emission[1, below])
    np.testing.assert_allclose(posterior(problem, 1.0)[0], weight / weight.sum(), rtol=1e-9)


@given(st.floats(-40, 40))
def test_visible_fraction_grows_with_the_field(height: float) -> None:
    view = Field(np.array([[1.0, 0, 0, -80], [0, 1, 0, -60], [0, 0, 1, 0], [0, 0, 0, 1]]), (100, 160, 160))
    up = np.array([0.0, 0, 1])
    low = geometric_fraction(4, np.array([0.0, 0, height]), up, view)
    high = geometric_fraction(4, np.array([0.0, 0, height + 3]), up, view)
    assert 0 <= low <= high <= 1


def test_padding_is_not_part_of_the_field() -> None:
    affine = np.array([[1.0, 0, 0, -80], [0, 1, 0, -60], [0, 0, 1, 0], [0, 0, 0, 1]])
    void = np.zeros((100, 160, 160), bool)
    void[:40] = True
    up = np.array([0.0, 0, 1])
    padded_view, whole = Field(affine, void.shape, void, affine), Field(affine, void.shape)
    for height, low, high in ((70.0, 0.99, 1.0), (39.5, 0.25, 0.6), (15.0, 0.0, 0.05)):
        assert low <= geometric_fraction(4, np.array([0.0, 0, height]), up, padded_view) <= high
        assert geometric_fraction(4, np.array([0.0, 0, height]), up, whole) > 0.95


def test_a_vertebra_cut_through_its_middle_is_about_half_visible() -> None:
    view = Field(np.array([[1.0, 0, 0, -80], [0, 1, 0, -60], [0, 0, 1, 0], [0, 0, 0, 1]]), (100, 160, 160))
    assert 0.3 < geometric_fraction(4, np.array([0.0, 0, -0.5]), np.array([0.0, 0, 1]), view) < 0.6


def test_the_locators_image_lies_where_the_patient_is() -> None:
    hu = np.full((90, 120, 110), -1000, np.int16)
    hu[5:85, 10:110, 10:100] = 40
    hu[60:64, 30:34, 80:84] = 1500
    affine = np.array([[0.7, 0, 0, 11], [0, 0.7, 0, -40], [0, 0, 1.25, 300], [0, 0, 0, 1]])
    volume = Volume(hu, affine)
    made = locator_input(volume, crop=True)
    assert all(size % 16 == 0 for size in made.image.shape)
    assert made.image.min() >= -1
    assert made.image.max() <= 2
    hot = np.argwhere(made.image > 0.3)[:, ::-1].astype(float)
    weight = made.image[made.image > 0.3]
    centre = (hot * weight[:, None]).sum(axis=0) / weight.sum()
    world = centre @ made.affine[:3, :3].T + made.affine[:3, 3]
    np.testing.assert_allclose(world, volume.to_world([81.5, 31.5, 61.5]), atol=0.6)
    assert (made.image[made.shape[0] :] == -1).all()


def test_air_around_the_body_is_left_out() -> None:
    hu = np.full((80, 120, 120), -1000, np.float32)
    hu[:, 40:80, 50:90] = 40
    z, y, x = body_box(hu)
    assert (z.start, z.stop) == (0, 80)
    assert 28 <= y.start <= 40
    assert 80 <= y.stop <= 96
    assert x.stop - x.start < 72


def test_a_volume_of_air_is_kept_whole() -> None:
    hu = np.full((40, 40, 40), -1000, np.float32)
    assert hu[body_box(hu)].shape == hu.shape


@given(
    st.tuples(*[st.integers(1, 400)] * 3),
    st.tuples(*[st.sampled_from([32, 64, 128])] * 3),
)
def test_windows_cover_everything_and_overlap(shape: tuple[int, int, int], window: tuple[int, int, int]) -> None:
    overlap = (16, 16, 16)
    boxes = list(windows(shape, window, overlap))
    for axis in range(3):
        ranges = sorted({(box[axis].start, box[axis].stop) for box in boxes})
        assert ranges[0][0] == 0
        assert ranges[-1][1] == shape[axis]
        assert all(stop - start <= window[axis] for start, stop in ranges)
        for (_, stop), (start, _) in itertools.pairwise(ranges):
            assert stop - start >= overlap[axis]


def test_windows_blend_without_seams() -> None:
    """A network that looks at single voxels must not notice the windows."""
    rng = np.random.default_rng(0)
    volume = Volume(rng.integers(-1000, 1500, (90, 20, 20)).astype(np.int16), np.diag([2.0, 2, 2, 1]))

    def network(image: np.ndarray) -> np.ndarray:
        return np.concatenate([image * (k - 5) for k in range(11)], axis=1)

    whole = locate(volume, network, window=(128, 128, 128))
    tiled = locate(volume, network, window=(64, 32, 32))
    np.testing.assert_allclose(tiled.heat.astype(float), whole.heat.astype(float), atol=2e-3)
    np.testing.assert_allclose(tiled.classes.astype(float), whole.classes.astype(float), atol=2e-3)


def test_padding_is_behind_and_air() -> None:
    out = padded(np.zeros((17, 16, 3), np.float32))
    assert out.shape == (32, 16, 16)
    assert (out[17:] == -1).all()
