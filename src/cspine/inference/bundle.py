"""``Bundle``: what is shipped. A folder of ONNX files, a card, and ``bundle.json`` that vouches for every byte.

Files are read once, checked against their SHA-256 and kept in memory, so what was checked is what is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from cspine.errors import BundleError
from cspine.findings import LevelName
from cspine.inference.combiner import Calibration, Thresholds
from cspine.inference.planar import PlanarUse

SCHEMA_VERSION = "1"
MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = 1 << 30
DEFAULT_NAME = "base"

StageName = Literal["detector", "locator", "refiner", "classifier"]
# In the order in which they run. Volumes cannot be judged without a locator, single pictures can.
STAGES: tuple[StageName, ...] = ("detector", "locator", "refiner", "classifier")
Precision = Literal["f32", "bf16"]
# Plain names only: no separators, no drive, no leading dot, so a name cannot leave the folder.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Model):
    """One trained network. Two stages may share one file: its network is run once."""

    file: FileName
    planar: PlanarUse | None = Field(default=None, description="for a network that sees images one at a time")
    window: tuple[int, int, int] | None = Field(default=None, description="locator, refiner: largest block z, y, x")


class GateRecord(_Model):
    """What a lower precision did to this network's answers on real inputs; see ``runtime.gate``."""

    error: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    inputs: Annotated[int, Field(ge=1)]

    @property
    def passed(self) -> bool:
        """The error is within the tolerance."""
        return self.error <= self.tolerance


class Manifest(_Model):
    """The content of bundle.json.

    Attributes:
        schema_version: of this file; others are refused.
        name: of the bundle.
        version: of the bundle.
        recipe: name of the recipe that trained it.
        trained_on: one sentence for findings.
        stages: the networks: a ``locator``; mostly a ``classifier``, which may be the locator's own network; a
            ``refiner`` where masks follow the bone at 1 mm; a ``detector`` where images are cut to what it finds. A
            planar classifier may stand alone: such a bundle judges single pictures and no volume.
        types: fracture types in the order of the classifier's ``types`` output.
        type_levels: levels at which a type can occur; a type that is not listed can occur anywhere.
        calibration: fitted numbers, see ``combiner``.
        thresholds: from which probability on a fracture is stated.
        precision: measured tolerance of each stage to lower precisions; a precision without a record is not used.
        files: SHA-256 of every file but bundle.json.
    """

    schema_version: Literal["1"] = "1"
    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    recipe: str
    trained_on: str
    stages: dict[StageName, Stage]
    types: tuple[str, ...] = ()
    type_levels: dict[str, tuple[LevelName, ...]] = Field(default_factory=dict)
    calibration: Calibration = Calibration()
    thresholds: Thresholds = Thresholds()
    precision: dict[StageName, dict[Precision, GateRecord]] = Field(default_factory=dict)
    files: dict[FileName, Sha256]

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        alone = self.stages.get("classifier")
        if "locator" not in self.stages and (set(self.stages) != {"classifier"} or not alone or not alone.planar):
            raise ValueError("stages needs a locator, or a planar classifier alone")
        for stage in self.stages.values():
            if stage.file not in self.files:
                raise ValueError(f"{stage.file} is used by a stage but not in files")
        unknown = sorted(set(self.type_levels) - set(self.types))
        if unknown:
            raise ValueError(f"type_levels names {unknown[0]}, which is not in types")
        return self

    @property
    def judges_volumes(self) -> bool:
        """There is a locator; without one only single pictures can be judged."""
        return "locator" in self.stages

    def sharing(self, stage: StageName) -> tuple[StageName, ...]:
        """The stages that one network serves, this one among them."""
        return tuple(name for name in self.stages if self.stages[name].file == self.stages[stage].file)

    def tolerates(self, stage: StageName, precision: Precision) -> bool:
        """Whether the gate let this precision pass for a stage; ``f32`` always may."""
        record = self.precision.get(stage, {}).get(precision)
        return precision == "f32" or (record is not None and record.passed)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every file has been checked.

    Attributes:
        manifest: content of bundle.json.
        sha256: digest of bundle.json, and through it of every file: the bundle's identity.
        files: content by name.
    """

    manifest: Manifest
    sha256: str
    files: Mapping[str, bytes]

    def model(self, stage: StageName) -> bytes:
        """ONNX bytes of a stage."""
        return self.files[self.manifest.stages[stage].file]

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read and check a bundle.

        Raises:
            BundleError: no folder or bundle.json, unknown schema version, invalid manifest, a file missing, extra,
                changed, not a plain file, or unreadable.
        """
        folder = Path(folder)
        raw = _read(folder / MANIFEST, MAX_MANIFEST_BYTES)
        manifest = _parse(raw)
        _check_extra(folder, manifest)
        files = {name: _checked(folder / name, digest) for name, digest in manifest.files.items()}
        return cls(manifest, hashlib.sha256(raw).hexdigest(), files)

    @classmethod
    def default(cls) -> Bundle:
        """The bundle that comes with cspine.

        Raises:
            BundleError: it is not there, or damaged.
        """
        with resources.as_file(resources.files("cspine")) as package:
            folder = package / "bundles" / DEFAULT_NAME
            if not (folder / MANIFEST).is_file():
                raise BundleError(
                    "the built-in model bundle is missing",
                    where=f"cspine/bundles/{DEFAULT_NAME}",
                    fix="Install cspine again, or give another bundle with --bundle DIR",
                )
            return cls.load(folder)


