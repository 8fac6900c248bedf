"""From what planar networks say of images to the same ``LevelMap`` that a solid locator gives.

Every kind of head says how surely each row of the neck shows each level; ``planar_reading`` makes the one ordered
reading of that; bone is then shared out by what the heads say of places, and made to agree with the reading by the
same lines that do it for solid locators.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import OTHER_BONE, THORACIC, Level
from cspine.inference.centres import body_centres
from cspine.inference.certainty import (
    CONTRADICTED,
    CONTRADICTING,
    LONG_STEP,
    SHORT_STEP,
    Anchors,
    Doubts,
    relative_steps,
)
from cspine.inference.chain import STEP_MEAN_MM, Link
from cspine.inference.levels import Chain, LevelMap, LevelSettings, level_map
from cspine.inference.locate import SPACING_MM, Located
from cspine.inference.planar_answers import PlaneAnswers
from cspine.inference.planar_grid import CommonGrid, lines, weights
from cspine.inference.planar_masks import first_mask, painted_boxes, shared_bone, tidy
from cspine.inference.planar_reading import Reading, read, shares
from cspine.inference.relabel import relabel
from cspine.inference.visibility import Field
from cspine.volume import Volume

Float = NDArray[np.float64]
Image = NDArray[np.float32]
Labels = NDArray[np.uint8]
Point = tuple[float, float, float]

# An area of pixel classes at which a row is sure to show a level; smaller ones count in proportion.
SURE_AREA_MM2 = 250.0
# Pixels less sure than this do not count.
MIN_PIXEL = 0.3
# Where neighbours put the centre of the last vertebra of a scan nearer than this to its end, mm, part of the body is
# missing, and the middle of what is left of it says less than they do.
RIM_MM = 8.0
# A detector's best boxes count fully from this score on.
MIN_SURE_BOX = 0.4
# A body centre further than this from the middle of its rows is a fault of the mask. C2's lies low in its rows.
MAX_OFF_MM, AXIS_DOWN_MM = 9.0, 4.0
# Nor does a spine leave the curve through its other centres by more than this.
MAX_CURVE_OFF_MM = 8.0
# Rows below C7 that make a whole anchor, mm.
CHEST_MM = 40.0


def find_planar_levels(
    answers: Sequence[PlaneAnswers],
    classes: Image | None,
    grid: CommonGrid,
    volume: Volume,
    settings: LevelSettings | None = None,
) -> LevelMap:
    """Read what a planar locator said.

    Args:
        answers: of its planes.
        classes: float32 ``[9, Z, Y, X]`` pixel classes on the grid, from ``planar_grid.Classes``; None without them.
        grid: the common grid.
        volume: that was scanned, canonical axes: it says where the field of view ends.
        settings: temperature of the reading, and the curve of confidence.
    """
    settings = settings or LevelSettings()
    painted = painted_boxes(answers, grid) if classes is None else None
    scores = _row_scores(answers, classes, painted, grid)
    reading = read(scores[::-1], SPACING_MM, settings.chain.temperature)
    shared = shared_bone(classes, painted, reading, grid)
    located = Located(
        classes=shared,
        heat=np.zeros(grid.shape, np.float16),
        void=grid.void,
        affine=grid.affine,
        field_affine=volume.affine,
        field_shape=volume.shape,
    )
    view = Field(volume.affine, volume.shape, grid.void, grid.affine)
    chain = _chain(reading, scores[::-1], located, settings)
    labels = tidy(relabel(located, chain.links))
    if chain.links:
        # The mask that agrees with the reading shows bodies better than the first one did.
        chain = _chain(reading, scores[::-1], located, settings, labels)
    return level_map(chain, labels, grid.affine, view)


def _row_scores(
    answers: Sequence[PlaneAnswers], classes: Image | None, painted: Image | None, grid: CommonGrid
) -> Float:
    """``[Z, 8]``, feet first: how surely each row of the grid shows C1..C7 and thoracic; mean over the heads."""
    found: list[Float] = []
    if classes is not None:
        area = np.where(classes[1:] >= MIN_PIXEL, classes[1:], 0).sum(axis=(2, 3)).T * SPACING_MM**2
        found.append(np.minimum(1.0, area / SURE_AREA_MM2))
    if painted is not None:
        boxes = painted.max(axis=(2, 3)).T
        # How sure a detector is of its best boxes differs; one that is never sure has found nothing.
        sure = max(MIN_SURE_BOX, float(np.quantile(boxes.max(axis=1), 0.9)))
        found.append(_with_thoracic(np.minimum(1.0, boxes / sure)))
    for answer in answers:
        # An image from the side shows many levels and says nothing of rows.
        if answer.visible is not None and answer.grid.plane == "axial":
            line = lines(answer.grid, grid.affine)[2]
            found.append(_with_thoracic(weights(line, grid.shape[0], answer.grid.count) @ answer.visible))
    return np.mean(found, axis=0) if found else np.zeros((grid.shape[0], THORACIC))


def _with_thoracic(cervical: Image) -> Float:
    return np.concatenate([cervical, np.zeros((len(cervical), 1))], axis=1)


def _chain(
    reading: Reading, scores: Float, located: Located, settings: LevelSettings, labels: Labels | None = None
) -> Chain:
    """The reading with a place for each vertebra.

    Args:
        reading: rows and scores from the head on.
        scores: ``[rows, 8]``.
        located: whose bone is whose.
        settings: of the search.
        labels: a mask that agrees with the reading, for the places; None for the network's own.
    """
    if not reading.rows:
        return Chain((), (), (), reading.score, Anchors(), Doubts())
    mask = first_mask(located, reading) if labels is None else labels
    places, seen = _places(reading, mask, located.affine)
    posterior = [float(_inner(reading.posterior, rows)[:, label].mean()) for label, rows in reading.rows.items()]
    anchors = _anchors(reading, scores)
    links = tuple(
        Link(label - 1, 0 if label in seen else None, places[label], sure)
        for label, sure in zip(reading.rows, posterior, strict=True)
    )
    doubts = _doubts(links, reading, scores)
    confidence = [settings.confidence(p, anchors, k.state + 1 in doubts.contradicted)
                  for k, p in zip(links, posterior, strict=True)]  # fmt: skip
    return Chain(links, tuple(posterior), tuple(confidence), reading.score, anchors, doubts)


def _inner(values: Float, rows: tuple[int, int]) -> Float:
    """Rows of the middle half of a stretch: where it ends is never sure, and says nothing of its name."""
    quarter = (rows[1] - rows[0]) // 4
    return values[rows[0] + quarter : rows[1] - quarter]


def _places(reading: Reading, mask: Labels, affine: Float) -> tuple[dict[int, Float], set[int]]:
    """Body centres LPS mm by label, and the labels that have a mask of their own."""
    volume = Volume(mask, affine)
    bodies = body_centres(volume, reading.rows)
    boxes = ndimage.find_objects(mask, max_label=int(Level.C7))
    seen = {label for label in reading.rows if boxes[label - 1] is not None}
    count = mask.shape[0]
    places = {
        label: _place(label, bodies.get(label), mask, count - 1 - (start + stop - 1) / 2, volume)
        for label, (start, stop) in reading.rows.items()
    }
    _straighten([label for label in places if label > Level.C1], places)
    for label, (start, stop) in reading.rows.items():
        onward = _onward(label, places)
        if onward is None:
            continue
        row = float(volume.to_index(onward)[2])
        if (start == 0 and count - 1 - row < RIM_MM / SPACING_MM) or (stop == count and row < RIM_MM / SPACING_MM):
            places[label] = onward
    return places, seen


def _straighten(labels: Sequence[int], places: dict[int, Float]) -> None:
    """Centres off the curve of the others, square to the spine, are put on it: there the mask was wrong.

    The worst goes first, since it bends the curve that the others are measured by.
    """
    for _ in range(len(labels) // 3):
        off = {}
        for label in labels:
            others = np.array([places[other] for other in labels if other != label])
            if len(others) < 4:
                return
            height = others[:, 2] - places[label][2]
            curve = np.polynomial.polynomial.polyfit(height, others[:, :2], 2)
            off[label] = curve[0] - places[label][:2]
        worst = max(off, key=lambda label: float(np.linalg.norm(off[label])))
        if np.linalg.norm(off[worst]) <= MAX_CURVE_OFF_MM:
            return
        places[worst] = places[worst] + np.append(off[worst], 0.0)


def _place(label: int, body: Point | None, mask: Labels, middle: float, volume: Volume) -> Float:
    """A body centre that lies in its rows: from the mask when that is good, else the mask's middle at those rows."""
    down = AXIS_DOWN_MM if label == Level.C2 else 0.0
    if body is not None:
        row = float(volume.to_index(np.asarray(body))[2])
        if abs(row - (middle - down / SPACING_MM)) * SPACING_MM <= MAX_OFF_MM:
            return np.asarray(body, dtype=np.float64)
    near = (mask == label) | ((mask > 0) & (mask < OTHER_BONE) & _rows_near(mask.shape, middle))
    index = np.argwhere(near)
    y, x = index[:, 1:].mean(axis=0) if len(index) else (mask.shape[1] / 2, mask.shape[2] / 2)
    return volume.to_world([float(x), float(y), middle - down / SPACING_MM])


