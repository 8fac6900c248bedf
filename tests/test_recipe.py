"""Recipes: what ships loads; what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cspine.errors import RecipeError
from cspine.training.recipe import LocatorStage, Recipe, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_under_their_own_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_a_recipe_survives_json() -> None:
    recipe = load_recipe("base")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_runs_of_earlier_versions_are_read() -> None:
    told = load_recipe("base").model_dump(mode="json")
    assert Recipe.model_validate({**told, "slice": None}) == load_recipe("base")
    with pytest.raises(ValidationError, match="slice"):
        Recipe.model_validate({**told, "slice": {"size": 224}})


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="base"):
        load_recipe("no-such-recipe")
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('name = "x"\nsurprise = 1\n', "surprise"),
        ('name = "x"\n[locator.schedule]\nlearning_rate = -1\n', "locator.schedule.learning_rate"),
        ('name = "x"\n[classifier.network]\nwidths = [1, 2]\n', "classifier.network.widths.2"),
        ('name = "Bad Name"\n', "name"),
        ('name = "x"\n[locator]\nwindow = [100, 96, 80]\n', "locator"),
        ('name = "x"\n[locator.network]\nclasses = 4\n', "locator"),
    ],
)
def test_the_offending_key_is_named(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.where == f"mine.toml: {key}"


def test_broken_toml_is_said_to_be_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = ")
    with pytest.raises(RecipeError, match="TOML"):
        load_recipe(path)


def test_recipes_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_recipe("base").name = "other"  # type: ignore[misc]


def test_a_window_must_fit_the_network() -> None:
    with pytest.raises(ValidationError, match="multiples of 16"):
        LocatorStage(window=(24, 32, 32))
