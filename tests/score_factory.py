"""Hand-made scored cases: what figures, differences and tables are tested on."""

from __future__ import annotations

import numpy as np

from cspine.anatomy import LEVELS
from cspine.evaluation.evidence_marks import EvidenceMark
from cspine.evaluation.image_records import ImageRecords
from cspine.evaluation.records import CaseRecord, LevelRecord


def scored(
    name: str,
    fractured: tuple[bool, ...],
    probability: tuple[float | None, ...],
    *,
    bundle: str = "b",
    patient: float = 0.5,
) -> CaseRecord:
    """A case of seven vertebrae, all in view, called from 0.5 on, with one image a vertebra and perfect boxes."""
    return CaseRecord(
        name=name,
        bundle=bundle,
        fractured=any(fractured),
        probability=patient,
        called=patient >= 0.5,
        status="ok",
        spine_dice=0.9,
        seconds=2.0,
        levels=tuple(
            LevelRecord(
                level=level.name,
                visible_fraction=1.0,
                fractured=broken,
                claimed=True,
                right_level=True,
                distance_mm=2.0,
                dice=0.8,
                probability=p,
                called=p is not None and p >= 0.5,
            )
            for level, broken, p in zip(LEVELS, fractured, probability, strict=True)
        ),
        images=images(fractured),
        marks=tuple(
            EvidenceMark(level=level.name, score=0.5, hit=level.name, iou=0.5)
            for level, broken in zip(LEVELS, fractured, strict=True)
            if broken
        ),
        lesions=tuple(level.name for level, broken in zip(LEVELS, fractured, strict=True) if broken),
    )


def images(fractured: tuple[bool, ...] = (False,) * 7) -> ImageRecords:
    """Seven images, each showing one vertebra, all answered rightly."""
    return ImageRecords(
        visible=tuple((int(level),) for level in LEVELS),
        answers=tuple(tuple(0.9 if k == level.index else 0.1 for k in range(7)) for level in LEVELS),
        broken=tuple(int(flag) for flag in fractured),
        found=tuple((level.index, int(level), 0.9, 1.0) for level in LEVELS),
    )


def cohort(count: int, skill: float, *, seed: int = 0, bundle: str = "b") -> list[CaseRecord]:
    """Cases whose truth is the same for every skill; ``skill`` 0 guesses, a large one knows."""
    truths = np.random.default_rng(seed).random((count, 7)) < 0.3
    noise = np.random.default_rng([seed, 1, int(skill * 1000)]).normal(size=(count, 7))
    probability = 1 / (1 + np.exp(-(skill * (2 * truths - 1) + noise)))
    return [
        scored(
            f"case-{k:03d}",
            tuple(bool(flag) for flag in truths[k]),
            tuple(float(p) for p in probability[k]),
            bundle=bundle,
            patient=float(1 - np.prod(1 - probability[k])),
        )
        for k in range(count)
    ]
