"""Detectors of vertebrae in single images: RetinaNet and FCOS of torchvision, with decoding that can be exported.

Images are squares of ``PlanarView.size`` with values -1 to 1, so nothing is resized or normalised here; torchvision
gives the backbone, the feature pyramid, the heads, the anchors, the matching and the losses.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large, resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from cspine.anatomy import LEVELS
from cspine.errors import RecipeError
from cspine.inference.planar import PlanarView
from cspine.training.recipe_networks import PlanarNetwork

# Pixels of the image a step of each level of the feature pyramid; the last is the one before it, thinned out.
STRIDES = (8, 16, 32, 64)
# Channels of the pyramid: half of what was published for 80 classes of everyday things; here there are 7 or 14.
PYRAMID_CHANNELS = 128
# Boxes that a network answers with: the surest, before overlaps are suppressed.
BEST = 300
# Sides of anchors as shares of the image: a vertebra fills a sixth to a half of a neck, the tip of an arch less.
ANCHOR_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
_OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
# Height by width.
_ASPECTS = (0.5, 1.0, 2.0)
_GROUPS = 32
# Where the sides of FCOS start from, in units of a level: the middle of what a level answers for.
_FIRST_DISTANCE = 4.0
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
_MOBILE = "mobilenet_v3_large"
BACKBONES = (*_RESNETS, _MOBILE)
# The last block of MobileNetV3 at strides 8, 16 and 32.
_MOBILE_TAPS = (6, 12, 16)


def class_count(network: PlanarNetwork) -> int:
    """C1..C7, and with ``fractured_boxes`` fractured C1..C7 after them."""
    return len(LEVELS) * (2 if network.fractured_boxes else 1)


def build_detector(network: PlanarNetwork, view: PlanarView) -> Detector:
    """A detector with random weights.

    Args:
        network: body ``retinanet`` or ``fcos``; encoder one of ``BACKBONES``.
        view: size and channels of its images.

    Raises:
        RecipeError: another body or encoder.
    """
    if network.body == "retinanet":
        return RetinaNetDetector(network, view)
    if network.body == "fcos":
        return FcosDetector(network, view)
    raise RecipeError(f"expected a body of retinanet or fcos, got {network.body!r}", where="network.body")


def strongest(scores: Tensor, count: int = BEST) -> Tensor:
    """Which boxes of each image are the surest, in the order in which they come.

    Args:
        scores: ``[B, A, K]``.
        count: how many, or all when there are fewer.

    Returns:
        ``[B, N, 1]`` positions along A, ascending.
    """
    best = torch.topk(scores.amax(dim=2), min(count, scores.shape[1]), dim=1).indices
    return best.sort(dim=1).values[:, :, None]


class Detector(nn.Module, ABC):
    """What both kinds share: features, anchors as constants, and the choice of the best boxes.

    ``forward`` takes images ``[B, C, S, S]`` and answers with ``boxes`` ``[B, N, 4]``, clipped to the image, and
    ``scores`` ``[B, N, K]``, probabilities; N is at most ``BEST``. Rows are in the order of the anchors, not of the
    scores: two runtimes that round differently then still give the same row the same box.
    """

    anchors: Tensor
    body: Any

    def __init__(self, network: PlanarNetwork, view: PlanarView) -> None:
        super().__init__()
        self.network, self.size, self.channels = network, view.size, view.channels
        self.classes = class_count(network)
        self.grids = [math.ceil(view.size / stride) for stride in STRIDES]

    def pretrained_parts(self) -> list[tuple[nn.Module, str, int]]:
        """What may start from ImageNet: the encoder, its name, and its input channels."""
        return [(self.body.backbone.body, f"torchvision:{self.network.encoder}", self.channels)]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Boxes and scores of a batch; see the class."""
        answers = self._answers(image)
        scores = self._scores(answers)
        chosen = strongest(scores)
        offsets = answers["bbox_regression"].gather(1, chosen.expand(-1, -1, 4))
        # Not len(image), which an exporter takes for a constant.
        anchors = self.anchors.expand(image.shape[0], -1, -1).gather(1, chosen.expand(-1, -1, 4))
        boxes = self._decoded(offsets, anchors).clamp(0, self.size)
        return {"boxes": boxes, "scores": scores.gather(1, chosen.expand(-1, -1, self.classes))}

    def losses(self, image: Tensor, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """What training minimises the sum of.

        Args:
            image: ``[B, C, S, S]``, -1 to 1.
            targets: for each image ``boxes`` ``[n, 4]`` and ``labels`` ``[n]`` of 1..K, pixel edges.

        Returns:
            ``classification``, ``box``, and for FCOS ``centerness``; scalars.
        """
        answers = self._answers(image)
        # torchvision counts classes from 0 and would keep the first for the background.
        wanted = [{"boxes": one["boxes"].float(), "labels": one["labels"] - 1} for one in targets]
        with torch.autocast(image.device.type, enabled=False):
            found = self._loss(answers, wanted, [self.anchors] * len(image))
        names = {"bbox_regression": "box", "bbox_ctrness": "centerness"}
        return {names.get(name, name): value for name, value in found.items()}

    def _answers(self, image: Tensor) -> dict[str, Tensor]:
        found = self.body.head(list(self.body.backbone(image).values()))
        # In half precision pixels run together, and so do overlaps.
        return {name: value.float() for name, value in found.items()}

    @abstractmethod
    def _scores(self, answers: dict[str, Tensor]) -> Tensor:
        """``[B, A, K]``."""

    @abstractmethod
    def _decoded(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """``[B, N, 4]`` of the same."""

    @abstractmethod
    def _loss(
        self, answers: dict[str, Tensor], targets: list[dict[str, Tensor]], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """The library's own losses by its own names; ``anchors`` one an image."""

    def _place(self, generator: AnchorGenerator) -> None:
        """Anchors of all positions as a constant, centred on the pixels that a position stands for."""
        levels = generator.grid_anchors(
            [[n, n] for n in self.grids], [[torch.tensor(stride)] * 2 for stride in STRIDES]
        )
        centred = [anchors + stride / 2 for anchors, stride in zip(levels, STRIDES, strict=True)]
        self.register_buffer("anchors", torch.cat(centred), persistent=False)


class RetinaNetDetector(Detector):
    """RetinaNet (Lin et al., 2017): nine anchors a position, focal loss; heads with group normalisation."""

    def __init__(self, network: PlanarNetwork, view: PlanarView) -> None:
        super().__init__(network, view)
        sides = tuple(tuple(round(view.size * share * part) for part in _OCTAVE) for share in ANCHOR_SHARES)
        generator = AnchorGenerator(sides, (_ASPECTS,) * len(STRIDES))
        count = generator.num_anchors_per_location()[0]
        norm = partial(nn.GroupNorm, _GROUPS)
        head = RetinaNetHead(PYRAMID_CHANNELS, count, self.classes, norm_layer=norm)
        self.body = RetinaNet(_pyramid(network, view.channels), self.classes, anchor_generator=generator, head=head)
        self._place(generator)

    def _scores(self, answers: dict[str, Tensor]) -> Tensor:
        return answers["cls_logits"].sigmoid()

    def _decoded(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        flat = self.body.box_coder.decode_single(offsets.reshape(-1, 4), anchors.reshape(-1, 4))
        return torch.as_tensor(flat.reshape(offsets.shape))

    def _loss(
        self, answers: dict[str, Tensor], targets: list[dict[str, Tensor]], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.body.compute_loss(targets, answers, anchors)
        return found


class FcosDetector(Detector):
    """FCOS (Tian et al., 2019): no anchors, each position says how far the sides are and how central it lies."""

    def __init__(self, network: PlanarNetwork, view: PlanarView) -> None:
        super().__init__(network, view)
        # A level answers for objects whose farther side is 4 to 8 of these away; in images below 512 pixels vertebrae
        # are smaller. The middle of an object, which positions learn it from, is as published 1.5 steps around.
        ratio = max(0.5, view.size / 512)
        generator = AnchorGenerator(tuple((stride * ratio,) for stride in STRIDES), ((1.0,),) * len(STRIDES))
        head = FCOSHead(PYRAMID_CHANNELS, 1, self.classes)
        # Distances pass a ReLU; one that starts below 0 everywhere would never learn.
        nn.init.constant_(head.regression_head.bbox_reg.bias, _FIRST_DISTANCE)
        pyramid = _pyramid(network, view.channels)
        options: dict[str, Any] = {"anchor_generator": generator, "head": head, "center_sampling_radius": 1.5 / ratio}
        self.body = FCOS(pyramid, self.classes, **options)
        self._place(generator)

    def _scores(self, answers: dict[str, Tensor]) -> Tensor:
        # As published: the geometric mean of class and centrality.
        return torch.sqrt(answers["cls_logits"].sigmoid() * answers["bbox_ctrness"].sigmoid())

    def _decoded(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        return torch.as_tensor(self.body.box_coder.decode(offsets, anchors))

    def _loss(
        self, answers: dict[str, Tensor], targets: list[dict[str, Tensor]], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        counts = [n * n for n in self.grids]
        found: dict[str, Tensor] = self.body.compute_loss(targets, answers, anchors, counts)
        return found


class _Pyramid(nn.Module):
    """An encoder and the feature pyramid on it: maps of ``STRIDES``."""

    out_channels = PYRAMID_CHANNELS

    def __init__(self, body: nn.Module, widths: list[int]) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(widths, PYRAMID_CHANNELS, extra_blocks=LastLevelMaxPool())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Maps by name, finest first."""
        found: dict[str, Tensor] = self.fpn(self.body(image))
        return found


class _MobileNet(nn.Module):
    """MobileNetV3 that shows its features at strides 8, 16 and 32; weights are named as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        # Published with a momentum of 0.01, with which statistics lag behind in a run of a few hundred steps.
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.1)
        self.features: Any = mobilenet_v3_large(weights=None, norm_layer=norm).features

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Maps by name, finest first."""
        maps: dict[str, Tensor] = {}
        for index, block in enumerate(self.features):
            image = block(image)
            if index in _MOBILE_TAPS:
                maps[str(len(maps))] = image
        return maps


def _pyramid(network: PlanarNetwork, channels: int) -> _Pyramid:
    """An encoder of torchvision with random weights and the pyramid on it."""
    if network.encoder == _MOBILE:
        mobile = _MobileNet()
        first = mobile.features[0][0]
        mobile.features[0][0] = _first(first, channels)
        return _Pyramid(mobile, [mobile.features[tap].out_channels for tap in _MOBILE_TAPS])
    if network.encoder not in _RESNETS:
        raise RecipeError(
            f"expected an encoder of {', '.join(BACKBONES)}, got {network.encoder!r}", where="network.encoder"
        )
    whole = getattr(resnet, network.encoder)(weights=None)
    whole.conv1 = _first(whole.conv1, channels)
    # Half of the channels of the last map at stride 16, a quarter at stride 8.
    last = whole.fc.in_features
    body = IntermediateLayerGetter(whole, {f"layer{k + 2}": str(k) for k in range(3)})
    return _Pyramid(body, [last // 4, last // 2, last])


def _first(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A first convolution like ``layer`` for images of so many channels."""
    if channels == layer.in_channels:
        return layer
    return nn.Conv2d(
        channels,
        layer.out_channels,
        kernel_size=_pair(layer.kernel_size),
        stride=_pair(layer.stride),
        padding=_pair(layer.padding),
        bias=False,
    )


def _pair(value: Any) -> tuple[int, int]:
    return int(value[0]), int(value[1])