def _rows_near(shape: tuple[int, ...], middle: float) -> NDArray[np.bool_]:
    return np.asarray((np.abs(np.arange(shape[0]) - middle) <= 2)[:, None, None])


def _onward(label: int, places: dict[int, Float]) -> Float | None:
    """Where the neighbours say that a vertebra at the end of the reading is; None without any."""
    for near, far in ((label + 1, label + 2), (label - 1, label - 2)):
        if near in places and far in places:
            along = places[near] - places[far]
            # Steps differ between people, and hardly within one.
            return np.asarray(places[near] + along * _step(label, near) / _step(near, far))
        if near in places:
            return np.asarray(places[near] + np.array([0.0, 0.0, float(near - label)]) * _step(label, near))
    return None


def _step(one: int, other: int) -> float:
    """Mean distance between the centres of two neighbours, mm."""
    return float(STEP_MEAN_MM[min(one, other) - 1])


def _anchors(reading: Reading, scores: Float) -> Anchors:
    """The ring of C1 with something above it, and what is below C7."""
    head = chest = 0.0
    start, stop = reading.rows.get(1, (0, 0))
    if start > 0:
        head = float(_inner(scores, (start, stop))[:, 0].mean())
    end = reading.rows.get(7, (0, len(scores)))[1]
    below = scores[end : end + round(CHEST_MM / SPACING_MM)]
    if len(below):
        known = bool(scores[:, 7].any())
        sure = below[:, 7] if known else 1.0 - below.max(axis=1)
        chest = float(sure.sum()) * SPACING_MM / CHEST_MM
    return Anchors(min(1.0, head), min(1.0, chest))


def _doubts(links: Sequence[Link], reading: Reading, scores: Float) -> Doubts:
    """Unusual steps between centres, and names that the network contradicts."""
    if len(links) < 3:
        return Doubts()
    relative = relative_steps(np.array([link.position for link in links]), np.array([link.state for link in links]))
    uneven = tuple(
        (above.state + 1, below.state + 1)
        for above, below, step in zip(links, links[1:], relative, strict=False)
        if not SHORT_STEP <= step <= LONG_STEP
    )
    belief = shares(scores)
    contradicted = []
    for label, rows in reading.rows.items():
        said = _inner(belief, rows)[:, 1:].mean(axis=0)
        if label > 1 and said[label - 1] < CONTRADICTED and said.max() > CONTRADICTING:
            contradicted.append(label)
    return Doubts(uneven, tuple(contradicted))