def bundle_digest(folder: Path) -> str:
    """SHA-256 of a bundle's manifest, which holds the digests of all its files. Files are not read.

    Raises:
        BundleError: no bundle.json there.
    """
    return hashlib.sha256(_read(Path(folder) / MANIFEST, MAX_MANIFEST_BYTES)).hexdigest()


def write_bundle(folder: Path, files: Mapping[str, bytes], fields: Mapping[str, object]) -> Bundle:
    """Write ``files`` and a manifest with their digests, then load it back.

    Args:
        folder: made when missing; must not hold other files.
        files: content by plain name, every ONNX file and the card.
        fields: all of ``Manifest`` but ``schema_version`` and ``files``.

    Raises:
        BundleError: the fields are invalid, or the folder holds something else.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    try:
        manifest = Manifest.model_validate({**fields, "files": digests})
    except ValidationError as error:
        raise _invalid(error) from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_extra(folder, manifest)
    # The manifest goes first and comes last: an interrupted export leaves no bundle that looks valid.
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Bundle.load(folder)


def _parse(raw: bytes) -> Manifest:
    """The manifest; the version is looked at first, since other versions may have other fields."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError("expected JSON", where=MANIFEST, fix="Get the bundle again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"expected bundle schema {SCHEMA_VERSION}, got {version!r}"[:200],
            where=f"{MANIFEST}, schema_version",
            fix="Use a bundle made for this version of cspine, or update cspine",
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> BundleError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    where = f"{MANIFEST}, {place}" if place else MANIFEST
    return BundleError(f"invalid manifest: {first['msg']}", where=where, fix="Export the bundle again")


def _check_extra(folder: Path, manifest: Manifest) -> None:
    """Nothing may lie in the folder that the manifest does not vouch for."""
    known = {MANIFEST, *manifest.files}
    extra = sorted(entry.name for entry in folder.iterdir() if entry.name not in known)
    if extra:
        raise BundleError(
            f"expected only files listed in {MANIFEST}, got {re.sub(r'[^ -~]', '?', extra[0])[:80]}",
            where=folder.name,
            fix="Remove it, or get the bundle again",
        )


def _checked(path: Path, digest: str) -> bytes:
    """Content of a file whose digest is known."""
    content = _read(path, MAX_FILE_BYTES)
    actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise BundleError(
            f"expected SHA-256 {digest[:12]}…, got {actual[:12]}…: the file was changed or damaged",
            where=path.name,
            fix="Get the bundle again; do not use this one",
        )
    return content


def _read(path: Path, limit: int) -> bytes:
    """Content of a plain file inside a bundle; links are refused, since they lead elsewhere."""
    try:
        if path.is_symlink() or not path.is_file():
            found = "a link" if path.is_symlink() else "nothing" if not path.exists() else "something else"
            raise BundleError(f"expected a file, got {found}", where=path.name, fix="Get the bundle again")
        size = path.stat().st_size
        if size > limit:
            raise BundleError(
                f"expected at most {limit} bytes, got {size}", where=path.name, fix="Get the bundle again"
            )
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read: {error.strerror}", where=path.name, fix="Check the folder's rights") from error
