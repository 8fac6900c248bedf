"""Encoder weights learnt on ImageNet: found where libraries keep them on this machine, never downloaded.

Names are those of timm (``convnext_tiny``), of segmentation-models-pytorch (``efficientnet-b5``, ``tu-convnext_tiny``)
and of torchvision (``torchvision:alexnet``, or plain). Only tensors are ever read from a file, never code.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch as safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cspine.errors import CspineError
from cspine.training.pretrained import LITE0, find_weights

COLOURS = 3
# Files of a given folder are named after the encoder and end so; safetensors first, since they hold nothing else.
SUFFIXES = (".safetensors", ".pth", ".pt")
# A file of which fewer of the encoder's weights fit is of another network.
ENOUGH = 0.5
_TORCHVISION, _TIMM_IN_SMP = "torchvision:", "tu-"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# What libraries call the encoder that the package ``pretrained.LITE0`` holds the weights of.
_LITE0_NAMES = ("tf_efficientnet_lite0", "tu-tf_efficientnet_lite0", "timm-tf_efficientnet_lite0")
# Networks whose layers timm and segmentation-models-pytorch name as torchvision does.
_SAME_LAYERS = ("resne", "wide_resnet", "densenet", "vgg", "mobilenet_v2", "inception_v3")
# What libraries put before the names of an encoder's layers.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.", "body.")
# Older DenseNets of torchvision: ``denselayer1.norm.1.weight`` for what is now ``denselayer1.norm1.weight``.
_OLD_DENSE = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)")


@dataclass(frozen=True, slots=True)
class ImageNetWeights:
    """A file of weights on this machine.

    Attributes:
        encoder: for which it was found.
        path: of the file.
        sha256: of its content.
        origin: who published it, as far as its place tells (``timm/resnet50.a1_in1k``), or the file's name.
        place: where it lay, in words.
        licence: of the weights, as their library states it.
    """

    encoder: str
    path: Path
    sha256: str
    origin: str
    place: str
    licence: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A published file of weights: on the Hugging Face hub (``repository``), or at an address (``url``)."""

    repository: str | None = None
    revision: str | None = None
    file: str | None = None
    url: str | None = None
    licence: str = "licence not stated"


def find_imagenet(encoder: str, folder: Path | None = None) -> ImageNetWeights | None:
    """The weights of an encoder in ``folder``, a library's cache or a package known here; never asks the network.

    Args:
        encoder: its name, see the module.
        folder: with ``<encoder>.safetensors``, ``.pth`` or ``.pt``, or files as torch hub names them.

    Returns:
        None when there are none.

    Raises:
        CspineError: the file cannot be read.
    """
    plain = encoder.removeprefix(_TORCHVISION).removeprefix(_TIMM_IN_SMP)
    candidates = list(_candidates(encoder, plain))
    if folder is not None:
        for name in dict.fromkeys((encoder.replace(":", "-").replace("/", "-"), plain)):
            for suffix in SUFFIXES:
                path = folder / f"{name}{suffix}"
                if path.is_file():
                    return _weights(encoder, path, path.name, "the given folder", "licence not stated")
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    for candidate in candidates:
        cached = _in_hub_cache(candidate)
        if cached is not None and candidate.repository is not None:
            return _weights(encoder, cached, candidate.repository, "the Hugging Face cache", candidate.licence)
        name = (candidate.url or "").rsplit("/", 1)[-1]
        for place, said in ((folder, "the given folder"), (checkpoints, "the torch hub cache")):
            if name and place is not None and (place / name).is_file():
                return _weights(encoder, place / name, name, said, candidate.licence)
    packaged = find_weights(LITE0, folder, fetch=False) if encoder in _LITE0_NAMES else None
    if packaged is not None:
        return _weights(encoder, packaged, f"{LITE0.package} {LITE0.version}", "a package", LITE0.licence)
    return None


def _weights(encoder: str, path: Path, origin: str, place: str, licence: str) -> ImageNetWeights:
    return ImageNetWeights(encoder, path, hashlib.sha256(_content(path)).hexdigest(), origin, place, licence)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CspineError(f"cannot read the encoder's weights: {error}", where=path.name) from error


def _in_hub_cache(candidate: _Candidate) -> Path | None:
    """The file of a candidate in the Hugging Face cache, without asking the hub."""
    from huggingface_hub import try_to_load_from_cache

    if candidate.repository is None:
        return None
    for file in (candidate.file,) if candidate.file else _HUB_FILES:
        for revision in dict.fromkeys((candidate.revision, None)):
            found = try_to_load_from_cache(candidate.repository, file, revision=revision)
            if isinstance(found, str):
                return Path(found)
    return None


def _candidates(encoder: str, plain: str) -> Iterator[_Candidate]:
    """What libraries publish under a name, the likeliest first."""
    if not encoder.startswith((_TORCHVISION, _TIMM_IN_SMP)):
        yield from _of_segmentation_models(plain)
    if not encoder.startswith(_TORCHVISION):
        yield from _of_timm(plain)
    if encoder.startswith(_TORCHVISION) or plain.startswith(_SAME_LAYERS):
        yield from _of_torchvision(plain)


def _of_segmentation_models(name: str) -> Iterator[_Candidate]:
    from segmentation_models_pytorch.encoders import encoders

    for weights, settings in encoders.get(name, {}).get("pretrained_settings", {}).items():
        if weights.startswith("imagenet") and "repo_id" in settings:
            yield _Candidate(repository=settings["repo_id"], revision=settings.get("revision"))


