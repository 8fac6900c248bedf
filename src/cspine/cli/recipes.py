"""``cspine recipes``: the methods that can be trained, where each comes from, and what each consists of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cspine.cli.console import stdout

if TYPE_CHECKING:
    from pydantic import BaseModel

    from cspine.training.recipe import Recipe

_BODIES = {"unet": "U-Net on {0}", "encoder": "{0}", "own": "plain CNN", "yolo": "{0}"}
# Keys of a stage that have a line of their own; the others stand together on the last one.
_TABLES = ("view", "pooling", "augment", "loss", "schedule")


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Show this recipe in full; a name, or a .toml file.", show_default=False),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods that can be trained with their networks and sources, or show one in full.

    Needs no optional part: nothing is built or trained.
    """
    from cspine.training.recipe import load_recipe, recipe_names

    if name is not None:
        recipe = load_recipe(name)
        if as_json:
            typer.echo(recipe.model_dump_json(indent=2))
            return
        console = stdout()
        for line in _full(recipe):
            console.print(line, markup=False, soft_wrap=True)
        return
    found = [load_recipe(each) for each in recipe_names()]
    if as_json:
        import json

        typer.echo(json.dumps([_summary(recipe) for recipe in found], indent=2, ensure_ascii=False))
        return
    _print_table(found)


def _print_table(found: list[Recipe]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("networks", ratio=3)
    table.add_column("source", ratio=2)
    for recipe in found:
        networks = "; ".join(f"{stage} {text}" for stage, text in _networks(recipe).items())
        # Text, so that nothing in a recipe is read as markup.
        table.add_row(Text(recipe.name), Text(networks), Text(recipe.source))
    stdout().print(table)


def _summary(recipe: Recipe) -> dict[str, Any]:
    keys = ("name", "version", "title", "source", "claim", "shared")
    return {key: getattr(recipe, key) for key in keys} | {"networks": _networks(recipe)}


def _stages(recipe: Recipe) -> dict[str, Any]:
    """The networks that ``cspine train`` trains for a recipe."""
    return {str(name): stage for name, stage in recipe.stages().items()}


def _networks(recipe: Recipe) -> dict[str, str]:
    """What each stage's network is, in a few words."""
    out = {name: _network(stage.network) for name, stage in _stages(recipe).items()}
    if recipe.shared:
        out["locator"] += ", judges as well"
    return out


def _network(network: Any) -> str:
    if network.kind == "planar":
        body = _BODIES.get(network.body, network.body.upper() + " on {0}").format(network.encoder)
        fractured = ", fractured or not" if network.fractured_boxes else ""
        return f"{body}: {', '.join(network.heads)}{fractured}"
    if network.kind == "sequence":
        return _sequence(network)
    if network.kind == "flexible-unet3d":
        return f"3D U-Net on {network.backbone}"
    if network.kind == "unet3d":
        return "3D U-Net"
    return f"{'plain CNN' if network.encoder == 'own' else network.encoder}, evidence map, BiLSTM {network.hidden}"


def _sequence(network: Any) -> str:
    parts = ["plain CNN" if network.encoder == "own" else network.encoder.removeprefix("torchvision:")]
    if network.unet:
        parts[0] = f"U-Net on {parts[0]}"
    if network.recurrent != "none":
        twice = f"{network.layers} x " if network.layers > 1 else ""
        both = "Bi" if network.bidirectional else ""
        parts.append(f"{twice}{both}{network.recurrent.upper()} {network.hidden}")
    parts += [word for word in ("attention", "convolution") if getattr(network, word)]
    return ", ".join(parts)


def _full(recipe: Recipe) -> Iterator[str]:
    """Lines about one recipe: who it is from, then every number of every stage."""
    yield f"{recipe.name} {recipe.version}"
    yield recipe.title
    yield f"source  {recipe.source or 'none'}"
    yield f"claim   {recipe.claim or 'none'}"
    networks = _networks(recipe)
    for name, stage in _stages(recipe).items():
        yield ""
        yield f"{name}: {networks[name]}"
        yield from _stage(stage)


def _stage(stage: BaseModel) -> Iterator[str]:
    tables = stage.model_dump(mode="json")
    yield f"  network   {_said(tables.pop('network'))}"
    for key in _TABLES:
        if key not in tables:
            continue
        values = tables.pop(key)
        if key == "augment" and "steps" in values:
            for place, steps in values.items():
                for step in steps:
                    yield f"  augment   {place}: {_said(step)}"
        else:
            yield f"  {key:<9} {_said(values)}"
    if tables:
        yield f"  data      {_said(tables)}"


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + _said(value) + "}"
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
