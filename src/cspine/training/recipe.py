"""``Recipe``: a method as one typed configuration, loaded from TOML.

A recipe has stages; a stage is one trained network with its data, augmentation, losses and schedule.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from cspine.errors import RecipeError
from cspine.inference.bundle import STAGES, StageName
from cspine.training.recipe_networks import (
    FlexibleUNetNetwork,
    Fraction,
    PlanarNetwork,
    Positive,
    SequenceNetwork,
    StackNetwork,
    StackWindow,
    UNet3dNetwork,
)
from cspine.training.recipe_stages import (
    TAGS,
    ClassifierAugment,
    ClassifierLoss,
    ClassifierStage,
    LocatorAugment,
    LocatorLoss,
    LocatorStage,
    PlanarLoss,
    PlanarStage,
    RefinerAugment,
    RefinerLoss,
    RefinerStage,
    Schedule,
    WindowAugment,
)

__all__ = [
    "ClassifierAugment", "ClassifierLoss", "ClassifierStage", "FlexibleUNetNetwork", "LocatorAugment", "LocatorLoss",
    "LocatorStage", "PhantomData", "PlanarLoss", "PlanarNetwork", "PlanarStage", "Recipe", "RefinerAugment",
    "RefinerLoss", "RefinerStage", "Schedule", "SequenceNetwork", "StackNetwork", "StackWindow", "Stage",
    "UNet3dNetwork", "WindowAugment", "load_recipe", "recipe_names",
]  # fmt: skip


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _look(table: Any) -> str:
    """Whether a stage is a planar one: its network says so."""
    network = table.get("network", {}) if isinstance(table, Mapping) else getattr(table, "network", None)
    kind = network.get("kind") if isinstance(network, Mapping) else getattr(network, "kind", None)
    return "planar" if kind == "planar" else "solid"


def _none(table: Any) -> Any:
    """TOML has no null: a stage that a method does without is written ``"none"``."""
    return None if table == "none" else table


# Heads of which a planar locator, and a planar classifier, needs at least one.
_LOCATING, _JUDGING = {"levels", "visible", "boxes"}, {"fracture", "broken", "slice"}
_Planar = Annotated[PlanarStage, Tag("planar")]
Locator = Annotated[_Planar | Annotated[LocatorStage, Tag("solid")], Discriminator(_look)]
Classifier = Annotated[_Planar | Annotated[ClassifierStage, Tag("solid")], Discriminator(_look)]
Stage = LocatorStage | RefinerStage | ClassifierStage | PlanarStage


class PhantomData(_Model):
    """Which phantoms are drawn for training."""

    locator_presets: tuple[str, ...] = ("coarse",)
    classifier_presets: tuple[str, ...] = ("spine",)
    fracture_multiplier: Positive = Field(default=6.0, description="factor on the odds of fractures, locator")
    fracture_rate: Fraction = Field(default=0.4, description="chance of a fracture a vertebra, classifier")
    mesh_share: Fraction = Field(default=0.7, description="share of spines drawn from meshes, when any are given")


class Recipe(_Model):
    """A complete method: who it comes from, its stages and its data.

    Attributes:
        name: of the method.
        version: of the method; a bundle takes it over.
        title: what it is, in one line.
        source: who described it.
        claim: what its description claims, and on what; for the table of comparison.
        seed: of everything that is drawn in training.
        detector: finds the box that planar stages with ``view.field = "detected"`` are cut to.
        locator: which voxels belong to which vertebra.
        refiner: redraws the locator's mask along the bone; may be missing.
        classifier: how fractured they look. None for a method that only locates.
        shared: the locator's network judges as well; there is no classifier then.
        phantoms: which are drawn for training.
    """

    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: str = "0.1.0"
    title: str = ""
    source: str = ""
    claim: str = ""
    seed: int = 0
    detector: Annotated[PlanarStage | None, BeforeValidator(_none)] = None
    locator: Locator = LocatorStage()
    refiner: Annotated[RefinerStage | None, BeforeValidator(_none)] = RefinerStage()
    classifier: Annotated[Classifier | None, BeforeValidator(_none)] = ClassifierStage()
    shared: bool = False
    phantoms: PhantomData = PhantomData()

    @model_validator(mode="before")
    @classmethod
    def _older(cls, table: Any) -> Any:
        """Runs of earlier versions say that they have no ``slice``, a kind of stage that there is no more."""
        if isinstance(table, Mapping) and table.get("slice", ...) is None:
            return {key: value for key, value in table.items() if key != "slice"}
        return table

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        locator = self.locator
        if isinstance(locator, PlanarStage) and not _LOCATING & set(locator.network.heads):
            raise ValueError("a planar locator needs one of the heads levels, visible and boxes")
        if self.shared and (self.classifier is not None or not isinstance(locator, PlanarStage)):
            raise ValueError('shared = true needs classifier = "none" and a planar locator')
        judge = locator if self.shared else self.classifier
        if isinstance(judge, PlanarStage) and not (
            _JUDGING & set(judge.network.heads) or judge.network.fractured_boxes
        ):
            raise ValueError("a planar classifier needs the head fracture, broken or slice, or fractured_boxes")
        if self.detector is not None and self.detector.network.heads != ("boxes",):
            raise ValueError("the detector has boxes as its one head")
        planar = [stage for stage in (locator, self.classifier) if isinstance(stage, PlanarStage)]
        if self.detector is None and any(stage.view.field == "detected" for stage in planar):
            raise ValueError('view.field = "detected" needs a detector')
        return self

    def stages(self) -> dict[StageName, Stage]:
        """The networks to train, in the order in which they run."""
        return {name: stage for name in STAGES if (stage := getattr(self, name)) is not None}

    def on_fold(self, fold: int) -> Recipe:
        """The same method with another part of the data held back."""
        return self.model_copy(
            update={name: stage.model_copy(update={"fold": fold}) for name, stage in self.stages().items()}
        )


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with cspine."""
    folder = resources.files("cspine.training") / "recipes"
    return tuple(sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml")))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by name (``"base"``) or any TOML file by path.

    Raises:
        RecipeError: no such recipe, not TOML, or an invalid value; ``where`` names the file and the offending key.
    """
    table, where = _table(name_or_path)
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in TAGS) or "top level"
        got = "" if isinstance(first.get("input"), dict) else f", got {first.get('input')!r}"
        message = first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{message}{got}", where=f"{where}: {key}", fix="Correct or remove that key") from error


def _table(name_or_path: str | Path) -> tuple[dict[str, Any], str]:
    """A recipe's TOML with what it takes over from the recipe named in ``like``, and what to call it in errors."""
    text, where = _read(name_or_path)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"expected TOML: {error}", where=where, fix="Correct the syntax") from error
    like = table.pop("like", None)
    if like is None:
        return table, where
    known = [name for name in recipe_names() if f"{name}.toml" != where]
    if like not in known:
        raise RecipeError(f"expected one of {', '.join(known)}, got {like!r}", where=f"{where}: like")
    other, _ = _table(like)
    return _merged(other, table), where


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``: tables are merged key by key, anything else is replaced.

    A stage whose network is of another kind, and a network of another body, replace the whole table: they have other
    keys.
    """
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        merges = isinstance(old, Mapping) and isinstance(value, Mapping) and not _is_other(old, value)
        out[key] = _merged(old, value) if merges else value  # type: ignore[arg-type]
    return out


def _is_other(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two tables are stages of another kind of network, or networks of another body."""
    network = new.get("network")
    if isinstance(network, Mapping) and "kind" in network and _look(new) != _look(old):
        return True
    return any(name in new and new[name] != old.get(name) for name in ("kind", "body"))


def _read(name_or_path: str | Path) -> tuple[str, str]:
    path = Path(name_or_path)
    if path.suffix == ".toml":
        try:
            return path.read_text(encoding="utf-8"), path.name
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe: {error}", where=path.name) from error
    known = recipe_names()
    if str(name_or_path) not in known:
        raise RecipeError(
            f"expected one of {', '.join(known)} or a .toml file, got {str(name_or_path)!r}",
            where="recipe",
            fix="Choose one of these names or give a path that ends in .toml",
        )
    file = resources.files("cspine.training") / "recipes" / f"{name_or_path}.toml"
    return file.read_text(encoding="utf-8"), f"{name_or_path}.toml"
