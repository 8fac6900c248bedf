"""Random stacks of classifier samples: frame, mask and intensities as imperfect as inference finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import StudyError
from cspine.inference.stacks import (
    COLUMNS,
    NEIGHBOUR_MM,
    PIXEL_MM,
    PLANE_MM,
    PLANES,
    ROWS,
    Frame,
    assemble,
    sample_block,
    stack_middle,
)
from cspine.training.locator_windows import thick_slices
from cspine.training.recipe import ClassifierAugment, ClassifierStage, StackWindow
from cspine.training.samples import ClassifierSample, Vertebra
from cspine.volume import AIR_HU, Volume

Array = NDArray[Any]
WHOLE: StackWindow = (PLANES, ROWS, COLUMNS)
# Pixels of a stack a cell of the evidence map, in rows and columns.
EVIDENCE_STRIDE = 4
# Share of partial stacks of a broken vertebra that are laid over its evidence; the rest may miss it and are intact.
SHOWING = 0.85
# Thick slices are 1.6 to 3.2 mm, in half plane distances (last excluded).
THICK = (2, 5)


@dataclass(frozen=True, slots=True)
class Stack:
    """One training example of the classifier.

    Attributes:
        stack: float32 ``[S, 4, H, W]``; 24, 128 and 160, or less for a part.
        vertebra: 0 or 1.
        slices: ``[S]`` 0 or 1.
        types: ``[T]`` 0 or 1.
        evidence: ``[S, H / 4, W / 4]`` 0 or 1.
        types_known: 0 when it is fractured and nothing says how; ``types`` is then nothing.
        evidence_known: 0 when it is fractured and nothing says where; ``slices`` and ``evidence`` are then nothing.
    """

    stack: NDArray[np.float32]
    vertebra: float
    slices: NDArray[np.float32]
    types: NDArray[np.float32]
    evidence: NDArray[np.float32]
    types_known: float = 1.0
    evidence_known: float = 1.0


def draw_stack(
    sample: ClassifierSample,
    vertebra: Vertebra,
    stage: ClassifierStage,
    type_names: tuple[str, ...],
    rng: np.random.Generator,
    *,
    window: StackWindow = WHOLE,
    plain: bool = False,
) -> Stack:
    """Cut one vertebra.

    Args:
        sample: the scan.
        vertebra: one of its vertebrae.
        stage: augmentation of the recipe.
        type_names: order of the type logits.
        rng: source of chance.
        window: slices, rows and columns of the stack; less than all of them show a part of it, mostly one with evidence
            when there is any, else one with its bone.
        plain: exactly as inference with a perfect mask would (for validation).

    Raises:
        StudyError: a part is wanted of a fractured vertebra of which nothing says where the fracture is: whether the
            part shows it nobody knows.
    """
    if window != WHOLE and not vertebra.evidence_known:
        raise StudyError(
            "a part of a vertebra whose fracture has no known place has no label", where=f"label {vertebra.label}"
        )
    augment = stage.augment
    frame, scale = (vertebra.frame, 1.0) if plain else _jitter(vertebra.frame, augment, rng)
    middle = stack_middle(vertebra.label)
    evidence, count = draw_evidence(sample, vertebra.label, frame, middle, scale)
    part, middle = _part(sample, vertebra.label, evidence, frame, middle, scale, window, rng)
    evidence = evidence[part]
    # Outside the scan there is air; training crops end where real scans go on, so sometimes tissue is shown there.
    fill = AIR_HU if plain or rng.random() < 0.5 else float(rng.uniform(-100, 60))
    planes, rows, columns = window
    fine = _block(sample.volume, frame, (2 * planes + 1, rows, columns), NEIGHBOUR_MM, scale, middle, fill)
    mask = _mask(sample, vertebra.label, augment, rng, plain=plain)
    soft = _block(mask, frame, window, PLANE_MM, scale, middle, 0.0)
    if not plain:
        fine = _tone(fine, augment, rng)
    stack = assemble(fine, soft)
    if not plain:
        _hide(stack, augment, rng)
        if rng.random() < augment.flip:
            stack, evidence = np.ascontiguousarray(stack[..., ::-1]), np.ascontiguousarray(evidence[..., ::-1])
    shown = not vertebra.evidence_known or (count >= stage.minimum_evidence and bool(evidence.any()))
    positive = float(vertebra.fractured and shown)
    types = np.array([positive * (name in vertebra.types) for name in type_names], np.float32)
    evidence = evidence * np.float32(positive * vertebra.evidence_known)
    # The type is read from where in the vertebra the evidence lies, which a narrower part does not tell.
    types_known = float(window[1:] == WHOLE[1:] and (not positive or bool(vertebra.types)))
    return Stack(stack, positive, evidence.max((1, 2)), types, evidence, types_known, float(vertebra.evidence_known))


def _part(
    sample: ClassifierSample,
    label: int,
    evidence: Array,
    frame: Frame,
    middle: tuple[float, float, float],
    scale: float,
    window: StackWindow,
    rng: np.random.Generator,
) -> tuple[tuple[slice, slice, slice], tuple[float, float, float]]:
    """Cells of a part of a stack, and its middle in local mm: over a cell of evidence, or near bone of the vertebra."""
    size = np.array([window[0], window[1] // EVIDENCE_STRIDE, window[2] // EVIDENCE_STRIDE])
    cell = np.array([PLANE_MM, PIXEL_MM * EVIDENCE_STRIDE, PIXEL_MM * EVIDENCE_STRIDE]) * scale
    whole = np.asarray(evidence.shape)
    start = np.zeros(3, int)
    if (size < whole).any():
        holding = np.argwhere(evidence)
        if len(holding) and rng.random() < SHOWING:
            start = holding[rng.integers(len(holding))] - rng.integers(0, size)
        else:
            bone = np.argwhere(sample.labels == label)
            voxel = bone[rng.integers(len(bone))] if len(bone) else np.zeros(3)
            world = sample.labels_affine[:3, :3] @ voxel[::-1] + sample.labels_affine[:3, 3]
            at = (frame.to_local(world) - np.asarray(middle))[::-1] / cell + whole / 2
            start = np.round(at - size / 2 + rng.uniform(-0.25, 0.25, 3) * size).astype(int)
        start = np.clip(start, 0, whole - size)
    shift = ((start + size / 2) - whole / 2) * cell
    z, y, x = (slice(int(a), int(a + n)) for a, n in zip(start, size, strict=True))
    return (z, y, x), (middle[0] + shift[2], middle[1] + shift[1], middle[2] + shift[0])


def _block(
    volume: Volume,
    frame: Frame,
    shape: tuple[int, int, int],
    plane_mm: float,
    scale: float,
    middle: tuple[float, float, float],
    fill: float,
) -> NDArray[np.float32]:
    """Samples of ``shape``, the distances between them times ``scale``."""
    spacing = (PIXEL_MM * scale, PIXEL_MM * scale, plane_mm * scale)
    return sample_block(volume, frame, shape=shape, spacing=spacing, middle=middle, fill=fill)


def draw_evidence(
    sample: ClassifierSample, label: int, frame: Frame, middle: tuple[float, float, float], scale: float
) -> tuple[NDArray[np.float32], int]:
    """Cells ``[24, 32, 40]`` that hold fracture voxels of one vertebra, and how many voxels lie in the stack."""
    evidence = np.zeros((PLANES, ROWS // EVIDENCE_STRIDE, COLUMNS // EVIDENCE_STRIDE), np.float32)
    own = sample.points[sample.points[:, 0] == label, 1:]
    if not len(own):
        return evidence, 0
    size = np.array([COLUMNS * PIXEL_MM, ROWS * PIXEL_MM, PLANES * PLANE_MM]) * scale
    cell = np.array([PIXEL_MM * EVIDENCE_STRIDE, PIXEL_MM * EVIDENCE_STRIDE, PLANE_MM]) * scale
    at = frame.to_local(own) - np.asarray(middle) + size / 2
    inside = ((at >= 0) & (at < size)).all(1)
    # Voxels larger than a cell along z fill all the planes that they reach.
    half = 0.45 * sample.point_mm[2]
    for shift in (0.0,) if half < 0.4 else (-half, 0.0, half):
        index = np.floor((at[inside] + (0, 0, shift)) / cell).astype(int)
        index = index[((index >= 0) & (index < evidence.shape[::-1])).all(1)]
        evidence[index[:, 2], index[:, 1], index[:, 0]] = 1
    # Voxel volumes differ between scans; count in units of a typical one (0.25 mm3).
    return evidence, int(inside.sum() * float(np.prod(sample.point_mm)) / 0.25)


def _jitter(frame: Frame, augment: ClassifierAugment, rng: np.random.Generator) -> tuple[Frame, float]:
    """The frame as a locator might have put it, and a scale for people of other sizes."""
    from scipy.spatial.transform import Rotation

    angles = rng.normal(0, augment.rotate_degrees / 2, 3)
    shift = rng.normal(0, augment.shift_mm / 2, 3)
    axes = frame.axes @ Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    return Frame(frame.origin + frame.axes @ shift, axes), float(rng.uniform(*augment.scale))


def _mask(
    sample: ClassifierSample, label: int, augment: ClassifierAugment, rng: np.random.Generator, *, plain: bool
) -> Volume:
    """The vertebra's mask on the 2 mm grid, with the faults of a locator: too thin, too thick, shifted, leaking."""
    from scipy import ndimage

    index = np.argwhere(sample.labels == label)
    if not len(index):
        return Volume(np.zeros((2, 2, 2), np.float32), sample.labels_affine)
    low = np.maximum(index.min(0) - 5, 0)
    high = np.minimum(index.max(0) + 6, sample.labels.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    part = sample.labels[box]
    own = part == label
    affine = sample.labels_affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low[::-1]
    if plain or rng.random() >= augment.coarse_mask:
        return Volume(own.astype(np.float32), affine)
    if rng.random() < augment.mask_leak:
        # A slab of the neighbour taken for this vertebra.
        other = (part > 0) & (part < 9) & ~own
        depth = int(rng.integers(1, 4))
        own = own | (other & ndimage.binary_dilation(own, iterations=depth))
    kind = rng.integers(5)
    if kind == 1:
        own = ndimage.binary_dilation(own)
    elif kind == 2:
        own = ndimage.binary_erosion(own) | (own & (rng.random(own.shape) < 0.5))
    elif kind == 3:
        own = ndimage.binary_closing(own, iterations=2)
    elif kind == 4:
        # A process that was missed: everything past a random plane.
        away = (np.argwhere(own) - index.mean(0) + low) @ rng.standard_normal(3)
        keep = away < np.quantile(away, rng.uniform(0.85, 0.99))
        thinner = np.zeros_like(own)
        thinner[tuple(np.argwhere(own)[keep].T)] = True
        own = thinner
    affine[:3, 3] += rng.normal(0, augment.mask_shift_mm / 2, 3)
    soft = own.astype(np.float32)
    if rng.random() < 0.5:
        soft = ndimage.gaussian_filter(soft, rng.uniform(0.3, 0.8))
    return Volume(soft, affine)


def _tone(fine: Array, augment: ClassifierAugment, rng: np.random.Generator) -> NDArray[np.float32]:
    """Slice thickness, contrast, offset, noise and blur of HU ``[49, 128, 160]``."""
    from scipy import ndimage

    if rng.random() < augment.thick_slices:
        fine = thick_slices(fine, int(rng.integers(*THICK)))
    if rng.random() < augment.blur_probability:
        sigma = rng.uniform(0.3, 1.1)
        fine = ndimage.gaussian_filter(fine, (rng.uniform(0, 0.8), sigma, sigma))
    fine = fine * np.float32(rng.uniform(*augment.contrast))
    fine += np.float32(rng.uniform(-augment.shift_hu, augment.shift_hu))
    sigma = rng.uniform(0, augment.noise_hu) * (rng.random() < 0.5)
    if sigma > 2:
        fine = fine + rng.standard_normal(fine.shape, dtype=np.float32) * np.float32(sigma)
    return np.asarray(fine, dtype=np.float32)


def _hide(stack: NDArray[np.float32], augment: ClassifierAugment, rng: np.random.Generator) -> None:
    """Slices that repeat a neighbour and boxes without content, in place; never the mask."""
    if rng.random() < augment.drop_slices:
        for plane in rng.integers(1, len(stack), int(rng.integers(1, 4))):
            stack[plane, :3] = stack[plane - 1, :3]
    if rng.random() < augment.cutout:
        rows, columns = stack.shape[2:]
        height, width = rng.integers(8, min(33, rows // 2), 2)
        top, left = rng.integers(0, rows - height), rng.integers(0, columns - width)
        depth = int(rng.integers(2, max(3, len(stack) // 3)))
        first = int(rng.integers(0, len(stack) - depth))
        stack[first : first + depth, :3, top : top + height, left : left + width] = np.float32(-0.6)
