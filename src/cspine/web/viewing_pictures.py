"""``prepare_picture_view``: single pictures and the heat over them, as the reading room shows them side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from cspine.errors import OutputError, StudyError
from cspine.inference.pictures import PictureAnswer
from cspine.reports.images import Gray, bone_window, encode_gray, encode_overlay, heat_overlay
from cspine.reports.picture_findings import PictureFinding
from cspine.studies.images import SliceImage
from cspine.web.viewing_facts import FACTS_FILE

# The longer side of a picture on the page; the file that was uploaded is not changed.
SIDE_PX = 900


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShownPicture(_Model):
    """One picture of the page.

    Attributes:
        name: as in ``pictures.json``.
        width, height: pixels of ``file``.
        file: JPEG.
        heat: PNG to lay over it; None when nothing is to be seen or the bundle says nothing.
    """

    name: str
    width: int
    height: int
    file: str
    heat: str | None


class PictureViewFacts(_Model):
    """What lies in the folder, in the order of ``pictures.json``."""

    pictures: tuple[ShownPicture, ...]

    @classmethod
    def load(cls, folder: Path) -> PictureViewFacts | None:
        """The facts of a folder that ``prepare_picture_view`` wrote; None when there are none.

        Raises:
            StudyError: they are of another version, or damaged.
        """
        try:
            return cls.model_validate_json((folder / FACTS_FILE).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise StudyError(
                "the pictures of this study were prepared by another version",
                where=FACTS_FILE,
                fix="Run the study again",
            ) from error


def prepare_picture_view(
    shown: Iterable[tuple[PictureFinding, SliceImage, PictureAnswer]], folder: Path
) -> PictureViewFacts:
    """Write each picture and its heat; ``view.json`` comes last: where it is, the folder is whole.

    Args:
        shown: finding, picture and answer of those that were judged, in order; one is held at a time.
        folder: made when missing; by custom ``results / VIEW_FOLDER``.

    Raises:
        OutputError: the folder cannot be written.
    """
    pictures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FACTS_FILE).unlink(missing_ok=True)
        for number, (finding, image, answer) in enumerate(shown):
            pictures.append(_written(folder, number, finding, image, answer))
        facts = PictureViewFacts(pictures=tuple(pictures))
        (folder / FACTS_FILE).write_text(facts.model_dump_json(), encoding="utf-8")
    except OSError as error:
        raise OutputError("the pictures of the reading room cannot be written", fix="Look at the disk") from error
    return facts


def _written(
    folder: Path, number: int, finding: PictureFinding, image: SliceImage, answer: PictureAnswer
) -> ShownPicture:
    gray = _small(Image.fromarray(_gray(image)))
    file, heat = f"p{number:05d}.jpg", None
    (folder / file).write_bytes(encode_gray(np.asarray(gray)))
    if answer.heat is not None:
        values = Image.fromarray(answer.heat.over((image.pixels.shape[0], image.pixels.shape[1])))
        overlay = heat_overlay(np.asarray(_small(values), dtype=np.float32))
        if overlay is not None:
            heat = f"p{number:05d}.png"
            (folder / heat).write_bytes(encode_overlay(overlay))
    return ShownPicture(name=finding.name, width=gray.width, height=gray.height, file=file, heat=heat)


def _gray(image: SliceImage) -> Gray:
    """HU in the bone window, grey levels as they are: uint8 ``[y, x]``."""
    if image.unit == "HU":
        return bone_window(np.asarray(image.pixels, dtype=np.float32))
    return np.asarray(np.rint(np.asarray(image.pixels, np.float32) * 255), dtype=np.uint8)


def _small(picture: Image.Image) -> Image.Image:
    """At most ``SIDE_PX`` along the longer side, sides in proportion."""
    scale = min(1.0, SIDE_PX / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BILINEAR)
