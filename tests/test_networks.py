"""Networks: shapes, gradients, and answers that do not depend on what they must not depend on."""

from __future__ import annotations

import pytest
import torch

from cspine.training.networks import StackNet, UNet3d, build_network
from cspine.training.recipe import StackNetwork, UNet3dNetwork, load_recipe

SMALL_UNET = UNet3dNetwork(widths=(4, 8, 8))
SMALL_STACK = StackNetwork(widths=(4, 8, 8, 16), blocks=(1, 1, 1), neck=8, hidden=8)
DEEP_STACK = SMALL_STACK.model_copy(update={"depth": 8})


def settled(network: torch.nn.Module, *inputs: torch.Tensor) -> torch.nn.Module:
    """In evaluation mode, with batch statistics that fit the inputs."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            for x in inputs:
                network(x)
    return network.eval()


def test_the_locator_answers_at_full_resolution() -> None:
    network = build_network(SMALL_UNET)
    assert isinstance(network, UNet3d)
    assert network(torch.zeros(1, 1, 16, 24, 32)).shape == (1, 11, 16, 24, 32)


def test_the_locator_does_not_care_how_much_air_surrounds() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 32, 32, 32)
    network = settled(build_network(SMALL_UNET), image)
    wide = torch.full((1, 1, 96, 96, 96), -1.0)
    wider = torch.full((1, 1, 128, 96, 96), -1.0)
    wide[..., 32:64, 32:64, 32:64] = image
    wider[..., 32:64, 32:64, 32:64] = image
    with torch.no_grad():
        a = network(wide)[..., 32:64, 32:64, 32:64]
        b = network(wider)[..., 32:64, 32:64, 32:64]
    assert torch.allclose(a, b, atol=1e-5)


def test_the_classifier_answers_per_stack_slice_and_cell() -> None:
    network = build_network(SMALL_STACK)
    assert isinstance(network, StackNet)
    answer = network(torch.zeros(2, 6, 4, 32, 48))
    shapes = {name: tuple(value.shape) for name, value in answer.items()}
    assert shapes == {"vertebra": (2,), "slices": (2, 6), "types": (2, 13), "evidence": (2, 6, 8, 12)}


def test_stacks_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    stacks = torch.randn(3, 6, 4, 32, 32)
    network = settled(build_network(SMALL_STACK), stacks)
    with torch.no_grad():
        together = network(stacks)
        alone = network(stacks[1:2])
    for name, value in alone.items():
        assert torch.allclose(together[name][1:2], value, atol=1e-5), name


def test_neighbouring_slices_matter() -> None:
    torch.manual_seed(0)
    stack = torch.randn(1, 6, 4, 32, 32)
    network = settled(build_network(SMALL_STACK), stack)
    assert isinstance(network, StackNet)
    torch.nn.init.normal_(network.along8.expand.weight)
    changed = stack.clone()
    changed[:, 3] += 1
    with torch.no_grad():
        difference = (network(stack)["evidence"] - network(changed)["evidence"]).abs().amax((0, 2, 3))
    assert difference[2] > 0
    assert difference[4] > 0


def test_a_new_path_in_three_dimensions_changes_nothing_until_it_has_learnt() -> None:
    torch.manual_seed(0)
    stacks = torch.randn(2, 6, 4, 32, 32)
    with_path, without = build_network(DEEP_STACK).eval(), build_network(SMALL_STACK).eval()
    without.load_state_dict({k: v for k, v in with_path.state_dict().items() if not k.startswith("depth")})
    with torch.no_grad():
        for name, value in with_path(stacks).items():
            assert torch.allclose(value, without(stacks)[name], atol=1e-5), name


def test_the_path_in_three_dimensions_looks_across_slices() -> None:
    torch.manual_seed(0)
    stack = torch.randn(1, 8, 4, 32, 32)
    network = settled(build_network(DEEP_STACK), stack)
    assert isinstance(network, StackNet)
    assert network.depth is not None
    torch.nn.init.normal_(network.depth.out.weight)
    changed = stack.clone()
    changed[:, 4] += 1
    with torch.no_grad():
        difference = (network.depth(stack) - network.depth(changed)).abs().amax((1, 2, 3))
    # Stem, two residual blocks before and after the stride: farther than single neighbours.
    assert (difference[1:8] > 0).all()


@pytest.mark.parametrize("config", [SMALL_UNET, SMALL_STACK, DEEP_STACK])
def test_every_weight_learns(config: UNet3dNetwork | StackNetwork) -> None:
    torch.manual_seed(0)
    network = build_network(config)
    shape = (1, 1, 16, 16, 16) if isinstance(config, UNet3dNetwork) else (2, 4, 4, 32, 32)
    answer = network(torch.randn(shape))
    parts = list(answer.values()) if isinstance(answer, dict) else [answer]
    sum(part.square().mean() for part in parts).backward()  # type: ignore[union-attr]
    silent = [name for name, p in network.named_parameters() if p.grad is None]
    assert not silent


def test_the_base_networks_are_small() -> None:
    recipe = load_recipe("base")
    counts = [
        sum(p.numel() for p in build_network(config).parameters())
        for config in (recipe.locator.network, recipe.classifier.network)
    ]
    # Stored in half precision both fit 20 MB with room for another.
    assert 2 * sum(counts) < 14e6
