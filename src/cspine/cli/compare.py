"""``cspine compare``: several recipes trained, exported and scored on the same cases, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli import console
from cspine.cli.extras import require
from cspine.errors import BatchError, CspineError, UsageError

if TYPE_CHECKING:
    from cspine.training.compare import Plan
    from cspine.training.compare_plan import Preset
    from cspine.training.compare_table import Told
    from cspine.training.recipe import Recipe

# Of a comparison without a preset.
DEFAULT_FOLDS = 5


class Accelerator(StrEnum):
    """What trains."""

    CPU = "cpu"
    GPU = "gpu"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line was given, with the preset's numbers where it was not."""

    recipes: tuple[str, ...]
    out: Path
    data: Path | None
    preset: Preset
    named: str | None
    workers: int
    threads: int
    accelerator: str
    weights: Path | None
    shipped: bool
    keep: bool


def compare(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="RECIPE...", help="Names or .toml files (default: of the preset).")
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything; the same one goes on.")],
    preset: Annotated[
        str | None, typer.Option(help="seeds: all recipes that come with cspine, on phantoms drawn for it.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Labelled studies: RSNA 2022, phantoms, NIfTI, pictures.", file_okay=False)
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Parts that the patients are split into (default: 5).", min=2)
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Hold back this part only, instead of all in turn.", min=0)] = None,
    images: Annotated[
        int | None, typer.Option(help="Images that every planar network sees (default: 20000).", min=1)
    ] = None,
    stacks: Annotated[
        int | None, typer.Option(help="Vertebrae that every classifier of stacks sees (default: 8000).", min=1)
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help="Windows that every 3D network sees (default: 2000).", min=1)
    ] = None,
    size: Annotated[int | None, typer.Option(help="Cut planar views to this many pixels at most.", min=32)] = None,
    stack_size: Annotated[
        int | None, typer.Option(help="Cut images of stacks to this many rows at most.", min=32)
    ] = None,
    phantoms: Annotated[
        int | None, typer.Option(help="Phantoms to draw, with --preset and without --data.", min=2)
    ] = None,
    workers: Annotated[int, typer.Option(help="Networks that are trained at a time, a process each.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Processor threads of each process.", min=1)] = 1,
    accelerator: Annotated[Accelerator, typer.Option(help="What trains.")] = Accelerator.CPU,
    weights: Annotated[Path | None, typer.Option(help="Folder of pretrained encoder weights.", file_okay=False)] = None,
    shipped: Annotated[
        bool, typer.Option("--shipped/--no-shipped", help="Score the bundle that comes with cspine beside them.")
    ] = True,
    keep: Annotated[
        bool | None,
        typer.Option("--keep/--no-keep", help="Keep checkpoints no longer needed (default: remove with --preset)."),
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Only write the table of what is finished.")] = False,
) -> None:
    """Compare recipes: same cases, same images, one table.

    The same command goes on after an interruption. A recipe that fails is noted with its reason and stops no other.
    """
    require("train", for_what="cspine compare")
    from cspine.training.compare import run
    from cspine.training.compare_table import tabulate, write_comparison

    sizes = _sizes(
        preset,
        {"folds": folds, "fold": fold, "size": size, "stack_size": stack_size, "phantoms": phantoms},
        {"images": images, "stacks": stacks, "windows": windows},
    )
    kept = preset is None if keep is None else keep
    options = Options(
        _names(recipes, preset), out, data, sizes, preset, workers, threads, accelerator.value, weights, shipped, kept
    )
    if preset is None and data is None:
        raise UsageError("no cases to compare on", where="--data", fix="Give --data DIR, or --preset seeds")
    chosen, failed = _recipes(options.recipes)
    plan = _plan(options, chosen)
    if not table:
        with _watching() as progress:
            run(plan, workers=workers, progress=progress)
    comparison = tabulate(plan, _told(options, plan), failed=failed)
    write_comparison(comparison, out)
    typer.echo(f"{len(comparison.entries)} methods compared: {out / 'comparison.html'}")
    if comparison.failed:
        raise BatchError(
            f"{len(comparison.failed)} recipes could not be compared; the others are",
            where=str(out / "comparison.html"),
            fix="The page says why; the same command tries them again",
        )


