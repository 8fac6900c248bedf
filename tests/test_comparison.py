"""Comparing recipes: same images for all, shared networks once, nothing done twice, no failure that spreads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from cspine.cli.app import app
from cspine.errors import StudyError, UsageError
from cspine.evaluation.comparison import Comparison, Entry, compared, headline, to_markdown
from cspine.evaluation.forest import forest_plot
from cspine.evaluation.pages import comparison_page
from cspine.evaluation.running import store_record
from cspine.evaluation.scoring import figures_of
from cspine.inference.bundle import write_bundle
from cspine.inference.planar import PlanarView
from cspine.training import compare_job
from cspine.training.compare import SHIPPED, AnyJob, Plan, discard, run
from cspine.training.compare_job import RecipeJob, StageJob, do, main
from cspine.training.compare_plan import PRESETS, Budget, Haste, hastened, on_reference, resized, stage_key, steps_for
from cspine.training.compare_process import Done, Handle
from cspine.training.compare_table import FILES, Told, tabulate, write_comparison
from cspine.training.recipe import (
    ClassifierStage,
    LocatorStage,
    PlanarNetwork,
    PlanarStage,
    Recipe,
    RefinerStage,
    Schedule,
    SequenceNetwork,
)
from cspine.training.splits import Splits, write_splits
from labelled_factory import picture, write_picture
from score_factory import cohort

BUDGET = Budget(images=480, stacks=20, windows=50)
NAMES = tuple(f"case-{k:03d}" for k in range(12))
LEVELS_ONLY = PlanarStage(network=PlanarNetwork(heads=("levels",)), view=PlanarView(size=256))
BASE = Recipe(name="base", title="ours", source="ours", claim="nothing")
SEQUENCE = ClassifierStage(network=SequenceNetwork(size=128), schedule=Schedule(batch_size=2))
# Shares its locator and refiner with BASE.
OTHER = Recipe(name="other", source="a document", claim="accuracy 0.999", classifier=SEQUENCE)
# Names levels in a way of its own.
APART = Recipe(name="apart", locator=LEVELS_ONLY, refiner=None, classifier=SEQUENCE)
LOCATES = Recipe(name="locates", locator=LEVELS_ONLY, refiner=None, classifier=None)


# The measure by which all get the same.


def test_a_budget_gives_all_networks_of_a_kind_the_same_examples() -> None:
    budget = Budget(images=160, stacks=33, windows=7)
    assert steps_for(PlanarStage(schedule=Schedule(batch_size=16)), budget) == 10
    assert steps_for(PlanarStage(schedule=Schedule(batch_size=8, accumulate=2)), budget) == 10
    assert steps_for(ClassifierStage(schedule=Schedule(batch_size=8)), budget) == 5
    assert steps_for(LocatorStage(), budget) == 7 and steps_for(RefinerStage(), budget) == 7
    assert steps_for(PlanarStage(), Budget(images=1)) == 1


def test_sizes_cut_planar_views_and_images_of_stacks_and_nothing_else() -> None:
    small = resized(LOCATES, 160)
    assert isinstance(small.locator, PlanarStage) and small.locator.view.size == 160
    assert small.locator.model_copy(update={"view": LEVELS_ONLY.view}) == LEVELS_ONLY
    assert (small.refiner, small.classifier) == (None, None)
    other = resized(OTHER, 160, 96)
    assert other.classifier is not None and other.classifier.network.size == 96  # type: ignore[union-attr]
    assert resized(OTHER, 32) == OTHER
    assert other.locator == OTHER.locator
    # What is small already stays.
    assert resized(LOCATES, 512) == LOCATES and resized(BASE, 64, 64) == BASE


def test_haste_makes_more_steps_of_the_same_examples_and_leaves_detectors() -> None:
    haste, budget = Haste(batch=2, image_batch=4, learning_rate=5e-4), Budget(images=480, stacks=20, windows=50)
    slow = Schedule(batch_size=16, accumulate=2, learning_rate=1e-4, warmup_steps=100)
    whole = PlanarStage(network=PlanarNetwork(body="encoder", heads=("visible",)), schedule=slow)
    pixels = whole.model_copy(update={"network": PlanarNetwork()})
    detector = whole.model_copy(update={"network": PlanarNetwork(body="fcos", encoder="resnet50", heads=("boxes",))})
    recipe = Recipe(name="any", detector=detector, locator=pixels, refiner=None, classifier=SEQUENCE)
    quick = hastened(recipe, haste, budget)
    assert quick.detector == detector
    schedule = quick.locator.schedule
    assert (schedule.batch_size, schedule.accumulate, schedule.learning_rate) == (2, 1, 5e-4)
    assert steps_for(quick.locator, budget) == 240 and schedule.warmup_steps == 24
    assert quick.classifier is not None and quick.classifier.schedule.learning_rate == SEQUENCE.schedule.learning_rate
    of_images = hastened(LOCATES.model_copy(update={"locator": whole}), haste, budget).locator.schedule
    assert of_images.batch_size == 4 and of_images.learning_rate == 5e-4
    # The rate of SGD stays, and without haste everything does.
    sgd = LOCATES.model_copy(
        update={"locator": pixels.model_copy(update={"schedule": slow.model_copy(update={"optimizer": "sgd"})})}
    )
    assert hastened(sgd, haste, budget).locator.schedule.learning_rate == 1e-4
    assert hastened(recipe, None, budget) is recipe


def test_stages_are_the_same_when_all_that_decides_is() -> None:
    def key(recipe: Recipe, name: Any = "locator", steps: int = 10, data: str = "d") -> str:
        return stage_key(recipe, name, steps=steps, data=data)

    assert key(BASE) == key(OTHER) and key(BASE, "classifier") != key(OTHER, "classifier")
    others = {key(BASE, steps=11), key(BASE, data="e"), key(BASE.on_fold(1)), key(BASE.model_copy(update={"seed": 1}))}
    assert len(others) == 4 and key(BASE) not in others


def test_presets_name_themselves() -> None:
    sizes = PRESETS["seeds"]
    assert sizes.fold is not None and sizes.fold < sizes.folds
    assert type(sizes).model_validate_json(sizes.model_dump_json()) == sizes


# The work.


@dataclass
class Workshop:
    """Trains and exports in no time, and remembers what it was asked."""

    fitted: list[tuple[str, str, int]] = field(default_factory=list)
    exported: list[str] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    broken: str = ""

    def fit(self, recipe: Recipe, stage: str, samples: Path, folder: Path, options: Any) -> Path:
        self.fitted.append((recipe.name, stage, options.max_steps))
        if self.broken == f"{recipe.name} {stage}":
            raise StudyError("the loss is not a number", where=stage)
        checkpoint: Path = folder / stage / "last.ckpt"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(b"weights")
        return checkpoint

    def export(self, run: Path, out: Path, *, samples: Path) -> Any:
        recipe = Recipe.model_validate_json((run / "recipe.json").read_bytes())
        assert all((run / name / "last.ckpt").read_bytes() == b"weights" for name in recipe.stages())
        self.exported.append(recipe.name)
        fields = {"name": recipe.name, "version": "1", "recipe": recipe.name, "trained_on": "nothing"}
        return write_bundle(out, {"locator.onnx": b"x"}, fields | {"stages": {"locator": {"file": "locator.onnx"}}})

    def score(self, job: RecipeJob) -> None:
        from cspine.inference.bundle import bundle_digest

        name = job.folder.parent.name
        self.scored.append(name)
        skill = {"base": 1.5, "other": 0.8, SHIPPED.replace(" ", "-"): 3.0}.get(name, 0.1)
        for record in cohort(len(NAMES), skill, bundle=bundle_digest(job.bundle_folder)):
            if record.name in job.names:
                store_record(job.folder / "cases", record)

    def launch(self, job: AnyJob) -> Handle:
        tools = {"fit": self.fit} if isinstance(job, StageJob) else {"export": self.export}
        return Done(job, **tools)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    made = Workshop()
    monkeypatch.setattr(compare_job, "_score", made.score)
    monkeypatch.setattr("cspine.training.compare_table.bundle_sizes", lambda _: ())
    monkeypatch.setattr("cspine.training.compare._POLL", 0.0)
    return made


def plan_in(out: Path, *recipes: Recipe, **changes: Any) -> Plan:
    write_splits(Splits((NAMES[:6], NAMES[6:])), out / "samples")
    fields: dict[str, Any] = {"folds": (0, 1), "budget": BUDGET} | changes
    return Plan(out=out, data=out / "data", samples=out / "samples", recipes=recipes, **fields)


def test_what_recipes_share_is_trained_once_a_fold(tmp_path: Path, shop: Workshop) -> None:
    board = run(plan_in(tmp_path, BASE, OTHER, folds=(0,)), workers=2, launch=shop.launch)
    assert not board.failed
    assert [(name, stage) for name, stage, _ in shop.fitted] == [
        ("base", "locator"), ("base", "refiner"), ("base", "classifier"), ("other", "classifier"),
    ]  # fmt: skip
    steps = {(name, stage): count for name, stage, count in shop.fitted}
    assert steps["base", "locator"] == steps_for(BASE.locator, BUDGET)
    assert steps["other", "classifier"] == 10
    assert shop.exported == ["base", "other"]


def test_the_same_command_does_only_what_is_missing(tmp_path: Path, shop: Workshop) -> None:
    plan = plan_in(tmp_path, BASE, OTHER)
    run(plan, workers=1, launch=shop.launch)
    trained, exported, scored = len(shop.fitted), len(shop.exported), len(shop.scored)
    run(plan, workers=1, launch=shop.launch)
    assert (len(shop.fitted), len(shop.exported), len(shop.scored)) == (trained, exported, scored)
    shutil.rmtree(plan.place("other", 1) / "bundle")
    run(plan, workers=1, launch=shop.launch)
    # The networks are there still: nothing is trained, one bundle is made.
    assert (len(shop.fitted), shop.exported[exported:]) == (trained, ["other"])


def test_classifiers_are_also_judged_behind_the_locator_of_base(tmp_path: Path, shop: Workshop) -> None:
    assert on_reference(BASE, BASE) is None and on_reference(LOCATES, BASE) is None
    # It has that locator already.
    assert on_reference(OTHER, BASE) is None
    plan = plan_in(tmp_path, BASE, APART, folds=(0,))
    run(plan, workers=1, launch=shop.launch)
    assert shop.exported == ["base", "apart", "apart-on-base"]
    # Nothing is trained for it.
    assert {name for name, *_ in shop.fitted} == {"base", "apart"} and len(shop.fitted) == 5
    rows = {entry.name: entry for entry in tabulate(plan, Told("6 cases", True, {})).entries}
    assert set(rows) == {"base", "apart"} and rows["base"].apart is None
    figures = rows["apart"].apart
    assert figures is not None and figures.method == "apart-on-base"


def test_two_comparisons_do_not_work_in_one_folder(tmp_path: Path, shop: Workshop) -> None:
    plan = plan_in(tmp_path, LOCATES, folds=(0,))
    with FileLock(tmp_path / "compare.lock"), pytest.raises(UsageError, match="another comparison"):
        run(plan, workers=1, launch=shop.launch)
    assert not shop.fitted


def test_another_budget_makes_other_networks_and_bundles(tmp_path: Path, shop: Workshop) -> None:
    run(plan_in(tmp_path, LOCATES, folds=(0,)), workers=1, launch=shop.launch)
    run(plan_in(tmp_path, LOCATES, folds=(0,), budget=Budget(images=960)), workers=1, launch=shop.launch)
    assert [steps for *_, steps in shop.fitted] == [30, 60] and shop.exported == ["locates"] * 2


def test_a_recipe_that_fails_says_why_and_stops_no_other(tmp_path: Path, shop: Workshop) -> None:
    shop.broken = "other classifier"
    plan = plan_in(tmp_path, OTHER, BASE, folds=(0,))
    board = run(plan, workers=1, launch=shop.launch)
    assert len(board.failed) == 2 and shop.exported == ["base"]
    told = Told("six cases", True, {})
    found = tabulate(plan, told, failed={"absent": "no disk left"})
    assert [entry.name for entry in found.entries] == ["base"]
    assert found.failed["other"] == "its classifier could not be trained: the loss is not a number (classifier)"
    assert found.failed["absent"] == "no disk left"
    # Mended, the next run tries again and forgets the failure.
    shop.broken = ""
    run(plan, workers=1, launch=shop.launch)
    assert {entry.name for entry in tabulate(plan, told).entries} == {"base", "other"}


def test_checkpoints_that_nobody_needs_are_removed_and_not_missed(tmp_path: Path, shop: Workshop) -> None:
    plan = plan_in(tmp_path, BASE, OTHER, folds=(0,), keep=False)
    board = run(plan, workers=1, launch=shop.launch)
    discard(board)
    assert not list(tmp_path.rglob("*.ckpt"))
    trained = len(shop.fitted)
    run(plan, workers=1, launch=shop.launch)
    assert len(shop.fitted) == trained


def test_an_interruption_lets_everything_save_first(tmp_path: Path, shop: Workshop) -> None:
    ended: list[str] = []

    class Slow:
        def poll(self) -> int | None:
            raise KeyboardInterrupt

        def interrupt(self) -> None:
            ended.append("asked")

        def wait(self, seconds: float) -> None:
            ended.append("waited")

    with pytest.raises(KeyboardInterrupt):
        run(plan_in(tmp_path, BASE, OTHER), workers=2, launch=lambda _: Slow())
    assert ended == ["asked", "asked", "waited", "waited"]


def test_a_job_in_its_own_process_leaves_its_error_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = StageJob(folder=tmp_path / "s", recipe=BASE, stage="locator", steps=1, samples=tmp_path)
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())

    def fails(*_: object, **__: object) -> None:
        raise StudyError("no samples", where="locator")

    monkeypatch.setattr(compare_job, "do", fails)
    assert main([str(file)]) == StudyError.exit_code
    assert job.failure == "no samples (locator)"
    monkeypatch.undo()
    with pytest.raises(StudyError):
        do(job, fit=fails)  # type: ignore[arg-type]
    assert job.failure is None


def test_an_orphan_saves_and_ends_also_where_interrupts_were_ignored(tmp_path: Path) -> None:
    job = (
        "import os, pathlib, sys, time; from cspine.training.compare_job import _end_with_parent\n"
        "_end_with_parent(os.getppid())\n"
        "pathlib.Path(sys.argv[1], 'begun').touch()\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    pathlib.Path(sys.argv[1], 'saved').touch()\n"
    )
    parent = (
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # what nohup and a shell's & do
        "subprocess.Popen([sys.executable, '-c', sys.argv[2], sys.argv[1]])\n"
        "while not pathlib.Path(sys.argv[1], 'begun').exists():\n    time.sleep(0.05)\n"
    )
    subprocess.run([sys.executable, "-c", parent, str(tmp_path), job], check=True, timeout=60)
    until = time.monotonic() + 30
    while not (tmp_path / "saved").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert (tmp_path / "saved").exists()


def test_folds_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="split in 2"):
        run(plan_in(tmp_path, BASE, folds=(2,)), workers=1)


# The table.


@cache
def compared_methods() -> Comparison:
    skills = {"base": 1.5, "good": 3.0, "poor": 0.05}
    records = {name: cohort(30, skill) for name, skill in skills.items()}
    entries = [
        Entry(name=name, source=f"source of {name}", claim="Dice 1.00", figures=figures_of(of, method=name, data="d"))
        for name, of in records.items()
    ]
    return Comparison(data="30 held-back phantoms", phantoms=True, entries=compared(entries, records),
                      failed={"lost": "no | memory"}, settings={"split": "by patient"})  # fmt: skip


def test_the_table_is_in_order_and_says_what_phantoms_are_worth() -> None:
    found = compared_methods()
    assert [entry.name for entry in found.entries] == ["good", "base", "poor"]
    good, base, poor = found.entries
    assert base.difference is None
    assert good.difference is not None and good.difference.low > 0
    assert poor.difference is not None and poor.difference.high < 0 and poor.delong is not None
    assert headline(found).startswith("3 methods compared; good has the largest AUC a vertebra")
    # What was trained longer elsewhere is shown, and not ranked.
    other = found.entries[0].model_copy(update={"alike": False})
    assert headline(found.model_copy(update={"entries": (other, *found.entries[1:])})).startswith("2 methods compared")
    text = to_markdown(found)
    assert "predict nothing about patients" in text and "claims: Dice 1.00" in text
    assert "- `lost`: no / memory" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1 and len(rows) == 5
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_the_page_and_the_figure_show_every_method(tmp_path: Path) -> None:
    found = compared_methods()
    page = comparison_page(found).decode()
    assert "<script" not in page and "predict nothing about patients" in page and 'class="own"' in page
    for entry in found.entries:
        assert entry.name in page and entry.source in page
    drawn = forest_plot(found.entries)
    assert drawn["png"][:4] == b"\x89PNG" and b"#0b6b6f" in drawn["svg"]
    assert drawn == forest_plot(found.entries)
    write_comparison(found, tmp_path)
    assert all((tmp_path / name).is_file() for name in FILES)


def test_the_shipped_bundle_and_locators_have_rows_of_their_own(tmp_path: Path, shop: Workshop) -> None:
    shipped = tmp_path / "shipped"
    write_bundle(
        shipped,
        {"locator.onnx": b"y"},
        {"name": "base", "version": "0.3.0", "recipe": "base", "trained_on": "phantoms",
         "stages": {"locator": {"file": "locator.onnx"}}},
    )  # fmt: skip
    plan = plan_in(tmp_path, BASE, LOCATES, shipped=shipped)
    run(plan, workers=1, launch=shop.launch)
    found = tabulate(plan, Told("12 cases", False, {}))
    rows = {entry.name: entry for entry in found.entries}
    assert "0.3.0, trained far longer" in rows[SHIPPED].note and rows[SHIPPED].difference is not None
    assert rows["locates"].note == "locates only"
    assert rows["base"].figures.cases == 12 and rows["base"].steps["classifier"] == 3


# The command.


def test_the_command_needs_recipes_and_cases(tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "out")]
    assert CliRunner().invoke(app, ["compare", "base", *out]).exit_code == 2
    assert CliRunner().invoke(app, ["compare", "--data", str(tmp_path), *out]).exit_code == 2
    assert CliRunner().invoke(app, ["compare", "--preset", "sapling", *out]).exit_code == 2
    write_picture(tmp_path / "pictures" / "fractured" / "a.png", picture(0))
    flat = CliRunner().invoke(app, ["compare", "base", "--data", str(tmp_path / "pictures"), *out])
    assert flat.exit_code == 2 and "single pictures" in flat.output
    wrong = CliRunner().invoke(app, ["compare", "--preset", "seeds", "--size", "50", *out])
    assert wrong.exit_code == 2 and "--size" in wrong.output


def test_the_command_compares_and_names_what_it_could_not(
    tmp_path: Path, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cspine.cli import compare as command

    def prepared(_: Path, samples: Path, *__: object) -> None:
        write_splits(Splits((NAMES[:6], NAMES[6:])), samples)

    data = SimpleNamespace(kind="phantoms", studies=NAMES, faults={})
    monkeypatch.setattr(command, "_prepared", prepared)
    monkeypatch.setattr("cspine.evaluation.labelled_set.opened", lambda _: data)
    monkeypatch.setattr("cspine.training.compare.in_process", shop.launch)
    recipe = tmp_path / "locates.toml"
    recipe.write_text(
        'name = "locates"\nrefiner = "none"\nclassifier = "none"\n'
        '[locator.network]\nkind = "planar"\nheads = ["levels"]\n'
    )
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["compare", str(recipe), "nothing", "--data", str(tmp_path), "--folds", "2", "--fold", "1",
              "--images", "32", "--size", "64", "--no-shipped", "-o", str(out)]
    )  # fmt: skip
    assert done.exit_code == 8 and "1 recipes could not be compared" in done.output
    found = Comparison.model_validate_json((out / "comparison.json").read_bytes())
    assert [entry.name for entry in found.entries] == ["locates"] and "nothing" in found.failed
    assert "saw 32 images" in found.settings["training"] and "64 pixels" in found.settings["size"]
    made = Recipe.model_validate_json(next(out.rglob("recipe.json")).read_bytes())
    assert made.locator.fold == 1 and made.locator.view.size == 64  # type: ignore[union-attr]
    assert json.loads((out / "comparison.json").read_bytes())["phantoms"] is True