def _of_timm(name: str) -> Iterator[_Candidate]:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        return
    tagged = [name] if "." in name else [name, *timm.list_models(f"{architecture}.*", pretrained=True)]
    for each in tagged:
        config = timm.get_pretrained_cfg(each, allow_unregistered=True)
        # Weights in NumPy archives have other layouts, which no state dict here can take.
        if config is not None and config.num_classes == 1000:
            url = config.url if isinstance(config.url, str) and not config.url.endswith(".npz") else None
            licence = config.license or "licence not stated"
            yield _Candidate(repository=config.hf_hub_id, file=config.hf_hub_filename, url=url, licence=licence)


def _of_torchvision(name: str) -> Iterator[_Candidate]:
    from torchvision.models import get_model_weights, list_models

    if name not in list_models():
        return
    known = get_model_weights(name)
    for weights in sorted(known, key=lambda entry: entry is not known.DEFAULT):
        if weights.meta.get("num_params") and len(weights.meta.get("categories", ())) == 1000:
            yield _Candidate(url=weights.url, licence="BSD-3-Clause (torchvision)")


def load_imagenet(encoder_module: nn.Module, weights: ImageNetWeights, channels: int) -> str:
    """Put weights into an encoder that sees ``channels`` channels, and say in one sentence what was done.

    Layers are matched by name, else by order; layers behind the features (the classifier) are left out. A first
    convolution for another number of channels gets in each of them the sum over the colours, divided by their number:
    it then answers to channels that are alike as it did to a grey photograph.

    Raises:
        CspineError: the file has changed since it was found, is not one of tensors, or is of another network.
    """
    state = _library_names(encoder_module, _state(weights))
    own = {name: value for name, value in encoder_module.state_dict().items() if value.is_floating_point()}
    heavy = [name for name, value in own.items() if value.ndim > 1]
    found = _by_name(own, state, channels)
    fitting = sum(name in found for name in heavy)
    if fitting < ENOUGH * len(heavy):
        found = _by_order(own, state, channels) or found
        fitting = sum(name in found for name in heavy)
    if not fitting or fitting < ENOUGH * len(heavy):
        raise CspineError(
            f"expected weights of {weights.encoder}, got a file of which {fitting} of {len(heavy)} layers fit",
            where=weights.path.name,
            fix="Remove that file, or give the weights of this encoder",
        )
    encoder_module.load_state_dict(found, strict=False)
    source = f"{weights.origin} ({weights.licence}) in {weights.place}"
    return f"{fitting} of {len(heavy)} layers of {weights.encoder} start from {source}"


def _state(weights: ImageNetWeights) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    content = _content(weights.path)
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise CspineError("the encoder's weights have changed since they were found", where=weights.path.name)
    try:
        if weights.path.suffix == ".safetensors":
            read: object = safetensors.load(content)
        else:
            read = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise CspineError(f"expected tensors: {error}", where=weights.path.name, fix="Remove that file") from error
    for key in ("state_dict", "model"):
        if isinstance(read, Mapping) and isinstance(read.get(key), Mapping):
            read = read[key]
    if not isinstance(read, Mapping):
        raise CspineError(f"expected tensors by name, got {type(read).__name__}", where=weights.path.name)
    return {str(name): value for name, value in read.items() if isinstance(value, Tensor)}


def _library_names(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As timm renames what other libraries call its layers, and fits position embeddings to an image size."""
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None or not hasattr(module, "pretrained_cfg"):
        return state
    try:
        renamed = convert(dict(state), module)
    # Weights that timm's own function cannot read are judged by what fits.
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError):
        return state
    return {name: value for name, value in renamed.items() if isinstance(value, Tensor)}


def _canonical(name: str) -> str:
    """A layer's name without what wraps it; timm's feature extractors write ``_`` for some dots."""
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return _OLD_DENSE.sub(r"\1\2", name).replace(".", "_")


def _by_name(own: Mapping[str, Tensor], state: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    given = {_canonical(name): value for name, value in state.items()}
    pairs = ((name, value, given.get(_canonical(name))) for name, value in own.items())
    return {name: fitted for name, value, other in pairs if (fitted := _fitted(value, other, channels)) is not None}


def _by_order(own: Mapping[str, Tensor], state: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Everything, when all of the encoder's layers fit one after the other; else nothing."""
    given = [value for value in state.values() if value.is_floating_point()]
    if len(given) < len(own):
        return {}
    out: dict[str, Tensor] = {}
    for (name, value), other in zip(own.items(), given, strict=False):
        fitted = _fitted(value, other, channels)
        if fitted is None:
            return {}
        out[name] = fitted
    return out


def _fitted(own: Tensor, given: Tensor | None, channels: int) -> Tensor | None:
    """``given`` in the shape of ``own``, or None; convolutions ``[O, 3, h, w]`` of colours are fitted to channels."""
    if given is None or not given.is_floating_point():
        return None
    if own.shape == given.shape:
        return given.to(own.dtype)
    shape = (own.shape[0], COLOURS, *own.shape[2:])
    if own.ndim == 4 and own.shape[1] == channels and tuple(given.shape) == shape:
        return (given.float().sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1).to(own.dtype)
    return None