def _names(given: Sequence[str] | None, preset: str | None) -> tuple[str, ...]:
    """The recipes that are asked for; a preset has all that come with cspine.

    Raises:
        UsageError: none.
    """
    from cspine.training.recipe import recipe_names

    if given:
        return tuple(dict.fromkeys(given))
    if preset is None:
        raise UsageError("no recipe to compare", where="RECIPE", fix="Name some, or give --preset seeds")
    # The reference is trained first.
    names = sorted(recipe_names(), key=lambda name: (name != "base", name))
    return tuple(names)


def _recipes(names: Sequence[str]) -> tuple[tuple[Recipe, ...], dict[str, str]]:
    """The recipes, and why some cannot be compared."""
    from cspine.training.compare_job import reason_of
    from cspine.training.recipe import load_recipe

    chosen: dict[str, Recipe] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            recipe = load_recipe(name)
            if recipe.name in chosen:
                raise UsageError("another recipe has this name", where=recipe.name)
            chosen[recipe.name] = recipe
        except CspineError as error:
            failed[name] = reason_of(error)
    return tuple(chosen.values()), failed


def _sizes(name: str | None, changes: dict[str, int | None], budget: dict[str, int | None]) -> Preset:
    """The preset's numbers, or those of a comparison without, with what the command line says otherwise.

    Raises:
        UsageError: no such preset, or a number that makes no sense.
    """
    from pydantic import ValidationError

    from cspine.training.compare_plan import PRESETS, Preset

    if name is not None and name not in PRESETS:
        raise UsageError(f"no preset {name!r}, expected one of {', '.join(PRESETS)}", where="--preset")
    table = (PRESETS[name] if name else Preset(phantoms=2, folds=DEFAULT_FOLDS)).model_dump()
    table |= {key: value for key, value in changes.items() if value is not None}
    table["budget"] |= {key: value for key, value in budget.items() if value is not None}
    try:
        return Preset.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{first['msg']}, got {first['input']}", where=f"--{first['loc'][-1]}") from error


def _plan(options: Options, recipes: tuple[Recipe, ...]) -> Plan:
    """Draw the phantoms where there are no data, prepare the samples, and say what is to be done.

    Raises:
        UsageError: the data are pictures.
    """
    from importlib import resources

    from cspine.evaluation.labelled_set import opened
    from cspine.training.compare import Plan

    if options.data is not None and opened(options.data).kind == "pictures":
        raise UsageError(
            "methods are compared on studies, and these are single pictures",
            where=str(options.data),
            fix="Score bundles on pictures one by one with cspine evaluate",
        )
    sizes = options.preset
    data = options.data or _drawn(options)
    samples = options.out / "samples"
    _prepared(data, samples, recipes, options)
    folds = tuple(range(sizes.folds)) if sizes.fold is None else (sizes.fold,)
    shipped = Path(str(resources.files("cspine"))) / "bundles" / "base"
    return Plan(
        out=options.out.resolve(),
        data=data.resolve(),
        samples=samples.resolve(),
        recipes=recipes,
        folds=folds,
        budget=sizes.budget,
        haste=sizes.haste,
        size=sizes.size,
        stack_size=sizes.stack_size,
        shipped=shipped if options.shipped else None,
        threads=options.threads,
        accelerator=options.accelerator,
        weights=options.weights,
        keep=options.keep,
    )


def _drawn(options: Options) -> Path:
    """The preset's own phantoms, drawn as far as they are missing."""
    from cspine.cli.phantom import run
    from cspine.evaluation.phantoms import known_preset
    from cspine.phantoms.cohort import Cohort

    sizes, folder = options.preset, options.out / "phantoms"
    # NIfTI keeps all that is true of a phantom: types, centres and where fractures are.
    kind = known_preset(sizes.phantom_preset)
    cohort = Cohort(folder, "nifti", sizes.seed, kind, sizes.prevalence)
    run(cohort, sizes.phantoms, workers=options.workers)
    return folder


