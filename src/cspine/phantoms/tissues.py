"""Everything in a neck CT that is not a vertebra: skin, fat, muscle, airway, vessels, other bones, table.

``build_surroundings`` places it around a spine; ``Surroundings.paint`` draws it on any grid. All is fixed in the
world: a voxel's value depends on where it is, not on the grid (but for the width of edges).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cspine.phantoms.canal import canal_layers, disc_layer, ligament_layer, nuchal_layer, root_layer
from cspine.phantoms.column import Column
from cspine.phantoms.grid import Box, Grid
from cspine.phantoms.head import build_head
from cspine.phantoms.muscles import build_muscles
from cspine.phantoms.neck import SKIN_MM, Habitus, airway_layers, neck_outline, sample_habitus
from cspine.phantoms.paint import COARSE, FAR, FINE, Brush, Coat, Field, Lattice, Layer, Zoom, blocks, edge_width, union
from cspine.phantoms.parts import Part
from cspine.phantoms.skeleton import BoneStep, draw_bones
from cspine.phantoms.spine import Spine
from cspine.phantoms.support import build_support
from cspine.phantoms.textures import Float, Texture
from cspine.phantoms.thorax import build_thorax
from cspine.phantoms.vessels import vessel_layers

AIR_HU = -1000.0
_OUTLINE_BLEND = 22.0  # mm over which neck, head and shoulders flow into each other
_BODY_REACH = 40.0


@dataclass(frozen=True)
class Painted:
    """What lies around the vertebrae, on the voxels of a grid, each ``[z, y, x]``.

    Attributes:
        soft_hu: HU of everything but bone; air outside the patient, table included.
        bone_sdf: signed distance in mm to bone other than vertebrae, negative inside, cut at ``paint.FAR``.
        bone_scale: factor on that bone's HU (dense petrous bone, enamel); 0 where no such bone is near.
        metal: 0..1, share of the voxel that is dental metal.
    """

    soft_hu: Float
    bone_sdf: Float
    bone_scale: Float
    metal: Float


@dataclass(frozen=True)
class Surroundings:
    """A person without vertebrae, ready to be drawn on any grid. Made by ``build_surroundings``."""

    habitus: Habitus
    outline: tuple[Part, ...]
    muscles: tuple[tuple[Part, ...], ...]
    layers: tuple[Layer, ...]
    openings: tuple[Layer, ...]
    support: tuple[Layer, ...]
    bones: tuple[BoneStep, ...]
    metal: tuple[Part, ...]
    grain: Texture
    mottle: Texture
    swell: Texture

    def paint(self, grid: Grid) -> Painted:
        """Draw on ``grid``; about 4 s for 512x512x250 on one core, 0.5 s for 110x100x100 at 2 mm."""
        return _Canvas(self, grid).paint()


def build_surroundings(spine: Spine, rng: np.random.Generator) -> Surroundings:
    """Place skin, muscles, organs, other bones and table around ``spine``.

    Args:
        spine: poses, landmarks and anatomy; its shapes are not used.
        rng: source of everything that the anatomy leaves open.
    """
    column = Column.of(spine)
    anatomy = spine.anatomy
    habitus = sample_habitus(anatomy, rng)
    muscles = build_muscles(column, column.raised(habitus.shoulder_up), rng, bulk=habitus.bulk)
    head = build_head(spine, column, habitus, rng)
    thorax = build_thorax(spine, column, habitus, rng)
    airway, tube = airway_layers(column, anatomy, habitus, rng)
    layers = [
        *thorax.layers,
        nuchal_layer(spine, column, rng),
        ligament_layer(spine, rng),
        root_layer(spine),
        *head.layers,
        *vessel_layers(spine, column, habitus, rng),
        *airway,
        *head.sinuses,
        *canal_layers(spine, rng),
        disc_layer(spine, rng),
    ]
    return Surroundings(
        habitus,
        (neck_outline(column, habitus), *head.outline, *thorax.outline),
        tuple((*own, *more) for own, more in zip(muscles, head.muscles, strict=True)),
        tuple(layers),
        (*head.openings, *tube),
        tuple(build_support(spine, column, habitus, rng)),
        (*thorax.bones, *head.bones),
        head.metal,
        Texture.random(rng, 1.9, 48),
        Texture.random(rng, 6.0, 40),
        Texture.random(rng, 26.0, 24),
    )


class _Canvas:
    """One drawing of the surroundings: fields on two lattices, then HU block by block."""

    def __init__(self, scene: Surroundings, grid: Grid) -> None:
        self._scene, self._grid = scene, grid
        self._width = edge_width(grid)
        self._lattices = {COARSE: Lattice.over(grid, COARSE), FINE: Lattice.over(grid, FINE)}
        self._zoom = {k: Zoom(lattice, grid) for k, lattice in self._lattices.items()}

    def paint(self) -> Painted:
        """Everything on the grid."""
        scene, shape = self._scene, self._grid.shape
        coarse, fine = self._lattices[COARSE], self._lattices[FINE]
        self._grain = _whole(scene.grain.at(fine.where), fine)
        self._mottle = _whole(scene.mottle.at(coarse.where), coarse)
        body, fascia = self._outline(coarse)
        muscles = [union(g, coarse) for g in scene.muscles]
        support = [(layer, self._field(layer)) for layer in scene.support]
        layers = [(layer, self._field(layer)) for layer in scene.layers]
        openings = [(layer, self._field(layer)) for layer in scene.openings]
        bones = draw_bones(scene.bones, fine)
        metal = union(scene.metal, fine)
        out = Painted(
            np.empty(shape, dtype=np.float32),
            np.full(shape, FAR, dtype=np.float32),
            np.zeros(shape, dtype=np.float32),
            np.zeros(shape, dtype=np.float32),
        )
        for block in blocks(shape):
            brush = self._brush(block)
            for layer, field in support:
                brush.layer(layer, field)
            skin = brush.near(body)
            if skin is not None and skin[1] < self._width:
                self._flesh(brush, skin[0], fascia, muscles)
                flesh = brush.hu.copy()
                for layer, field in layers:
                    brush.layer(layer, field)
                if skin[2] > -2 * SKIN_MM:
                    # Organs of a slender person must not come through the skin.
                    brush.hu += np.clip((skin[0] + np.float32(1.2)) / np.float32(self._width) + 0.5, 0, 1) * (
                        flesh - brush.hu
                    )
            for layer, field in openings:
                brush.layer(layer, field)
            out.soft_hu[block] = brush.hu
            if bones is not None and (sdf := brush.near(bones[0])) is not None:
                out.bone_sdf[block] = sdf[0]
                density = brush.near(bones[1])
                out.bone_scale[block] = 1.0 if density is None else density[0]
            if (filling := brush.near(metal)) is not None and filling[1] < self._width:
                out.metal[block] = np.clip(0.5 - filling[0] / self._width, 0, 1)
        return out

    def _field(self, layer: Layer) -> Field | None:
        return union(
            layer.parts,
            self._lattices[layer.spacing],
            blend=layer.blend,
            reach=FAR + max(c.offset for c in layer.coats),
        )

    def _outline(self, lattice: Lattice) -> tuple[Field, Field]:
        """Distance to the skin, and to the fascia below the subcutaneous fat."""
        swell = self._scene.swell.at(lattice.where)
        body = union(self._scene.outline, lattice, blend=_OUTLINE_BLEND, reach=_BODY_REACH)
        box = tuple(slice(0, n) for n in lattice.grid.shape)
        skin = np.full(lattice.grid.shape, _BODY_REACH, dtype=np.float32)
        if body is not None:
            skin[body.box] = body.values
        skin += np.float32(1.3) * swell
        thickness = self._scene.habitus.fat_mm * (1 + 0.22 * swell) + np.float32(SKIN_MM + 0.8)
        whole = (box[0], box[1], box[2])
        return Field(skin, whole, lattice, _BODY_REACH), Field(skin + thickness, whole, lattice, _BODY_REACH)

    def _brush(self, block: Box) -> Brush:
        spans = {k: zoom.span(block) for k, zoom in self._zoom.items()}

        def near(field: Field | None) -> tuple[Float, float, float] | None:
            if field is None:
                return None
            spacing = COARSE if field.lattice is self._lattices[COARSE] else FINE
            zoom, span = self._zoom[spacing], spans[spacing]
            values = zoom.cut(field, span)
            if values is None:
                return None
            low = float(values.min())
            if low >= field.outside and field.outside > 1.0:
                return None
            return zoom.up(values, span, block), low, float(values.max())

        shape = tuple(s.stop - s.start for s in block)
        grain, mottle = near(self._grain), near(self._mottle)
        zero = np.zeros(shape, dtype=np.float32)
        return Brush(
            np.full(shape, AIR_HU, dtype=np.float32),
            zero if grain is None else grain[0],
            zero if mottle is None else mottle[0],
            self._width,
            near,
        )

    def _flesh(self, brush: Brush, skin: Float, fascia: Field, muscles: list[Field | None]) -> None:
        """Skin, fat and muscles."""
        h = self._scene.habitus
        brush.coat(skin, Coat(0.0, 30.0, grain=6.0))
        brush.coat(skin, Coat(-SKIN_MM, h.fat_hu, grain=3.0, mottle=4.0))
        self._septa(brush, skin)
        under = brush.near(fascia)
        if under is None or under[1] > 1.0:
            return
        a, b, c = (_or_far(brush.near(m)) for m in muscles)
        nearest = np.minimum(np.minimum(a, b), c)
        second = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
        gap = second - nearest
        nearest = nearest + np.float32(0.9) * brush.mottle
        seam = np.float32(0.5 * h.seam_mm) * (1 + np.float32(0.5) * brush.mottle) - np.float32(0.5) * gap
        inside = np.maximum(np.maximum(nearest - np.float32(h.grow_mm), seam), under[0])
        if float(inside.min()) < self._width:
            # Fat between the bundles of a muscle, more of it in old and heavy people.
            lean = np.float32(h.muscle_hu) + np.float32(5.0) * brush.mottle + np.float32(5.0) * brush.grain
            strands = np.clip(brush.grain + np.float32(0.7) * brush.mottle - np.float32(2.3 - 1.1 * h.streaks), 0, 1.2)
            bundles = np.clip(1 - np.abs(brush.mottle + np.float32(0.25) * brush.grain) * np.float32(3.5), 0, 1)
            strands = strands + np.float32(0.75 * h.streaks) * bundles
            cover = np.clip(np.float32(0.5) - inside / np.float32(self._width), 0, 1)
            brush.hu += cover * (lean - np.float32(70.0) * strands - brush.hu)

    def _septa(self, brush: Brush, skin: Float) -> None:
        """Thin strands of connective tissue in fat: where the mottle texture crosses zero."""
        strand = np.clip(1 - np.abs(brush.mottle - np.float32(0.3)) * np.float32(9.0), 0, 1)
        strand *= np.clip(-(skin + np.float32(SKIN_MM)) / np.float32(2.0), 0, 1)
        brush.hu += np.float32(22.0) * strand


def _whole(values: Float, lattice: Lattice) -> Field:
    """A texture on a whole lattice."""
    z, y, x = (slice(0, n) for n in lattice.grid.shape)
    return Field(values, (z, y, x), lattice, 0.0)


def _or_far(found: tuple[Float, float, float] | None) -> Float:
    return np.full((1, 1, 1), FAR, dtype=np.float32) if found is None else found[0]
