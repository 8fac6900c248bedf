"""Pictures of heat: for each level the image, Grad-CAM over it, and the method's own evidence over it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS
from cspine.inference.evidence import EvidenceMap
from cspine.reports.atomic import write_set
from cspine.training.explain import Explainer, LevelHeat

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INDEX = "heat.json"
NAMES = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++"}
# Perceptually uniform, from black: over a grey picture more heat is both brighter and more covering.
COLOUR_MAP = "inferno"
_MOST_COVER, _FALL = 0.8, 0.6
_TEXT, _QUIET = "#3a3f45", "#7c8792"


def write_heat(folder: Path, heats: Sequence[LevelHeat], explainer: Explainer) -> Path:
    """Write a picture of each level and the index ``heat.json``; nothing of an earlier result stays.

    Raises:
        OutputError: the folder cannot be written; nothing of this result is left there.
    """
    files = {heat.picture: level_picture(heat, explainer) for heat in heats}
    files[INDEX] = (json.dumps(index_of(heats, explainer), indent=2) + "\n").encode()
    write_set(folder, files, retire=[f"{level.name}.png" for level in LEVELS])
    return folder / INDEX


def index_of(heats: Sequence[LevelHeat], explainer: Explainer) -> dict[str, Any]:
    """What the pictures show, for programs: places are LPS mm."""
    return {
        "recipe": explainer.recipe,
        "stage": explainer.stage_name,
        "network": explainer.stage.network.kind,
        "method": explainer.method,
        "layer": heats[0].layer,
        "explains": "fracture" if explainer.of_fractures else "visible",
        "levels": [
            {
                "level": heat.level.name,
                "probability": round(heat.probability, 4),
                "peak_mm": None if heat.peak_mm is None else [round(value, 2) for value in heat.peak_mm],
                "picture": heat.picture,
            }
            for heat in heats
        ],
    }


def level_picture(heat: LevelHeat, explainer: Explainer) -> bytes:
    """PNG of the image where the heat is strongest, with heat and evidence over copies of it."""
    from matplotlib.figure import Figure

    at = _strongest_image(heat)
    panels = [("image", None), (NAMES[explainer.method], heat.heat)]
    if heat.evidence is not None:
        panels.append(("evidence of the method", heat.evidence))
    figure = Figure(figsize=(3.4 * len(panels) - 0.3, 2.9 * _proportion(heat) + 0.65), layout="constrained")
    asked = "fracture" if explainer.of_fractures else "in the image"
    figure.suptitle(
        f"{heat.level.name} · {asked} {heat.probability:.2f}" + ("" if heat.peak_mm else " · nothing spoke for it"),
        x=0.012, ha="left", fontsize=12, color=_TEXT,
    )  # fmt: skip
    for number, (name, values) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        _show(axes, heat, at)
        caption = name if number else f"{'sagittal' if heat.sagittal else 'axial'} {at + 1} of {len(heat.images)}"
        axes.set_title(caption, fontsize=9, color=_QUIET, loc="left")
        if values is not None:
            cover = _overlay(axes, values, heat, at)
            label = "share of the strongest heat" if values is heat.heat else "evidence, 0 to 1"
            bar = figure.colorbar(cover, ax=axes, fraction=0.04, pad=0.02)
            bar.set_label(label, fontsize=8, color=_QUIET)
            bar.ax.tick_params(labelsize=7, length=0, labelcolor=_QUIET)
            bar.outline.set_visible(False)
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def _show(axes: Axes, heat: LevelHeat, at: int) -> None:
    """One image in grey, with the patient's sides at its edges."""
    axes.imshow(heat.images[at], cmap="gray", vmin=-1, vmax=1, interpolation="bilinear")
    axes.set_axis_off()
    left, right = ("A", "P") if heat.sagittal else ("R", "L")
    for place, letter in ((0.02, left), (0.98, right)):
        axes.text(
            place, 0.5, letter, transform=axes.transAxes, color="#c9d1d9", fontsize=8, va="center",
            ha="left" if place < 0.5 else "right",
        )  # fmt: skip


def _overlay(axes: Axes, values: EvidenceMap, heat: LevelHeat, at: int) -> Any:
    """A map over an image, smoothly between its cells; a ring marks the strongest place of the heat."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    plane = on_image(values, heat, at)
    tint = colormaps[COLOUR_MAP](plane)
    tint[..., 3] = _MOST_COVER * plane**_FALL
    axes.imshow(tint, interpolation="nearest")
    if values is heat.heat and heat.peak_mm is not None:
        x, y, _ = _index(heat, heat.peak_mm)
        axes.plot(x, y, marker="o", markersize=11, markerfacecolor="none", markeredgecolor="white", markeredgewidth=0.9)
    return ScalarMappable(Normalize(0, 1), COLOUR_MAP)


def on_image(values: EvidenceMap, heat: LevelHeat, at: int) -> NDArray[np.float32]:
    """A map's values ``[H, W]``, 0..1, at the pixels of one image, linear between cells."""
    from scipy import ndimage

    cells = values.values[min(at * len(values.values) // len(heat.images), len(values.values) - 1)]
    rows, columns = heat.images.shape[1:]
    # Cells divide the field evenly, so their edges, not their centres, coincide with those of pixels.
    y = (np.arange(rows) + 0.5) * cells.shape[0] / rows - 0.5
    x = (np.arange(columns) + 0.5) * cells.shape[1] / columns - 0.5
    plane = ndimage.map_coordinates(cells, np.meshgrid(y, x, indexing="ij"), order=1, mode="nearest")
    return np.asarray(np.clip(plane, 0, 1), dtype=np.float32)


def _strongest_image(heat: LevelHeat) -> int:
    """Number of the image with the strongest heat; the middle one when there is none."""
    if heat.peak_mm is None:
        return len(heat.images) // 2
    return int(np.clip(round(_index(heat, heat.peak_mm)[2]), 0, len(heat.images) - 1))


def _index(heat: LevelHeat, point: tuple[float, float, float]) -> tuple[float, float, float]:
    """Column, row and number of the image at an LPS point."""
    x, y, z = np.linalg.solve(heat.affine[:3, :3], np.asarray(point) - heat.affine[:3, 3]).tolist()
    return x, y, z


def _proportion(heat: LevelHeat) -> float:
    """Height by width of an image."""
    _, rows, columns = heat.images.shape
    return float(rows / columns)
