"""Pipelines: loaded from TOML, done in order, refused with the names of what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cspine.errors import RecipeError
from cspine.imaging import Batch, Pipeline, Sample, Table, load_pipeline
from cspine.imaging.intensity import rescale, window
from cspine.imaging.pipeline import BALANCE_STEPS, BATCH_STEPS, FEATURE_STEPS, STEPS
from imaging_factory import same, with_box

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reference" / "imaging.md"
EVERY = {**STEPS, **BATCH_STEPS, **BALANCE_STEPS, **FEATURE_STEPS}
NEEDS_AN_EXTRA = {"clahe", "canny"}


def example(language: str) -> str:
    """The first example of a language in the document."""
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_steps_are_done_in_order() -> None:
    image = np.linspace(-1000, 2000, 64).reshape(8, 8)
    pipeline = load_pipeline(
        {"steps": [{"kind": "window", "level": 300, "width": 800}, {"kind": "rescale", "low": -1}]}
    )
    out = pipeline.apply(Sample(image), np.random.default_rng(0))
    np.testing.assert_array_equal(out.image, rescale(window(image, 300, 800), -1, 1))


def test_an_empty_pipeline_does_nothing() -> None:
    sample = with_box(2, 2, 6, 6)
    assert Pipeline().apply(sample, np.random.default_rng(0)) is sample
    assert Pipeline().describe(sample).shape == (0,)


@pytest.mark.parametrize("kind", sorted(set(STEPS) - {"one-of", "register"}))
def test_every_step_works_with_its_defaults_and_changes_no_input(kind: str) -> None:
    if kind in NEEDS_AN_EXTRA:
        pytest.importorskip("skimage")
    sample = with_box(14, 10, 30, 26)
    copy = Sample(sample.image.copy(), None if sample.mask is None else sample.mask.copy(), sample.boxes)
    pipeline = load_pipeline({"steps": [{"kind": kind, "probability": 1.0}]})
    one, again = (pipeline.apply(sample, np.random.default_rng(4)) for _ in range(2))
    assert same(one, again)
    assert same(sample, copy)


@given(seed=st.integers(0, 200))
@settings(max_examples=20)
def test_probability_is_how_often(seed: int) -> None:
    sample = with_box(2, 2, 6, 6)
    rng = np.random.default_rng(seed)
    pipeline = load_pipeline({"steps": [{"kind": "flip", "probability": 0.3}]})
    done = sum(pipeline.apply(sample, rng) is not sample for _ in range(200))
    assert 0.15 < done / 200 < 0.45


def test_one_of_takes_one() -> None:
    """Either blurred or noisy, never both, never neither."""
    image = np.zeros((16, 16))
    image[:, 8:] = 1
    table = {
        "kind": "one-of",
        "steps": [{"kind": "flip", "axis": "x", "probability": 1}, {"kind": "transpose", "probability": 1}],
    }
    pipeline = load_pipeline({"steps": [table]})
    rng = np.random.default_rng(0)
    outs = [pipeline.apply(Sample(image), rng).image for _ in range(40)]
    flips = sum(np.array_equal(out, image[:, ::-1]) for out in outs)
    assert 10 < flips < 30
    assert flips + sum(np.array_equal(out, image.T) for out in outs) == 40


def test_two_numbers_are_drawn_between() -> None:
    pipeline = load_pipeline({"steps": [{"kind": "contrast", "gain": 1, "shift": [-0.2, 0.2]}]})
    image = np.full((4, 4), 0.5)
    image[0, 0], image[0, 1] = 0, 1
    rng = np.random.default_rng(0)
    values = {round(float(pipeline.apply(Sample(image), rng).image[2, 2]), 4) for _ in range(20)}
    assert len(values) > 15 and min(values) >= 0.3 and max(values) <= 0.7


def test_a_pipeline_survives_json() -> None:
    pipeline = load_pipeline(tomllib.loads(example("toml"))["preprocess"])
    assert Pipeline.model_validate_json(pipeline.model_dump_json()) == pipeline


def test_a_recipe_can_hold_one() -> None:
    class Recipe(BaseModel):
        preprocess: Pipeline = Pipeline()

    recipe = Recipe.model_validate({"preprocess": {"steps": [{"kind": "median"}]}})
    assert recipe.preprocess.steps[0].kind == "median"


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "steps.toml"
    path.write_text('[[steps]]\nkind = "median"\nsize = 5\n')
    assert load_pipeline(path).model_dump()["steps"] == ({"probability": 1.0, "kind": "median", "size": 5},)


@pytest.mark.parametrize(
    ("table", "message", "where"),
    [
        (
            {"steps": [{"kind": "median"}, {"kind": "denoise"}]},
            "expected a kind of rescale, .*got 'denoise'",
            "steps.1",
        ),
        ({"steps": [{"size": 3}]}, "expected a kind of rescale, .*got None", "steps.0"),
        ({"steps": ["median"]}, "expected a table with a kind, got 'median'", "steps.0"),
        ({"steps": [{"kind": "mixup"}]}, "expected a kind of rescale", "steps.0"),
        ({"batch": [{"kind": "flip"}]}, "expected a kind of mixup, cutmix, got 'flip'", "batch.0"),
        ({"balance": [{"kind": "smot"}]}, "smote, got 'smot'", "balance.0"),
        ({"features": [{"kind": "lbp"}]}, "histogram, hog, got 'lbp'", "features.0"),
        ({"steps": [{"kind": "median", "sise": 3}]}, "median has no 'sise'; it has probability, size", "steps.0"),
        ({"steps": [{"kind": "median", "size": 4}]}, "median.size: size must be odd, got 4", "steps.0"),
        ({"steps": [{"kind": "flip", "probability": 2}]}, "flip.probability: .*less than or equal to 1", "steps.0"),
        ({"steps": [{"kind": "gaussian", "sigma": [2, 1]}]}, "gaussian.sigma: .*smaller first", "steps.0"),
        ({"steps": [{"kind": "gaussian", "sigma": -1}]}, "gaussian.sigma: expected positive numbers", "steps.0"),
        ({"steps": [{"kind": "rescale", "low": 2}]}, "rescale: high must be above low", "steps.0"),
        ({"steps": [{"kind": "elastic", "amplitude": 20}]}, "elastic: amplitude must be at most 0.3", "steps.0"),
        ({"steps": [{"kind": "window", "level": float("nan")}]}, "window.level: ", "steps.0"),
        ({"steps": [{"kind": "rescale", "low": float("nan")}]}, "rescale.low: .*finite number", "steps.0"),
        ({"steps": "median"}, "valid tuple", "steps"),
        ({"steps": [{"kind": "register"}]}, "register.reference: Field required", "steps.0"),
        ({"steps": [{"kind": "one-of", "steps": [{"kind": "fip"}]}]}, "one-of.steps: .*got 'fip'", "steps.0"),
        ({"step": []}, "expected one of balance, steps, batch, features, got 'step'", "step"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(table: dict[str, Any], message: str, where: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_pipeline(table, where="base.toml")
    assert caught.value.where == f"base.toml: {where}"


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("steps = [")
    for name in ("bad.toml", "missing.toml"):
        with pytest.raises(RecipeError, match=name):
            load_pipeline(tmp_path / name)


def test_the_examples_of_the_document_run() -> None:
    for module in ("skimage", "imblearn"):
        pytest.importorskip(module)
    places: dict[str, Any] = {"text": example("toml")}
    exec(example("python"), places)
    assert isinstance(places["sample"], Sample) and places["sample"].image.shape == (224, 224)
    assert len(places["sample"].boxes) == 1
    assert isinstance(places["batch"], Batch) and isinstance(places["balanced"], Table)
    assert len(places["vector"]) == 16 + 13 * 13 * 4 * 9


def test_the_document_lists_every_step_with_its_parameters_and_defaults() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(kind for kind, _ in rows) == sorted(EVERY)
    for kind, parameters in rows:
        shown = dict(re.findall(r"`(\w+)` = (.+?)(?: \(|;|$)", parameters))
        fields = EVERY[kind].model_fields
        expected = {name: field for name, field in fields.items() if name not in ("kind", "probability")}
        assert sorted(shown) == sorted(expected), kind
        for name, field in expected.items():
            assert shown[name].strip() == written(field.default), (kind, name)


def written(default: Any) -> str:
    """A default as the document writes it, which is as TOML does, but for what has none."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return f"[{', '.join(written(value) for value in default)}]"
    if isinstance(default, str):
        return f'"{default}"'
    return f"{default:g}" if isinstance(default, (int, float)) else "required"
