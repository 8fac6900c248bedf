"""Ultralytics' library, where the user has installed it: imported offline, and asked for networks by name.

The library sends usage data, hands results to services that it finds, installs packages and fetches files, all by
itself. Here it is imported with a folder of settings of its own and with all of that switched off.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from cspine.errors import CspineError, MissingExtraError, RecipeError

PIP = 'pip install "cspine[yolo]"'
LIBRARY = "Ultralytics, AGPL-3.0"
# The name that its messages are logged under.
LOG = "ultralytics"
FAMILIES, SIZES = ("yolov5", "yolov8"), ("n", "s", "m", "l", "x")
# A file of which fewer weights fit is of another network.
ENOUGH = 0.5
# What the library reads: no network, no installing by itself, no talk of its settings, and nobody's key with which it
# would upload runs.
_ENVIRONMENT = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_API_KEY": "",
}
# Its settings that hand something to somebody.
_SENDING = ("sync", "clearml", "comet", "dvc", "hub", "mlflow", "neptune", "raytune", "tensorboard", "wandb")
# The font that it looks for in its folder and would fetch. Nothing is drawn, any will do.
_FONT = "Arial.ttf"


def installed() -> bool:
    """Whether the library is here; nothing is imported to find out."""
    return find_spec("ultralytics") is not None


def require() -> None:
    """Make sure that it is.

    Raises:
        MissingExtraError: it is not; says how to get it, and its licence.
    """
    if not installed():
        raise MissingExtraError(
            f"a yolo network needs the optional part 'yolo' ({LIBRARY}), which is not installed",
            where="missing: ultralytics",
            fix=f"Install it with: {PIP}. Its licence then binds what you build with it",
        )


def size_of(encoder: str) -> str:
    """The size of a YOLO by its name: ``yolov8s``, ``yolov5s`` and ``yolov5su`` are all ``s``.

    Raises:
        RecipeError: no such YOLO.
    """
    family, size = encoder[:6], encoder[6:].removesuffix("u")
    if family not in FAMILIES or size not in SIZES:
        known = ", ".join(f"{name}{size}" for name in FAMILIES for size in SIZES)
        raise RecipeError(f"expected an encoder of {known}, got {encoder!r}", where="network.encoder")
    return size


def config_of(encoder: str) -> str:
    """The library's description of a network."""
    return f"{encoder[:6]}{size_of(encoder)}.yaml"


def library() -> SimpleNamespace:
    """What is used of the library: ``model``, its class of detectors, and ``trainer``.

    Raises:
        MissingExtraError: it is not installed.
    """
    require()
    return _imported()


@cache
def _imported() -> SimpleNamespace:
    import matplotlib as mpl

    # Lives as long as what is returned; removed when Python ends.
    settings = tempfile.TemporaryDirectory(prefix="cspine-yolo-")
    for place in (Path(settings.name), Path(settings.name) / "Ultralytics"):
        place.mkdir(exist_ok=True)
        shutil.copyfile(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", place / _FONT)
    with private(YOLO_CONFIG_DIR=settings.name):
        tasks, detect = import_module("ultralytics.nn.tasks"), import_module("ultralytics.models.yolo.detect")
        events = import_module("ultralytics.utils.events")
        utils: Any = import_module("ultralytics.utils")
    # Where it was imported before, these are the user's settings: past the class's update, which would write them.
    dict.update(utils.SETTINGS, {name: False for name in _SENDING if name in utils.SETTINGS}, api_key="")
    events.events.enabled = False
    # From here on its level decides what it says.
    utils.VERBOSE = True
    utils.set_logging(LOG, verbose=True)
    logging.getLogger(LOG).setLevel(logging.WARNING)
    return SimpleNamespace(model=tasks.DetectionModel, trainer=detect.DetectionTrainer, settings=settings)


@contextmanager
def private(**variables: str) -> Iterator[None]:
    """An environment in which the library keeps to itself; its own changes to it end with the block as well."""
    before = dict(os.environ)
    os.environ.update(_ENVIRONMENT, **variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def start_from(yolo: nn.Module, encoder: str, folder: Path) -> str:
    """Take what fits from ``<encoder>.pt`` in a folder and say what was done. Nothing in the file is run.

    The library's files hold whole networks. Only their tensors are wanted, so only classes of networks are allowed
    to be built while reading, and their weights are taken.

    Raises:
        CspineError: the file is there, but is not such a network.
    """
    plain = config_of(encoder).removesuffix(".yaml")
    places = [folder / f"{name}.pt" for name in (encoder, plain, f"{plain}u")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return f"No weights of {encoder} in the given folder: it starts from random weights"
    try:
        with torch.serialization.safe_globals(_network_classes(path)):
            content = torch.load(path, map_location="cpu", weights_only=True)
        source = content.get("ema") or content["model"]
        values = {name: value.float() for name, value in source.state_dict().items()}
    except (OSError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        raise CspineError("expected a network of Ultralytics to start from", where=path.name) from error
    own = yolo.state_dict()
    fitting = {name: value for name, value in values.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < ENOUGH * len(own):
        raise CspineError(f"the weights are of another network than {encoder}", where=path.name)
    yolo.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of {len(own)} tensors start from {path.name} ({LIBRARY})"


def _network_classes(path: Path) -> list[Any]:
    """Classes named in a file that are networks or parts of them."""
    allowed = []
    library()
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        module, _, kind = name.rpartition(".")
        if module.startswith(("ultralytics.nn.", "torch.nn.modules.")):
            found = getattr(import_module(module), kind, None)
            if isinstance(found, type) and issubclass(found, nn.Module):
                allowed.append(found)
    return allowed
