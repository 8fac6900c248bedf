"""2D encoders of libraries for images of any number of channels: a feature map, and numbers for the whole image.

``timm`` names (``resnet50``), ``torchvision:`` names (``torchvision:alexnet``), ``own`` (a plain small network), or
with ``unet`` names as segmentation-models-pytorch spells them. All start from random weights here; see
``training.imagenet`` for others.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cspine.errors import RecipeError
from cspine.training.blocks import block2d
from cspine.training.recipe import SequenceNetwork

TORCHVISION = "torchvision:"
# Channels of the plain network, each after a convolution and before a halving.
_OWN = (32, 64, 128, 256)
# Channels of the U-Net's decoder; its map is at half the image's size and is averaged to a quarter.
_DECODER = (256, 128, 64, 64)
# Mean and deviation of a photograph's pixels, 0 black .. 1 white, over the colours: what ImageNet's networks expect.
_PHOTOGRAPH = (0.449, 0.226)
# Heads that timm builds even when no class is asked for.
_HEADS = ("pre_logits", "head")


class ImageEncoder(nn.Module):
    """An encoder that can be frozen: then its weights and its batch statistics stay as they are.

    Shapes: images ``[N, channels, h, w]``, -1..1 → features ``[N, width, h / k, w / k]`` and ``[N, summary]``.

    Args:
        body: images → features.
        config: of the network it is part of.
        channels: of the images.
        size: rows and columns of a whole image, to try it with.
        photograph: mean and deviation that the body's pretrained weights expect.

    Raises:
        RecipeError: the body cannot see images of that size.
    """

    def __init__(
        self,
        body: nn.Module,
        config: SequenceNetwork,
        channels: int,
        size: tuple[int, int],
        photograph: tuple[float, float] = _PHOTOGRAPH,
    ) -> None:
        super().__init__()
        self.body = body
        self.name, self.channels = config.encoder, channels
        self.pretrained = config.pretrained and config.encoder != "own"
        mean, deviation = photograph if self.pretrained else (0.5, 0.5)
        self.gain, self.shift = 0.5 / deviation, (0.5 - mean) / deviation
        self.frozen = config.frozen
        if self.frozen:
            self.pretrained_body().requires_grad_(False)
        features, summary = self._tried(size)
        self.width, self.summary = features.shape[1], summary.shape[1]
        self.train()

    def _tried(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        try:
            with torch.no_grad():
                out: tuple[Tensor, Tensor] = self.eval()(torch.zeros(1, self.channels, *size))
        # Libraries say in many ways that an image is too small or not of the size they were made for.
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            raise RecipeError(
                f"the encoder {self.name} does not take images of {size[0]} x {size[1]} pixels: {error}",
                where="network.size",
                fix="Choose a larger size or another encoder",
            ) from error
        return out

    def train(self, mode: bool = True) -> ImageEncoder:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.pretrained_body().eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class; the summary is the mean of the features."""
        features: Tensor = self.body(self.gain * images + self.shift)
        return features, features.mean((2, 3))

    def pretrained_body(self) -> nn.Module:
        """The part that a library has weights for."""
        return self.body

    def pretrained_parts(self) -> list[tuple[nn.Module, str, int]]:
        """See ``sequence_network.SequenceNet.pretrained_parts``."""
        return [(self.pretrained_body(), self.name, self.channels)] if self.pretrained else []


class _UNetEncoder(ImageEncoder):
    """Features of a U-Net's decoder, averaged to a quarter of the image; the summary also tells of the coarsest."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        levels = self.body.encoder(self.gain * images + self.shift)  # type: ignore[operator]
        features = functional.avg_pool2d(self.body.decoder(levels), 2)  # type: ignore[operator]
        return features, torch.cat([features.mean((2, 3)), levels[-1].mean((2, 3))], 1)

    def pretrained_body(self) -> nn.Module:
        """The U-Net's encoder."""
        encoder = self.body.encoder
        if not isinstance(encoder, nn.Module):
            raise TypeError("expected a U-Net with an encoder")
        return encoder


