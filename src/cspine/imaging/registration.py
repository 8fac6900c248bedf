"""Rigid registration to a reference, by SimpleITK: where a patient lies is made alike, the shape is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from cspine.errors import GeometryError, IntensityError, UsageError
from cspine.imaging.arrays import Array, Image, Matrix, as_image
from cspine.imaging.geometry import turned
from cspine.imaging.sample import Fraction, Sample, Step
from cspine.volume import Volume

if TYPE_CHECKING:
    import SimpleITK

# Below this correlation of the two images they show different things, whatever the optimiser says.
MIN_CORRELATION = 0.5
MAX_ITERATIONS = 300
# Coarse to fine: every how many voxels, smoothed over how many; grids too small to move on or needlessly large are left
# out. So many voxels are compared on each: more add time and no accuracy.
SHRINK, SMOOTH = (4, 2, 1), (2.0, 1.0, 0.0)
MIN_SIDE, MAX_VOXELS = 16, 10_000_000
SAMPLES, SAMPLING_SEED = 20_000, 1


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """Where a moving image lies relative to a fixed one.

    Attributes:
        matrix: ``(4, 4)``, a rotation and a shift: a place ``(x, y, z, 1)`` in the fixed image → the same anatomy in
            the moving one; LPS mm for volumes, indices for arrays.
        correlation: of the two after it, 0 to 1.
        iterations: of the optimiser on the finest grid.
    """

    matrix: Matrix
    correlation: float
    iterations: int


def register_volumes(
    moving: Volume, fixed: Volume, *, minimum_correlation: float = MIN_CORRELATION, iterations: int = MAX_ITERATIONS
) -> Registration:
    """The rigid motion that lays one CT on another, in LPS millimetres.

    Args:
        moving: HU.
        fixed: the reference, HU.
        minimum_correlation: below this the result is refused.
        iterations: on each of the grids, at most.

    Raises:
        GeometryError: it did not converge, or the images do not match where they meet.
        IntensityError: one of them is constant, or has values that are not finite.
    """
    images = [_varied(volume.hu, name) for volume, name in ((moving, "moving"), (fixed, "fixed"))]
    ready = [Volume(image, volume.affine).to_sitk() for image, volume in zip(images, (moving, fixed), strict=True)]
    return _solve(ready[0], ready[1], minimum_correlation, iterations)


def registered(moving: Volume, fixed: Volume, registration: Registration) -> Volume:
    """``moving`` on the grid of ``fixed``, moved by what ``register_volumes`` found."""
    from dataclasses import replace

    out = moving.resampled_to(registration.matrix @ fixed.affine, fixed.shape)
    return replace(out, affine=fixed.affine)


def register_images(
    moving: Array,
    fixed: Array,
    *,
    minimum_correlation: float = MIN_CORRELATION,
    iterations: int = MAX_ITERATIONS,
) -> Registration:
    """The same for two images ``[y, x]`` or two stacks ``[z, y, x]`` of cubic voxels, in indices.

    ``turned(sample, registration.matrix, fixed.shape)`` applies it.

    Raises:
        UsageError: one is an image and the other a stack.
        GeometryError: it did not converge, or the images do not match where they meet.
        IntensityError: one of them is constant, or has values that are not finite.
    """
    import SimpleITK as sitk

    if np.ndim(moving) != np.ndim(fixed):
        raise UsageError(f"expected two images or two stacks, got {np.ndim(moving)} and {np.ndim(fixed)} axes")
    ready = [sitk.GetImageFromArray(_varied(moving, "moving")), sitk.GetImageFromArray(_varied(fixed, "fixed"))]
    return _solve(ready[0], ready[1], minimum_correlation, iterations)


def _varied(image: Array, name: str) -> Image:
    """From 0 up, because moments count what is below 0 as negative mass."""
    image = as_image(image)
    if image.min() == image.max():
        raise IntensityError("expected an image with something in it to register, got a constant", where=name)
    return np.ascontiguousarray(image - image.min())


def _solve(
    moving: SimpleITK.Image, fixed: SimpleITK.Image, minimum_correlation: float, iterations: int
) -> Registration:
    import SimpleITK as sitk

    rigid = sitk.Euler3DTransform() if fixed.GetDimension() == 3 else sitk.Euler2DTransform()
    method = sitk.ImageRegistrationMethod()
    # Sums over threads come in any order; the same images shall give the same motion.
    method.SetNumberOfThreads(1)
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-4, numberOfIterations=iterations, relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-10,
    )  # fmt: skip
    method.SetOptimizerScalesFromPhysicalShift()
    levels = _grids(fixed.GetSize(), moving.GetSize())
    method.SetShrinkFactorsPerLevel([SHRINK[k] for k in levels])
    method.SetSmoothingSigmasPerLevel([SMOOTH[k] for k in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    sizes = [np.prod(np.maximum(np.asarray(fixed.GetSize()) // SHRINK[k], 1)) for k in levels]
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([min(1.0, SAMPLES / float(n)) for n in sizes], SAMPLING_SEED)
    try:
        start = sitk.CenteredTransformInitializer(fixed, moving, rigid, sitk.CenteredTransformInitializerFilter.MOMENTS)
        method.SetInitialTransform(start, inPlace=False)
        found = method.Execute(fixed, moving)
    except RuntimeError as error:
        raise _failed("the images do not overlap or are too small", 0.0) from error
    # ITK's metric is the squared correlation, negative.
    correlation = float(np.sqrt(max(-method.GetMetricValue(), 0.0)))
    if "Maximum number of iterations" in method.GetOptimizerStopConditionDescription():
        raise _failed(f"still moving after {iterations} iterations", correlation)
    if not correlation >= minimum_correlation:
        raise _failed(f"expected a correlation of at least {minimum_correlation:g}", correlation)
    return Registration(_matrix(found, fixed.GetDimension()), correlation, int(method.GetOptimizerIteration()))


def _grids(*sizes: tuple[int, ...]) -> list[int]:
    """Which of ``SHRINK`` suit both images, at least one."""
    side, voxels = min(min(size) for size in sizes), max(float(np.prod(size)) for size in sizes)
    small = [k for k, factor in enumerate(SHRINK) if factor > 1 and side // factor < MIN_SIDE]
    large = [k for k, factor in enumerate(SHRINK) if voxels / factor ** len(sizes[0]) > MAX_VOXELS]
    fitting = [k for k in range(len(SHRINK)) if k not in small and k not in large]
    return fitting or [len(SHRINK) - 1 if small else 0]


def _failed(why: str, correlation: float) -> GeometryError:
    return GeometryError(
        f"registration to the reference did not converge: {why}, got correlation {correlation:.2f}",
        fix="Cut both to the same anatomy, or choose a reference that lies more alike",
    )


def _matrix(transform: Any, ndim: int) -> Matrix:
    """The matrix of a rigid transform, by where it takes the origin and the unit points."""
    matrix = np.eye(4)
    zero = np.asarray(transform.TransformPoint((0.0,) * ndim))
    matrix[:ndim, 3] = zero
    for axis, unit in enumerate(np.eye(ndim)):
        matrix[:ndim, axis] = np.asarray(transform.TransformPoint(unit.tolist())) - zero
    return matrix


class Register(Step):
    """Lays the sample on a reference image by a rigid motion, and takes its grid."""

    kind: Literal["register"] = "register"
    reference: Path = Field(description="a .npy file, image [y, x] or stack [z, y, x] of cubic voxels")
    minimum_correlation: Fraction = MIN_CORRELATION

    def changed(self, sample: Sample, _rng: np.random.Generator, /) -> Sample:
        """See ``register_images``."""
        fixed = _reference(self.reference)
        registration = register_images(sample.image, fixed, minimum_correlation=self.minimum_correlation)
        return turned(sample, registration.matrix, fixed.shape)


@lru_cache(maxsize=2)
def _reference(path: Path) -> Image:
    try:
        return as_image(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            "expected a reference image as a .npy file", where=path.name, fix="Write one with numpy.save"
        ) from error
