"""What may be judged: the rules about field of view, resolution and certainty, each a named constant.

Kept apart from the predictor, so that a reader finds every reason for "not judged" in one place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cspine.anatomy import LEVELS, Level
from cspine.errors import StudyWarning
from cspine.inference.certainty import ANCHORED
from cspine.inference.levels import FoundLevel, LevelMap
from cspine.volume import Volume

# Share of a vertebra that must be in the field for it to be judged.
MIN_VISIBLE = 0.5
# Below the first a reader is warned; below the second a level is not judged.
SURE_CONFIDENCE, MIN_CONFIDENCE = 0.7, 0.25
# Hairline fractures vanish between thicker slices (RSNA 2022 and the ACR ask for 1 mm or less); voxels coarser than
# the second pair show no fracture that this method was trained on.
COARSE_SLICE_MM, COARSE_PIXEL_MM = 3.1, 1.2
MAX_SLICE_MM, MAX_PIXEL_MM = 5.0, 2.0
# Why a bundle without a classifier judges nothing.
LOCATES_ONLY = "this method finds vertebrae and does not judge them"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one level is judged.

    Attributes:
        found: where it is; None when it was not found.
        visible: body centre inside the field, and enough of the vertebra.
        visible_fraction: 0..1.
        reason: why it is not judged; None when it is.
    """

    found: FoundLevel | None
    visible: bool
    visible_fraction: float
    reason: str | None


def resolution_warning(volume: Volume) -> tuple[StudyWarning | None, bool]:
    """A warning when voxels are coarse, and whether they are too coarse to judge at all.

    The largest spacing counts as slice distance and the next as pixel size, whatever the plane of the scan; a stated
    slice thickness counts too.
    """
    _, pixel, slices = sorted(volume.spacing)
    stated = volume.source.acquisition.get("slice_thickness_mm", 0.0)
    thick = max(slices, float(stated) if isinstance(stated, int | float) else 0.0)
    if thick <= COARSE_SLICE_MM and pixel <= COARSE_PIXEL_MM:
        return None, False
    hopeless = thick > MAX_SLICE_MM or pixel > MAX_PIXEL_MM
    size = f"slices of {thick:.1f} mm with pixels of {pixel:.2f} mm"
    text = (
        f"{size} do not show fractures: levels were located but not judged"
        if hopeless
        else f"{size} hide fine fractures; slices of 1 mm or less are recommended"
    )
    return StudyWarning("too-coarse-for-fractures", text), hopeless


def verdicts(levels: LevelMap, hopeless: bool, *, judges: bool = True) -> dict[Level, Verdict]:
    """A verdict for each of the seven levels; none is judged by a method that only locates (``judges`` False)."""
    found = levels.cervical()
    all_of_them = {level: _verdict(level, found.get(level), levels, hopeless) for level in LEVELS}
    if judges:
        return all_of_them
    return {k: replace(v, reason=LOCATES_ONLY) if v.reason is None else v for k, v in all_of_them.items()}


def _verdict(level: Level, found: FoundLevel | None, levels: LevelMap, hopeless: bool) -> Verdict:
    if found is None:
        share = levels.partial.get(level, 0.0)
        return Verdict(None, False, share, "cut off at the edge of the scan" if share > 0 else "not in the scan")
    share = found.visible_fraction
    if not found.inside or share < MIN_VISIBLE:
        return Verdict(found, False, share, "less than half of it is in the scan")
    if hopeless:
        return Verdict(found, True, share, "the voxels are too coarse to show fractures")
    if found.interpolated:
        return Verdict(found, True, share, "it could not be outlined between its neighbours")
    if found.confidence < MIN_CONFIDENCE:
        return Verdict(found, True, share, "which level it is could not be told")
    return Verdict(found, True, share, None)


def level_warnings(levels: LevelMap, judged: dict[Level, Verdict], *, judges: bool = True) -> list[StudyWarning]:
    """What the reader must know about the levels, and of a method that only locates (``judges`` False)."""
    only = [] if judges else [StudyWarning("locates-only", LOCATES_ONLY)]
    return _warnings(levels, judged) + only


def _warnings(levels: LevelMap, judged: dict[Level, Verdict]) -> list[StudyWarning]:
    if not levels.found:
        return [StudyWarning("no-cervical-spine", "no cervical vertebra was found in this scan; nothing was judged")]
    shown = [verdict for verdict in judged.values() if verdict.visible]
    out = []
    if not shown:
        out.append(StudyWarning("no-cervical-spine", "no cervical vertebra lies at least half inside this scan"))
    doubtful = [v.found for v in shown if v.found is not None and v.found.confidence < SURE_CONFIDENCE]
    if doubtful:
        names = ", ".join(Level(item.label).name for item in doubtful)
        out.append(StudyWarning("levels-uncertain", f"the names of these levels are uncertain by one or more: {names}"))
    out += _reasons(levels, [v.found.label for v in shown if v.found is not None])
    missing = [level.name for level, verdict in judged.items() if not verdict.visible]
    if shown and missing:
        out.append(StudyWarning("levels-not-visible", f"not visible in this scan: {', '.join(missing)}"))
    return out


def _reasons(levels: LevelMap, shown: list[int]) -> list[StudyWarning]:
    """Why the names of the labels shown may be wrong, whatever their confidence."""
    out = []
    head, chest = levels.anchors.head >= ANCHORED, levels.anchors.chest >= ANCHORED
    if shown and not head:
        below = "levels were counted up from the chest" if chest else "nor is the chest: levels were named by shape"
        text = f"the ring of C1 is not in this scan, {below} and may be off by one or more"
        out.append(StudyWarning("levels-without-anchor", text))
    pairs = [f"{Level(a).name} and {Level(b).name}" for a, b in levels.doubts.uneven if a in shown and b in shown]
    if pairs:
        text = f"unusual distance between {', '.join(pairs)}: fused, missing or displaced vertebrae, or a wrong count"
        out.append(StudyWarning("levels-uneven", text))
    contradicted = [Level(label).name for label in levels.doubts.contradicted if label in shown]
    if contradicted:
        text = f"by shape these look like another level than by counting, as variants do: {', '.join(contradicted)}"
        out.append(StudyWarning("levels-contradicted", text))
    return out
