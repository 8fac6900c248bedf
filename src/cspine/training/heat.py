"""Grad-CAM of any network: one verdict about a block of images, and the heat of the features it was read from.

Grad-CAM (Selvaraju et al., 2017) weighs the channels of the last convolution by the mean gradient of the verdict;
Grad-CAM++ (Chattopadhyay et al., 2018) by means of gradients that favour places which each raise the verdict alone.
Both come from the library grad-cam, which is shown the images of one vertebra as one block in three dimensions, so
that heat of different images can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cspine.errors import UsageError

Method = Literal["gradcam", "gradcam++"]
Answers = dict[str, Tensor]
# From what a layer gives to features of each image [N, c, h, w].
Reshape = Callable[[Tensor], Tensor]


class Verdict(nn.Module):
    """What the library needs of a network: one tensor in, one number out.

    Shapes: block ``[1, C, N, H, W]`` → ``[1, 1]``. The answers of the last call are kept, detached, in ``answers``.

    Args:
        network: answers with a dictionary of logits.
        read: the verdict ``()`` from these.
        stacked: the network takes a stack ``[1, N, C, H, W]``, not a batch of images ``[N, C, H, W]``.
    """

    def __init__(self, network: nn.Module, read: Callable[[Answers], Tensor], *, stacked: bool) -> None:
        super().__init__()
        self.network, self.read, self.stacked = network, read, stacked
        self.answers: Answers = {}

    def forward(self, block: Tensor) -> Tensor:
        """See the class."""
        images = block.transpose(1, 2)
        found: Answers = self.network(images if self.stacked else images[0])
        self.answers = {name: value.detach() for name, value in found.items()}
        return self.read(found).reshape(1, 1)


@dataclass(frozen=True, slots=True)
class Layer:
    """The features that heat is read from.

    Attributes:
        name: of the module in the network.
        module: gives features of each image of a block.
        reshape: from what it gives to ``[N, c, h, w]``.
    """

    name: str
    module: nn.Module
    reshape: Reshape


def explained_layer(verdict: Verdict, block: Tensor) -> Layer:
    """The last convolution that a verdict depends on, up to the normalisation and activation that follow it.

    A network may name the module itself with a property ``explained_layer``; what that gives must be ``[N, c, h, w]``.
    Otherwise it is looked for in the network's ``decoder``, then its ``encoder``, then all of it: heads are not
    features. Vision transformers (Dosovitskiy et al., 2021) have their tokens before the last attention explained,
    Swin transformers (Liu et al., 2021) their last map.

    Args:
        verdict: the network and what is read from it.
        block: images to try it with, ``[1, C, N, H, W]``.

    Raises:
        UsageError: the verdict depends on no convolution.
    """
    network = verdict.network
    named = getattr(network, "explained_layer", None)
    if isinstance(named, nn.Module):
        return Layer(_name_of(named, network), named, _as_it_is)
    transformer = _transformer(network, block.shape[-2] / block.shape[-1])
    if transformer is not None:
        return transformer
    seen = list(_seen(verdict, block))
    for part in (getattr(network, "decoder", None), getattr(network, "encoder", None), network):
        inside = {id(module) for module in part.modules()} if isinstance(part, nn.Module) else set()
        candidates = [(module, shape) for module, shape in seen if id(module) in inside]
        last = max((k for k, (module, _) in enumerate(candidates) if isinstance(module, nn.Conv2d)), default=None)
        if last is not None:
            shape = candidates[last][1]
            module = [module for module, other in candidates[last:] if other == shape][-1]
            return Layer(_name_of(module, network), module, _as_it_is)
    raise UsageError(
        "the verdict depends on no convolution that ran once for all images",
        where=type(network).__name__,
        fix="Give the network a property explained_layer",
    )


def _seen(verdict: Verdict, block: Tensor) -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Modules that ran once and gave a map on which the verdict depends, in order, with the map's shape."""
    ran: list[tuple[nn.Module, Tensor]] = []
    counts: dict[int, int] = {}

    def note(module: nn.Module, _: object, output: object) -> None:
        counts[id(module)] = counts.get(id(module), 0) + 1
        if isinstance(output, Tensor) and output.ndim == 4 and output.requires_grad:
            ran.append((module, output))

    handles = [module.register_forward_hook(note) for module in verdict.network.modules()]
    try:
        said = verdict(block.clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        return
    gradients = torch.autograd.grad(said.sum(), [output for _, output in ran], allow_unused=True)
    for (module, output), gradient in zip(ran, gradients, strict=True):
        # One channel is an answer, and one pixel is a pooled feature.
        is_map = output.shape[1] > 1 and output.shape[2] * output.shape[3] > 1
        if gradient is not None and is_map and counts[id(module)] == 1:
            yield module, tuple(output.shape)


def _transformer(network: nn.Module, proportion: float) -> Layer | None:
    """The layer of timm's transformers, which have no convolution but the one that cuts patches.

    ``proportion`` is rows by columns of the images.
    """
    for part in network.modules():
        if not isinstance(getattr(part, "patch_embed", None), nn.Module):
            continue
        blocks, norm = getattr(part, "blocks", None), getattr(part, "norm", None)
        if getattr(part, "output_fmt", "") == "NHWC" and isinstance(norm, nn.Module):
            return Layer(_name_of(norm, network), norm, lambda x: x.permute(0, 3, 1, 2))
        if isinstance(blocks, nn.Sequential) and isinstance(first := getattr(blocks[-1], "norm1", None), nn.Module):
            return Layer(_name_of(first, network), first, _patches(getattr(part, "num_prefix_tokens", 0), proportion))
    return None


def _patches(prefix: int, proportion: float) -> Reshape:
    """From tokens ``[N, prefix + h * w, c]`` to ``[N, c, h, w]``."""

    def reshape(tokens: Tensor) -> Tensor:
        patches = tokens[:, prefix:].transpose(1, 2)
        rows = max(1, round((patches.shape[2] * proportion) ** 0.5))
        return patches.reshape(*patches.shape[:2], rows, -1)

    return reshape


def _as_it_is(features: Tensor) -> Tensor:
    return features


def _name_of(module: nn.Module, network: nn.Module) -> str:
    return next((name for name, other in network.named_modules() if other is module), type(module).__name__)


def block_heat(verdict: Verdict, block: Tensor, layer: Layer, method: Method) -> NDArray[np.float32]:
    """Heat ``[N, h, w]`` of a block ``[1, C, N, H, W]`` in the layer's own cells, 0..1 with 1 at its strongest.

    All zeros when no feature speaks for the verdict. Cells are not interpolated: the block's field is divided evenly.
    """
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus

    def as_volume(features: Tensor) -> Tensor:
        return layer.reshape(features).transpose(0, 1).unsqueeze(0)

    kind = GradCAM if method == "gradcam" else GradCAMPlusPlus
    cam = kind(verdict, [layer.module], as_volume)
    # No size to enlarge to: the library would align the centres of the outer cells with those of the outer pixels.
    cam.get_target_width_height = lambda _: None
    try:
        heat = cam(block.clone().requires_grad_(), [lambda said: said[0]])[0]
    finally:
        cam.activations_and_grads.release()
        verdict.zero_grad()
    return np.asarray(np.nan_to_num(heat), dtype=np.float32)