def image_encoder(config: SequenceNetwork, channels: int, size: tuple[int, int]) -> ImageEncoder:
    """The encoder that a configuration names, with random weights.

    Args:
        config: of the network.
        channels: of the images.
        size: rows and columns of a whole image.

    Raises:
        RecipeError: no library knows it, or it does not take such images.
    """
    if config.encoder == "own":
        if config.unet:
            raise RecipeError("unet = true needs an encoder of a library", where="network.encoder")
        return ImageEncoder(_plain(channels), config, channels, size)
    if config.unet:
        return _UNetEncoder(_unet(config.encoder, channels), config, channels, size)
    if config.encoder.startswith(TORCHVISION):
        return ImageEncoder(_of_torchvision(config.encoder, channels), config, channels, size)
    body = _TimmFeatures(config.encoder, channels, size)
    return ImageEncoder(body, config, channels, size, body.photograph)


def _plain(channels: int) -> nn.Module:
    """Convolution, ReLU and max-pooling four times."""
    layers: list[nn.Module] = []
    for width in _OWN:
        layers += [block2d(channels, width), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers)


def _unknown(encoder: str, library: str, error: Exception | None = None) -> RecipeError:
    why = f": {error}" if error else ""
    return RecipeError(
        f"{library} has no encoder {encoder!r} that gives a feature map{why}",
        where="network.encoder",
        fix="Choose another name",
    )


class _TimmFeatures(nn.Module):
    """What a network of timm sees before it pools, channels first: ``[N, C, h, w]`` → ``[N, F, h / k, w / k]``."""

    def __init__(self, encoder: str, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        import timm

        config = timm.get_pretrained_cfg(encoder) if timm.is_model(encoder.partition(".")[0]) else None
        # Transformers are made for images of one size.
        fixed: dict[str, Any] = {"img_size": size} if config is not None and config.fixed_input_size else {}
        try:
            self.network: Any = timm.create_model(encoder, pretrained=False, in_chans=channels, num_classes=0, **fixed)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise _unknown(encoder, "timm", error) from error
        for name in {name for name, _ in self.network.named_children()}.intersection(_HEADS):
            setattr(self.network, name, nn.Identity())
        self.photograph = _PHOTOGRAPH
        if config is not None:
            self.photograph = (sum(config.mean) / len(config.mean), sum(config.std) / len(config.std))
        self.channels_behind = getattr(self.network, "output_fmt", None) == "NHWC"
        self.tokens = hasattr(self.network, "num_prefix_tokens")

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        if self.tokens:
            # One token a patch, and some for the whole image: timm knows which is which.
            found: list[Tensor] = self.network.forward_intermediates(
                images, indices=1, norm=True, intermediates_only=True
            )
            return found[-1]
        features: Tensor = self.network.forward_features(images)
        return features.permute(0, 3, 1, 2) if self.channels_behind else features


def _of_torchvision(encoder: str, channels: int) -> nn.Module:
    """The layers of a torchvision network before it pools, under their own names."""
    from torchvision.models import get_model, list_models

    name = encoder.removeprefix(TORCHVISION)
    if name not in list_models():
        raise _unknown(encoder, "torchvision")
    whole = get_model(name, weights=None)
    parts = OrderedDict(whole.named_children())
    if "features" in parts:
        kept = OrderedDict(features=parts["features"])
    elif "layer4" in parts:
        names = list(parts)
        kept = OrderedDict((name, parts[name]) for name in names[: names.index("avgpool")])
    else:
        raise _unknown(encoder, "torchvision")
    body = nn.Sequential(kept)
    _see_channels(body, channels)
    return body


def _see_channels(body: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for images of that many channels."""
    for owner in body.modules():
        for name, layer in owner.named_children():
            if isinstance(layer, nn.Conv2d):
                if layer.in_channels != channels:
                    new = nn.Conv2d(
                        channels,
                        layer.out_channels,
                        layer.kernel_size,  # type: ignore[arg-type]
                        layer.stride,  # type: ignore[arg-type]
                        layer.padding,  # type: ignore[arg-type]
                        bias=layer.bias is not None,
                    )
                    setattr(owner, name, new)
                return


def _unet(encoder: str, channels: int) -> nn.Module:
    """A U-Net of segmentation-models-pytorch without the last step up to full size, and without its head."""
    import segmentation_models_pytorch as smp

    try:
        network: nn.Module = smp.Unet(
            encoder, encoder_depth=5, encoder_weights=None, in_channels=channels, decoder_channels=(*_DECODER, 16)
        )
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise _unknown(encoder, "segmentation-models-pytorch", error) from error
    network.segmentation_head = nn.Identity()
    # The last block of the decoder has no features of the encoder to add.
    decoder: Any = network.decoder
    decoder.blocks = decoder.blocks[:-1]
    return network
