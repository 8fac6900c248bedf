"""What the networks of a bundle answer, checked for what everything after relies on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.errors import BundleError
from cspine.inference import refine
from cspine.inference.evidence import EvidenceMap
from cspine.inference.locate import CHANNELS
from cspine.inference.runtime import Network, Tensor
from cspine.inference.stacks import Frame, evidence_affine


@dataclass(frozen=True, slots=True)
class Opinion:
    """The classifier's raw answer about one vertebra.

    Attributes:
        logit: of a fracture.
        types: logit of each fracture type, in the bundle's order.
        evidence: where.
    """

    logit: float
    types: NDArray[np.float32]
    evidence: EvidenceMap


def located(network: Network, image: Tensor) -> Tensor:
    """The locator's logits ``[1, 11, Z, Y, X]`` of an image ``[1, 1, Z, Y, X]``.

    Raises:
        BundleError: another shape.
    """
    return _checked(network, image, "locator", CHANNELS)


def refined(network: Network, image: Tensor) -> Tensor:
    """The refiner's logits ``[1, 4, Z, Y, X]`` of an image ``[1, 3, Z, Y, X]``.

    Raises:
        BundleError: another shape.
    """
    return _checked(network, image, "refiner", refine.CLASSES)


def opinion(network: Network, stack: Tensor, frame: Frame, label: int) -> Opinion:
    """The classifier's answer for one stack ``[24, 4, 128, 160]``.

    Args:
        network: the classifier.
        stack: see ``inference.stacks``.
        frame: of the vertebra.
        label: of the vertebra, 1..7.

    Raises:
        BundleError: an output is missing, not finite or of another shape.
    """
    answer = network({"stack": stack[None]})
    missing = [name for name in ("vertebra", "types", "evidence") if name not in answer]
    if missing:
        raise BundleError(f"expected output '{missing[0]}' of the classifier, got none", fix="Export the bundle again")
    logit = float(answer["vertebra"].reshape(-1)[0])
    maps = np.asarray(0.5 * (1 + np.tanh(0.5 * answer["evidence"][0])), dtype=np.float32)
    if not np.isfinite(logit) or not np.isfinite(maps).all():
        raise BundleError("the classifier answered with numbers that are not finite", fix="Try the other runtime")
    if maps.ndim != 3:
        raise BundleError(f"expected evidence of 3 axes, got shape {maps.shape}", fix="Export the bundle again")
    affine = evidence_affine(frame, label, (maps.shape[0], maps.shape[1], maps.shape[2]))
    return Opinion(logit, answer["types"][0], EvidenceMap(maps, affine))


def _checked(network: Network, image: Tensor, name: str, channels: int) -> Tensor:
    answer = network({"image": image}).get(name)
    expected = (1, channels, *image.shape[2:])
    if answer is None or answer.shape != expected:
        got = "no such output" if answer is None else f"shape {answer.shape}"
        raise BundleError(f"expected output '{name}' of shape {expected}, got {got}", fix="Export the bundle again")
    return answer
