"""Classifiers that read slices in order, and locators on MONAI's encoders: what goes in, comes out, and learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cspine.errors import RecipeError
from cspine.inference.locate import WINDOW, locator_input, side_multiple
from cspine.training.flexible_unet import FlexibleUNet3d
from cspine.training.losses import StackTargets, classifier_loss
from cspine.training.networks import build_network
from cspine.training.onnx_files import Kind, differences, export_onnx, torch_answers
from cspine.training.recipe import ClassifierLoss, FlexibleUNetNetwork, SequenceNetwork
from cspine.training.sequence_network import SequenceNet
from cspine.volume import Volume

TINY = SequenceNetwork(encoder="own", size=32, hidden=8, pretrained=False)


def made(**changes: object) -> SequenceNet:
    """A tiny network in evaluation mode, the same each time."""
    torch.manual_seed(0)
    network = build_network(SequenceNetwork.model_validate(TINY.model_dump() | changes))
    assert isinstance(network, SequenceNet)
    return network.eval()


def stack(batch: int = 1, slices: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, slices, 4, 128, 160, generator=torch.Generator().manual_seed(seed))


def judged(network: torch.nn.Module, stacks: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        answer: dict[str, torch.Tensor] = network(stacks)
    return answer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoder": "resnet10t", "channels": "neighbours-mask"},
        {"encoder": "torchvision:squeezenet1_1", "size": 64, "channels": "slice"},
        {"encoder": "mobilenet_v2", "unet": True, "channels": "slice"},
        {"encoder": "vit_tiny_patch16_224"},
        {"recurrent": "gru", "layers": 2, "attention": True, "convolution": True, "spatial_dropout": 0.2},
        {"recurrent": "none", "pool": "top"},
        {"bidirectional": False, "pool": "last"},
    ],
)
def test_every_kind_answers_as_the_base_classifier_does(changes: dict[str, object]) -> None:
    answer = judged(made(**changes), stack(2, 4))
    shapes = {name: tuple(value.shape) for name, value in answer.items()}
    assert shapes == {"vertebra": (2,), "slices": (2, 4), "types": (2, 13), "evidence": (2, 4, 32, 40)}
    assert all(torch.isfinite(value).all() for value in answer.values())


def test_stacks_of_a_batch_do_not_mix() -> None:
    network, stacks = made(), stack(3)
    together, alone = judged(network, stacks), judged(network, stacks[1:2])
    for name, value in alone.items():
        assert torch.allclose(together[name][1:2], value, atol=1e-5), name


@pytest.mark.parametrize(
    ("channels", "seen"), [("slice", {1}), ("neighbours", {0, 1, 2}), ("neighbours-mask", {0, 1, 2, 3})]
)
def test_a_network_sees_the_channels_it_asks_for(channels: str, seen: set[int]) -> None:
    network, plain = made(channels=channels), stack()
    for channel in range(4):
        changed = plain.clone()
        changed[:, :, channel] += 1
        same = torch.allclose(judged(network, plain)["evidence"], judged(network, changed)["evidence"])
        assert same == (channel not in seen), channel


def test_the_order_of_slices_matters_to_what_reads_them_in_order() -> None:
    plain = stack()
    turned = plain.flip(1)
    reader, mean = made(recurrent="lstm", pool="last"), made(recurrent="none", pool="mean")
    assert not torch.allclose(judged(reader, plain)["types"], judged(reader, turned)["types"], atol=1e-4)
    assert torch.allclose(judged(mean, plain)["types"], judged(mean, turned)["types"], atol=1e-4)


def test_the_last_slice_is_the_first_one_when_read_backwards() -> None:
    network = made(pool="last")
    features = torch.randn(2, 6, 256)
    with torch.no_grad():
        each, pooled = network.reader(features)
    assert torch.equal(pooled[:, :8], each[:, -1, :8])
    assert torch.equal(pooled[:, 8:], each[:, 0, 8:])


def test_part_of_a_stack_keeps_its_pixel_size() -> None:
    network = made(encoder="own", size=128)
    whole = stack()
    seen: list[tuple[int, ...]] = []
    network.encoder.body.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[2:])))
    judged(network, whole)
    answer = judged(network, whole[..., :64, :96])
    assert seen == [(128, 160), (64, 96)]
    assert answer["evidence"].shape == (1, 5, 16, 24)


def test_a_frozen_encoder_stays_as_it_is_and_the_rest_learns() -> None:
    network = made(frozen=True).train()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    answer = network(stack(2, 3))
    torch.autograd.backward(torch.stack([value.square().mean() for value in answer.values()]).sum())
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())
    learning = {name for name, value in network.named_parameters() if value.grad is not None}
    assert learning == {name for name, _ in network.named_parameters() if not name.startswith("encoder.")}


def test_the_map_learns_where_only_the_verdict_is_known() -> None:
    network = made().train()
    truth = StackTargets(
        vertebra=torch.tensor([1.0, 0.0]),
        slices=torch.zeros(2, 3),
        types=torch.zeros(2, 13),
        evidence=torch.zeros(2, 3, 32, 40),
        types_known=torch.zeros(2),
        evidence_known=torch.zeros(2),
    )
    weights = ClassifierLoss(slices=0.0, evidence=0.0, evidence_dice=0.0, types=0.0)
    loss = classifier_loss(network(stack(2, 3)), truth, weights)["total"]
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert network.evidence.weight.grad is not None
    assert network.evidence.weight.grad.abs().max() > 0
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "no-such-network"}, "timm has no encoder"),
        ({"encoder": "torchvision:no-such-network"}, "torchvision has no encoder"),
        ({"encoder": "no-such-network", "unet": True}, "segmentation-models-pytorch has no encoder"),
        ({"encoder": "own", "unet": True}, "needs an encoder of a library"),
        ({"encoder": "torchvision:alexnet", "size": 32}, "does not take images of 32 x 32 pixels"),
    ],
)
def test_what_no_library_can_build_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        made(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"recurrent": "gru", "layers": 2, "attention": True, "convolution": True, "spatial_dropout": 0.2},
        pytest.param({"encoder": "resnet10t", "layers": 2, "pool": "last"}, marks=pytest.mark.slow),
        pytest.param({"encoder": "resnet18", "unet": True, "pool": "max"}, marks=pytest.mark.slow),
        pytest.param({"encoder": "vit_tiny_patch16_224", "recurrent": "none", "pool": "top"}, marks=pytest.mark.slow),
    ],
)
def test_runtimes_answer_as_torch_for_any_number_of_stacks(changes: dict[str, object]) -> None:
    assert max(_differences(made(**changes), "classifier", [(1, 24, 4, 128, 160), (3, 24, 4, 128, 160)])) < 1e-4


def _differences(network: torch.nn.Module, kind: Kind, shapes: list[tuple[int, ...]]) -> list[float]:
    """Of each runtime, for inputs of these shapes; batch statistics are those of noise."""
    rng = np.random.default_rng(0)
    inputs = [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]
    with torch.no_grad():
        network.train()(torch.from_numpy(inputs[0]))
    model = export_onnx(network, kind)
    found = differences(model, kind, inputs, [torch_answers(network, kind, x) for x in inputs])
    return list(found.values())


def flexible(backbone: str = "resnet10") -> FlexibleUNet3d:
    torch.manual_seed(0)
    network = build_network(FlexibleUNetNetwork(backbone=backbone, widths=(16, 8, 8, 8, 8)))
    assert isinstance(network, FlexibleUNet3d)
    return network


def test_a_library_unet_answers_as_the_base_locator_does() -> None:
    network = flexible()
    answer = network(torch.randn(1, 1, 32, 64, 32))
    assert answer.shape == (1, 11, 32, 64, 32)
    # Centres are rare: their logit begins low, the classes' around 0.
    assert answer[:, -1].mean() < -2 < answer[:, :-1].mean()


def test_every_weight_of_a_library_unet_learns() -> None:
    network = flexible("resnet18")
    network(torch.randn(2, 1, 32, 32, 32)).square().mean().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(RecipeError, match="resnet101"):
        flexible("densenet121")


def test_a_window_that_is_too_small_to_learn_from_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"locator\.window"):
        flexible().train()(torch.zeros(1, 1, 32, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "resnet101", "efficientnet-b0"])
def test_library_unets_run_at_any_size_in_every_runtime(backbone: str) -> None:
    network = flexible(backbone)
    assert max(_differences(network, "locator", [(1, 1, 32, 64, 96), (1, 1, 64, 32, 32)])) < 1e-4


def test_images_are_padded_to_what_the_window_of_a_bundle_asks_for() -> None:
    cubes = (128, 128, 128)
    assert (side_multiple(WINDOW), side_multiple(cubes)) == (16, 32)
    volume = Volume(np.zeros((40, 70, 70), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert locator_input(volume).image.shape == (48, 80, 80)
    assert locator_input(volume, multiple=side_multiple(cubes)).image.shape == (64, 96, 96)