def _prepared(data: Path, samples: Path, recipes: Sequence[Recipe], options: Options) -> None:
    """The samples of every kind that a recipe learns from; studies that cannot be used are told of on stderr."""
    from cspine.cli.prepare import opened, run
    from cspine.training.case_samples import KINDS, kinds_for

    kinds = {kind for recipe in recipes for kind in kinds_for(recipe)}
    preparation = opened(data, samples, wanted=tuple(kind for kind in KINDS if kind in kinds))
    preparation.begin(folds=options.preset.folds, seed=options.preset.seed)
    run(preparation, workers=options.workers)


def _told(options: Options, plan: Plan) -> Told:
    """How the comparison was made, in words."""
    from cspine import __version__
    from cspine.evaluation.labelled_set import opened
    from cspine.training.compare_table import Told

    sizes, data = options.preset, opened(plan.data)
    phantoms = data.kind == "phantoms"
    held = sum(len(plan.held_back(fold)) for fold in plan.folds)
    what = "phantoms" if phantoms else f"studies ({data.kind})"
    which = "every part held back in turn" if sizes.fold is None else f"part {sizes.fold} held back"
    command = f"cspine compare --preset {options.named}" if options.named else "cspine compare"
    settings = {
        "made by": f"{command}, cspine {__version__}",
        "split": f"{len(data.studies)} {what}, by patient in {sizes.folds} parts, {which}: {held} scored",
        "training": f"every planar network saw {sizes.budget.images} images, every classifier of stacks "
        f"{sizes.budget.stacks} vertebrae, every 3D network {sizes.budget.windows} windows",
        "schedules": _hurries(sizes),
        "size": _cuts(sizes),
        "device": f"training: {options.accelerator}, {options.threads} thread(s) a process, {options.workers} at a "
        f"time; seconds a study: CPU, {options.threads} thread(s)",
        "difference": "to base, bootstrap by patient over the same vertebrae; DeLong's interval: comparison.json",
        "size of networks": "weights of the ONNX graph; operations are in comparison.json",
    }
    return Told(f"{held} held-back {what}", phantoms, settings)


def _cuts(sizes: Preset) -> str:
    """What images are cut to, in words."""
    parts = []
    if sizes.size is not None:
        parts.append(f"planar images cut to {sizes.size} pixels")
    if sizes.stack_size is not None:
        parts.append(f"images of stacks to {sizes.stack_size} rows")
    return ", ".join(parts) + " at most" if parts else "as the recipes say"


def _hurries(sizes: Preset) -> str:
    """How schedules are changed, in words."""
    haste = sizes.haste
    if haste is None:
        return "the recipes' own, over fewer steps"
    return (
        f"the recipes' own, over fewer steps, with batches of {haste.batch} at most ({haste.image_batch} where a "
        f"network answers for an image as a whole) and with AdamW a rate of {haste.learning_rate:g} at least; "
        "detectors as they are. Larger batches and smaller rates, meant for pretrained weights and a long way, "
        "learnt nothing in so few images"
    )


@contextmanager
def _watching() -> Iterator[Callable[[int, int, Sequence[str]], None]]:
    """A bar of jobs on stderr, and what is under way; in a log file a line for each that begins."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    screen = console.stderr()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    told: set[str] = set()
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        task = bars.add_task("", total=None)

        def show(done: int, total: int, at_work: Sequence[str]) -> None:
            bars.update(task, completed=done, total=total, description="; ".join(at_work))
            for text in at_work:
                if text not in told and not screen.is_terminal:
                    screen.print(f"{done} of {total} done; {text}", markup=False, soft_wrap=True)
                told.add(text)

        yield show
