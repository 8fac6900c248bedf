"""From finished runs to the comparison's files: JSON, page, table and figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cspine.evaluation.comparison import Comparison, Entry, compared, to_markdown
from cspine.evaluation.forest import forest_plot
from cspine.evaluation.network_size import bundle_sizes
from cspine.evaluation.pages import comparison_page
from cspine.evaluation.records import CaseRecord
from cspine.evaluation.scores import Figures
from cspine.evaluation.scoring import figures_of
from cspine.inference.bundle import Bundle
from cspine.reports.atomic import write_file
from cspine.training.compare import SHIPPED, Plan, records_of
from cspine.training.compare_job import DONE_FILE, RecipeJob
from cspine.training.recipe import PlanarStage, Recipe
from cspine.training.yolo import settled

FILES = ("comparison.json", "comparison.html", "comparison.md", "comparison.png", "comparison.svg")


@dataclass(frozen=True, slots=True)
class Told:
    """What a table says of how it was made, in words."""

    data: str
    phantoms: bool
    settings: Mapping[str, str]


def tabulate(plan: Plan, told: Told, *, failed: Mapping[str, str] | None = None) -> Comparison:
    """The comparison of all recipes that are scored by now.

    Args:
        plan: what was compared.
        told: how, in words.
        failed: recipes that could not even be begun, and why.
    """
    of_method: dict[str, list[RecipeJob]] = {}
    for job in plan.recipe_jobs():
        of_method.setdefault(_method(job), []).append(job)
    entries, records = [], {}
    reasons = dict(failed or {})
    exchanged = {other.name: name for name, other in plan.exchanged().items()}
    apart: dict[str, Figures] = {}
    for name, jobs in of_method.items():
        broken = next((job for job in jobs if job.failure is not None), None)
        found = [] if broken else _records(jobs)
        if not found:
            reasons[name] = (broken.failure if broken else None) or "not finished"
            continue
        if name in exchanged:
            apart[exchanged[name]] = _figures(plan, name, jobs, found)
            continue
        records[name] = found
        entries.append(_entry(plan, name, jobs, found))
    entries = [entry.model_copy(update={"apart": apart.get(entry.name)}) for entry in entries]
    return Comparison(
        data=told.data,
        phantoms=told.phantoms,
        settings=dict(told.settings),
        entries=compared(entries, records),
        failed=reasons,
    )


def write_comparison(comparison: Comparison, out: Path, *, figure: bool = True) -> None:
    """Write ``FILES``.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_file(out / FILES[0], (comparison.model_dump_json(indent=1) + "\n").encode())
    write_file(out / FILES[1], comparison_page(comparison))
    write_file(out / FILES[2], to_markdown(comparison).encode())
    note = "Phantoms rank methods and predict nothing about patients." if comparison.phantoms else ""
    for ending, data in forest_plot(comparison.entries, note=note).items() if figure else ():
        write_file(out / f"comparison.{ending}", data)


def _method(job: RecipeJob) -> str:
    return SHIPPED if job.recipe is None else job.recipe.name


def _records(jobs: Sequence[RecipeJob]) -> list[CaseRecord]:
    """The scored cases of all folds; nothing unless every fold is finished."""
    out: list[CaseRecord] = []
    for job in jobs:
        if not job.is_exported:
            return []
        found, faults = records_of(job)
        if len(found) + len(faults) < len(job.names):
            return []
        out += found
    return out


def _figures(
    plan: Plan, name: str, jobs: Sequence[RecipeJob], records: Sequence[CaseRecord], *, judges: bool = True
) -> Figures:
    return figures_of(
        records,
        method=name,
        data=f"{len(records)} held-back cases",
        sizes=bundle_sizes(Bundle.load(jobs[0].bundle_folder)),
        threads=plan.threads,
        faults={study: reason for job in jobs for study, reason in records_of(job)[1].items()},
        judges=judges,
    )


def _entry(plan: Plan, name: str, jobs: Sequence[RecipeJob], records: Sequence[CaseRecord]) -> Entry:
    recipe = next((one for one in plan.recipes if one.name == name), None)
    judges = recipe is None or recipe.shared or recipe.classifier is not None
    figures = _figures(plan, name, jobs, records, judges=judges)
    if recipe is None:
        manifest = Bundle.load(jobs[0].bundle_folder).manifest
        note = f"{manifest.name} {manifest.version}, trained far longer and on other data: no like-for-like row"
        title = "the bundle that comes with cspine"
        return Entry(name=name, title=title, source="ours", note=note, alike=False, figures=figures)
    facts = [_facts(folder / DONE_FILE) for job in jobs for folder in job.stages.values()]
    minutes = [float(str(one["minutes"])) for one in facts if "minutes" in one]
    return Entry(
        name=name,
        title=recipe.title,
        source=recipe.source,
        claim=recipe.claim,
        note="; ".join(_notes(recipe, judges)),
        figures=figures,
        minutes=round(sum(minutes), 1) if minutes else None,
        steps={str(one["stage"]): int(str(one["steps"])) for one in facts if "steps" in one},
    )


def _notes(recipe: Recipe, judges: bool) -> list[str]:
    """What a reader of a row must know."""
    notes = [] if judges else ["locates only"]
    planar = [stage for stage in recipe.stages().values() if isinstance(stage, PlanarStage)]
    if any(settled(stage)[1] for stage in planar):
        notes.append("FCOS of about its size in place of YOLO, whose extra is not installed")
    return notes


def _facts(path: Path) -> dict[str, object]:
    """What a finished stage noted of itself; nothing when it is not there."""
    with suppress(OSError, ValueError):
        return dict(json.loads(path.read_bytes()))
    return {}
