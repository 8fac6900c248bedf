"""``Pipeline``: the steps of a recipe in order, loaded from a TOML table, refused when it names what is not there."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError

from cspine.errors import RecipeError
from cspine.imaging import artefacts, filters, geometry, intensity, labelling, warps
from cspine.imaging.balance import BalanceStep, OverSample, Smote, Table, UnderSample, WeightedSample
from cspine.imaging.dropout import CoarseDropout
from cspine.imaging.features import Canny, FeatureStep, Histogram, Hog, Sobel, Vector
from cspine.imaging.mixing import Batch, BatchStep, CutMix, Mixup
from cspine.imaging.registration import Register
from cspine.imaging.sample import Named, Sample, Step

Kind = TypeVar("Kind", bound=Named)


def _parse_step(table: Any) -> Any:
    return _parse(table, STEPS, Step)


AnyStep = Annotated[SerializeAsAny[Step], BeforeValidator(_parse_step)]


class OneOf(Step):
    """Exactly one of its own `steps`, drawn evenly."""

    kind: Literal["one-of"] = "one-of"
    steps: tuple[AnyStep, ...] = Field(min_length=1, description="a list like the pipeline's")

    def changed(self, sample: Sample, rng: np.random.Generator, /) -> Sample:
        """The sample after the drawn step."""
        return self.steps[rng.integers(len(self.steps))].apply(sample, rng)


def _by_kind(*classes: type[Kind]) -> dict[str, type[Kind]]:
    return {cls.model_fields["kind"].default: cls for cls in classes}


# What a recipe can name, by kind: changes to a sample, to a batch, to a data set, and descriptions of a sample.
STEPS: dict[str, type[Step]] = _by_kind(
    intensity.Rescale, intensity.Percentiles, intensity.Window, intensity.AsPicture, intensity.Standardise,
    intensity.Contrast, intensity.Gamma, intensity.Equalise, intensity.Clahe,
    filters.Gaussian, filters.Median, filters.MotionBlur, filters.Sharpen, filters.Noise,
    artefacts.KeepBody, artefacts.ClipMetal,
    geometry.Flip, geometry.Transpose, geometry.Roi, geometry.Resize, Register,
    warps.ShiftScaleRotate, warps.GridDistortion, warps.OpticalDistortion, warps.Elastic, CoarseDropout,
    Sobel, Canny, labelling.BoxesFromMask, labelling.LabelsFromBoxes, OneOf,
)  # fmt: skip
BATCH_STEPS: dict[str, type[BatchStep]] = _by_kind(Mixup, CutMix)
BALANCE_STEPS: dict[str, type[BalanceStep]] = _by_kind(UnderSample, OverSample, WeightedSample, Smote)
FEATURE_STEPS: dict[str, type[FeatureStep]] = _by_kind(Histogram, Hog)


def _parse(table: Any, known: Mapping[str, type[Named]], base: type[Named]) -> Any:
    """A step from its table; ValueError, as pydantic wants it, says what there is instead."""
    if isinstance(table, base):
        return table
    if not isinstance(table, Mapping):
        raise ValueError(f"expected a table with a kind, got {table!r}")
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"expected a kind of {', '.join(known)}, got {kind!r}")
    try:
        return known[kind].model_validate(dict(table))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else None
        parameters = [parameter for parameter in known[kind].model_fields if parameter != "kind"]
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{kind} has no {name!r}; it has {', '.join(parameters)}") from error
        got = f", got {table[name]!r}" if name in table and name != "steps" else ""
        place = kind if name is None else f"{kind}.{name}"
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}{got}") from error


class Pipeline(BaseModel):
    """All preprocessing and augmentation of a recipe: four lists of steps, each done in order, each empty by default.

    Attributes:
        balance: of the data set, before training.
        steps: of each sample.
        batch: of each batch.
        features: of each sample after its steps, joined to one vector.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    balance: tuple[
        Annotated[SerializeAsAny[BalanceStep], BeforeValidator(lambda t: _parse(t, BALANCE_STEPS, BalanceStep))], ...
    ] = ()
    steps: tuple[AnyStep, ...] = ()
    batch: tuple[
        Annotated[SerializeAsAny[BatchStep], BeforeValidator(lambda t: _parse(t, BATCH_STEPS, BatchStep))], ...
    ] = ()
    features: tuple[
        Annotated[SerializeAsAny[FeatureStep], BeforeValidator(lambda t: _parse(t, FEATURE_STEPS, FeatureStep))], ...
    ] = ()

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample after all ``steps``."""
        for step in self.steps:
            sample = step.apply(sample, rng)
        return sample

    def apply_batch(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The batch after all ``batch`` steps."""
        for step in self.batch:
            batch = step.apply(batch, rng)
        return batch

    def balanced(self, table: Table, rng: np.random.Generator) -> Table:
        """The data set after all ``balance`` steps."""
        for step in self.balance:
            table = step.apply(table, rng)
        return table

    def describe(self, sample: Sample) -> Vector:
        """All ``features`` of a sample that the steps were applied to, one after the other, ``(n,)`` float32."""
        return np.concatenate([np.zeros(0, np.float32), *(feature.describe(sample) for feature in self.features)])


def load_pipeline(table: Mapping[str, Any] | str | Path, *, where: str = "pipeline") -> Pipeline:
    """A pipeline from a table as TOML gives it, or from a TOML file.

    Args:
        table: ``{"steps": [{"kind": "window", "level": 500}, ...], "batch": [...], ...}``, or a path to that as TOML.
        where: what an error names as the place of the table.

    Raises:
        RecipeError: a step or parameter that does not exist, with those that do; a value out of its range; no TOML.
    """
    if isinstance(table, (str, Path)):
        where = Path(table).name
        try:
            table = tomllib.loads(Path(table).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"cannot read the pipeline: {error}", where=where, fix="Give a TOML file") from error
    try:
        return Pipeline.model_validate(dict(table))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"expected one of {', '.join(Pipeline.model_fields)}, got {key!r}"
        raise RecipeError(message, where=f"{where}: {key}", fix="Correct or remove that step") from error
