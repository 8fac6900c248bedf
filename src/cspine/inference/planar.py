"""Networks that look at planes: how images are cut from a volume, and what such a network may answer.

A planar network sees one image at a time, ``image [B, C, size, size]``, axial or sagittal, and answers with any of
``HEADS``, all of them probabilities. Cut images are a ``Volume`` whose third index counts images, so everything that
knows affines knows where they lie.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Plane = Literal["axial", "sagittal"]
# What a planar network may answer, for a batch of B images; H = W = ``view.size``:
#   levels    [B, 9, H, W]   background, C1..C7, thoracic, of each pixel
#   fracture  [B, 1, H, W]   fracture, of each pixel
#   types     [B, T]         fracture types in the bundle's order, of the image
#   visible   [B, 7]         the image shows C1..C7
#   broken    [B, 7]         the image shows a fracture of C1..C7
#   slice     [B, 1]         the image shows a fracture
#   boxes     [B, N, 4]      x_min, y_min, x_max, y_max in pixels, edges; before suppression of overlaps
#   scores    [B, N, K]      of each box for K classes: C1..C7, then, when K is 14, fractured C1..C7
#   heat      [B, 1, h, w]   where the evidence for ``slice`` or ``broken`` lies, H / h a whole number
Head = Literal["levels", "fracture", "types", "visible", "broken", "slice", "boxes"]
HEADS: tuple[Head, ...] = ("levels", "fracture", "types", "visible", "broken", "slice", "boxes")
LEVEL_CHANNELS = 9
Side = Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
Window = tuple[float, Annotated[float, Field(gt=0)]]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanarView(_Model):
    """How images are cut from a volume and shown to a planar network.

    Channels are, for each image from ``-neighbours`` to ``+neighbours``, its windows in order; every window is scaled
    to -1 (black) .. 1 (white). The longer side of the field fills ``size`` pixels, the rest is black.
    """

    planes: tuple[Plane, ...] = Field(default=("axial",), min_length=1, description="one network may see both")
    size: Side = 256
    step_mm: Annotated[float, Field(gt=0, le=10)] = Field(default=2.0, description="between neighbouring images")
    windows: tuple[Window, ...] = Field(default=((600.0, 1800.0),), min_length=1, description="level and width, HU")
    neighbours: int = Field(default=0, ge=0, le=5, description="images above and below that are channels too (2.5D)")
    field: Literal["whole", "detected"] = Field(
        default="whole", description="detected: only the box around what the detector found, with a margin"
    )

    @property
    def channels(self) -> int:
        """Of a network's input."""
        return len(self.windows) * (2 * self.neighbours + 1)


class Pooling(_Model):
    """How answers about images become one about a vertebra: the mean of the ``top`` strongest.

    With ``pixels`` these are the strongest pixels of the vertebra's mask, grown by ``margin_mm``; otherwise its
    images. ``by_visibility`` weighs an image's answer by how surely it shows the level.
    """

    top: int = Field(default=5, ge=1)
    margin_mm: float = Field(default=3.0, ge=0)
    by_visibility: bool = False


class PlanarUse(_Model):
    """What a bundle's planar stage needs to be run; in ``bundle.json``."""

    view: PlanarView
    heads: tuple[Head, ...] = Field(min_length=1)
    pooling: Pooling = Pooling()

    @model_validator(mode="after")
    def _once(self) -> PlanarUse:
        if len(set(self.heads)) != len(self.heads):
            raise ValueError("heads must differ")
        return self
