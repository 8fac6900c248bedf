"""What a new run's network starts from: weights learnt on photographs where there are any, or those of another run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cspine.errors import OutputError, RecipeError
from cspine.training.imagenet import find_imagenet, load_imagenet
from cspine.training.pretrained import start_from_pretrained

# Beside a checkpoint: where its encoder's first weights came from.
PRETRAINED = "pretrained.json"


def first_weights(network: nn.Module, config: Any, record: Path, folder: Path | None = None) -> str:
    """Load the ImageNet weights that a network's encoders can take, and say in one sentence what it starts from.

    Args:
        network: just built.
        config: the ``network`` table of its stage.
        record: JSON file that is written with the source of the weights, for the card.
        folder: where to look first, see ``training.imagenet`` and ``training.pretrained``.

    Raises:
        CspineError: weights were found that are not those of the encoder.
        OutputError: the record cannot be written.
    """
    parts = getattr(network, "pretrained_parts", None)
    if parts is None:
        return start_from_pretrained(network, record, folder)
    if not config.pretrained or not parts():
        return "the network starts from random weights, as the recipe says"
    said: list[str] = []
    sources: list[dict[str, str]] = []
    for module, name, channels in parts():
        found = find_imagenet(name, folder)
        if found is None:
            said.append(
                f"the encoder starts from RANDOM weights, since ImageNet weights of {name} are not on this machine: "
                "give the folder that holds them with --weights, or fill the cache of timm or torchvision"
            )
            continue
        said.append(load_imagenet(module, found, channels))
        sources.append({"encoder": name, "origin": found.origin, "licence": found.licence, "sha256": found.sha256})
    if sources:
        try:
            record.write_text(json.dumps({"imagenet": sources}, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write the run: {error}", where=str(record)) from error
    return "; ".join(said)


def start_from(network: nn.Module, checkpoint: Path) -> str:
    """Take the averaged weights of a checkpoint that fit, and say how many did.

    Raises:
        RecipeError: not a checkpoint, or none of its weights fits.
    """
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]["values"]
    except (OSError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise RecipeError(f"expected a checkpoint to start from: {error}", where=str(checkpoint)) from error
    own = network.state_dict()
    fitting = {name: value for name, value in saved.items() if name in own and own[name].shape == value.shape}
    if not any(value.ndim > 1 for value in fitting.values()):
        raise RecipeError("no weight of that checkpoint fits the recipe's network", where=str(checkpoint))
    network.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of {len(own)} tensors start from {checkpoint.name}"


def pretrained_note(record: Path, stage: str) -> str | None:
    """For the card: who made the weights that a stage's encoder started from; None when nothing was recorded."""
    if not record.is_file():
        return None
    source = json.loads(record.read_text(encoding="utf-8"))
    begun = f"The {stage}'s encoder started from weights learnt on photographs (ImageNet): "
    if "imagenet" in source:
        return begun + "; ".join(
            f"{item['encoder']} from {item['origin']}, {item['licence']}, SHA-256 {item['sha256']}"
            for item in source["imagenet"]
        ) + "."  # fmt: skip
    return (
        f"{begun}{source['package']} {source['version']}, {source['by']}, {source['licence']}, "
        f"SHA-256 {source['sha256']}."
    )
