"""Planar networks: one body that sees an image, and the heads that a recipe asks for.

All answer with logits under the names of ``cspine.inference.planar.HEADS``; probabilities come with the export.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cspine.errors import RecipeError
from cspine.inference.planar import LEVEL_CHANNELS, PlanarView
from cspine.training.judge import RARE_LOGIT
from cspine.training.recipe_networks import DETECTORS, PlanarNetwork

# Channels of the plain network's convolutions, each followed by ReLU and max-pooling.
OWN_WIDTHS = (32, 64, 128, 256)
# Inception takes borders away in every block: of smaller images nothing would be left. They are enlarged to this.
MIN_INCEPTION = 96
# The deepest features of a network have this stride, or a smaller one.
DEEPEST = 32
_LEVELS = 7
_IMAGE_HEADS = ("types", "visible", "broken", "slice")


def build_planar(network: PlanarNetwork, view: PlanarView) -> nn.Module:
    """The network that a planar stage's tables describe, with random weights.

    ``forward(image [B, C, S, S])`` answers with a dictionary of logits by head, of the shapes in ``inference.planar``
    (detectors: boxes and probabilities), and with ``heat`` ``[B, 1, h, w]`` where there is a head ``slice`` or
    ``broken``. ``C`` is ``view.channels`` and ``S`` is ``view.size``.

    Raises:
        RecipeError: no such encoder, one that cannot see images of that size, or ``yolo``, which its own library
            trains (``training.yolo``).
    """
    if network.body == "yolo":
        raise RecipeError("a yolo network is built by its own library", where="network.body")
    if network.body in DETECTORS:
        from cspine.training.detectors import build_detector

        return build_detector(network, view)
    if network.body == "unet":
        return PlanarUNet(network, view)
    return PlanarJudge(network, view)


class ImageHeads(nn.Module):
    """What is said of an image as a whole, read from a map of features.

    Features are averaged over the image, go through ``fully_connected`` layers and one linear layer a head. Beside
    them the first head of ``slice`` and ``broken`` has a class activation map (Zhou et al., 2016): a linear layer at
    each place of the map, whose mean is added to that head's logits. It learns as they learn, so the map says where
    the answer comes from and costs nothing.

    Shapes: ``[B, width, h, w]`` → logits ``[B, n]`` by head, and ``heat`` ``[B, 1, h', w']``; ``h'`` divides ``size``.

    Args:
        network: says which heads, and the layers before them.
        width: channels of the features.
        size: side of the network's input.
    """

    def __init__(self, network: PlanarNetwork, width: int, size: int) -> None:
        super().__init__()
        outputs = {"types": network.types, "visible": _LEVELS, "broken": _LEVELS, "slice": 1}
        self.size = size
        self.mapped = next((name for name in ("slice", "broken") if name in network.heads), None)
        layers: list[nn.Module] = []
        inner = width
        for wider in network.fully_connected:
            layers += [nn.Linear(inner, wider), nn.ReLU(inplace=True), nn.Dropout(network.dropout)]
            inner = wider
        # Whole channels, as if pooled features were dropped, so that the map loses the same ones.
        self.drop = nn.Dropout2d(network.dropout)
        self.hidden = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(inner, outputs[name]) for name in network.heads if name in _IMAGE_HEADS}
        )
        self.map: nn.Module | None = None
        if self.mapped is not None:
            self.map = nn.Conv2d(width, outputs[self.mapped], 1, bias=False)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """See the class."""
        features = self.drop(features)
        hidden = self.hidden(features.mean((2, 3)))
        out: dict[str, Tensor] = {name: head(hidden) for name, head in self.heads.items()}
        if self.map is not None and self.mapped is not None:
            heat = self.map(features)
            out[self.mapped] = out[self.mapped] + heat.mean((2, 3))
            heat = heat.amax(1, keepdim=True)
            out["heat"] = heat if self._fits(heat) else self._resized(heat)
        return out

    def _fits(self, heat: Tensor) -> bool:
        rows, columns = heat.shape[-2:]
        return bool(rows == columns and self.size % rows == 0)

    def _resized(self, heat: Tensor) -> Tensor:
        side = self.size // DEEPEST
        return functional.interpolate(heat, size=(side, side), mode="bilinear", align_corners=False)


class PlanarUNet(nn.Module):
    """A U-Net of segmentation-models-pytorch: pixel heads on its decoder, image heads on its deepest features.

    Without a pixel head there is no decoder.
    """

    def __init__(self, network: PlanarNetwork, view: PlanarView) -> None:
        super().__init__()
        unet = _unet(network, view)
        self.name, self.channels = network.encoder, view.channels
        self.encoder: nn.Module = unet.encoder
        channels = {"levels": LEVEL_CHANNELS, "fracture": 1}
        wanted = [name for name in network.heads if name in channels]
        self.decoder: nn.Module | None = unet.decoder if wanted else None
        self.pixels = nn.ModuleDict({name: nn.Conv2d(network.decoder[-1], channels[name], 3, 1, 1) for name in wanted})
        if "fracture" in self.pixels:
            nn.init.constant_(self.pixels["fracture"].bias, RARE_LOGIT)  # type: ignore[arg-type]
        self.images: ImageHeads | None = None
        if any(name in _IMAGE_HEADS for name in network.heads):
            self.images = ImageHeads(network, int(unet.encoder.out_channels[-1]), view.size)

    def pretrained_parts(self) -> list[tuple[nn.Module, str, int]]:
        """What may start from ImageNet: the encoder, its name, and its input channels."""
        return [(self.encoder, self.name, self.channels)]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """See ``build_planar``."""
        features = self.encoder(image)
        out: dict[str, Tensor] = {}
        if self.decoder is not None:
            decoded = self.decoder(features)
            out |= {name: head(decoded) for name, head in self.pixels.items()}
        if self.images is not None:
            out |= self.images(features[-1])
        return out


class PlanarJudge(nn.Module):
    """An encoder of timm, or a plain stack of convolution, ReLU and max-pooling, with image heads."""

    def __init__(self, network: PlanarNetwork, view: PlanarView) -> None:
        super().__init__()
        self.encoder: nn.Module
        self.name, self.channels = "own" if network.body == "own" else network.encoder, view.channels
        if self.name == "own":
            self.encoder, width = _plain(view.channels), OWN_WIDTHS[-1]
        else:
            self.encoder = _timm(self.name, view)
            width = int(self.encoder.num_features)  # type: ignore[arg-type]
        self.enlarged = MIN_INCEPTION if self.name.startswith("inception") and view.size < MIN_INCEPTION else 0
        self.images = ImageHeads(network, width, view.size)

    def pretrained_parts(self) -> list[tuple[nn.Module, str, int]]:
        """What may start from ImageNet: the encoder, its name, and its input channels; nothing for ``own``."""
        return [] if self.name == "own" else [(self.encoder, self.name, self.channels)]

    def features(self, image: Tensor) -> Tensor:
        """The deepest map ``[B, width, h, w]``."""
        if self.enlarged:
            side = (self.enlarged, self.enlarged)
            image = functional.interpolate(image, size=side, mode="bilinear", align_corners=False)
        if self.name == "own":
            found: Tensor = self.encoder(image)
            return found
        return _as_map(self.encoder, self.encoder.forward_features(image))  # type: ignore[operator]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """See ``build_planar``."""
        out: dict[str, Tensor] = self.images(self.features(image))
        return out


def _plain(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in OWN_WIDTHS:
        layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers)


def _unet(network: PlanarNetwork, view: PlanarView) -> Any:
    """The library's U-Net; its own segmentation head is not used.

    Raises:
        RecipeError: it has no such encoder, or none of that depth.
    """
    import segmentation_models_pytorch as smp

    try:
        return smp.Unet(
            network.encoder,
            encoder_depth=len(network.decoder),
            encoder_weights=None,
            decoder_channels=network.decoder,
            in_channels=view.channels,
            classes=1,
        )
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise _no_encoder(network.encoder, "segmentation-models-pytorch", error) from error


def _timm(name: str, view: PlanarView) -> nn.Module:
    """An encoder of timm without its classifier.

    Transformers are built for images of ``view.size``; others take no size.

    Raises:
        RecipeError: timm has no such network, or none for that size.
    """
    import timm

    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": view.channels}
    try:
        try:
            return timm.create_model(name, img_size=view.size, **options)
        except TypeError:
            return timm.create_model(name, **options)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise _no_encoder(name, "timm", error) from error


def _no_encoder(name: str, library: str, error: Exception) -> RecipeError:
    reason = " ".join(str(error).split())[:160]
    return RecipeError(
        f"{library} has no encoder {name!r} for this recipe: {reason}",
        where="network.encoder",
        fix=f"Take a name that {library} lists",
    )


def _as_map(encoder: nn.Module, features: Tensor) -> Tensor:
    """What timm's networks answer with, as ``[B, width, h, w]``: maps, maps with channels last, or tokens."""
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if getattr(encoder, "output_fmt", "NCHW") == "NHWC" else features
    grid = getattr(getattr(encoder, "patch_embed", None), "grid_size", None)
    prefix = int(getattr(encoder, "num_prefix_tokens", 0))
    tokens = features[:, prefix:].transpose(1, 2)
    if grid is None or grid[0] * grid[1] != tokens.shape[2]:
        # No grid: each token is a place of its own in one row, which is only good for means.
        return tokens.unsqueeze(2)
    return tokens.reshape(len(tokens), tokens.shape[1], int(grid[0]), int(grid[1]))


def probe(network: nn.Module, view: PlanarView) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's answers for one image.

    Raises:
        RecipeError: it cannot see images of that size.
    """
    was = network.training
    try:
        with torch.no_grad():
            found = network.eval()(torch.zeros(1, view.channels, view.size, view.size))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RecipeError(
            f"the network cannot see images of {view.size} pixels: {reason}", where="view.size", fix="Make it larger"
        ) from error
    finally:
        network.train(was)
    return {name: tuple(value.shape) for name, value in found.items()}
