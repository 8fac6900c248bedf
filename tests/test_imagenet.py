"""Weights learnt on ImageNet: found where libraries keep them, fitted to other channels, never fetched."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from cspine.errors import CspineError
from cspine.training import pretrained
from cspine.training.imagenet import ImageNetWeights, find_imagenet, load_imagenet
from cspine.training.networks import build_network
from cspine.training.recipe import SequenceNetwork
from cspine.training.sequence_network import SequenceNet

TIMM, SQUEEZE = "resnet10t", "torchvision:squeezenet1_1"
COMMIT = "0" * 40


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without weights whose network is cut: any attempt to use it is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(pretrained, "_installed", lambda source: tmp_path / source.file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    return tmp_path


def shaken(network: nn.Module, seed: int = 3) -> dict[str, torch.Tensor]:
    """A state dict as somebody might have trained it."""
    draw = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    return {
        name: torch.rand(value.shape, generator=draw) if value.is_floating_point() else value
        for name, value in state.items()
    }


def hub_file(machine: Path, repository: str, state: dict[str, torch.Tensor], revision: str = COMMIT) -> Path:
    """A file in the layout of the Hugging Face cache."""
    repo = machine / "huggingface" / f"models--{repository.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(revision)
    path = repo / "snapshots" / revision / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def test_a_machine_without_weights_has_none() -> None:
    for name in (TIMM, "efficientnet-b5", "tu-convnext_tiny", SQUEEZE, "tf_efficientnet_lite0", "no-such-network"):
        assert find_imagenet(name) is None


def test_timm_weights_in_the_hub_cache_fill_the_encoder(machine: Path) -> None:
    state = shaken(timm.create_model(TIMM))
    path = hub_file(machine, "timm/resnet10t.c3_in1k", state)
    found = find_imagenet(TIMM)
    assert found is not None
    assert (found.path, found.licence) == (path, "apache-2.0")
    network = timm.create_model(TIMM, num_classes=0)
    said = load_imagenet(network, found, 3)
    assert "timm/resnet10t.c3_in1k" in said
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    # The same file serves the encoder of a U-Net, whose layers have other names.
    encoder = smp.encoders.get_encoder(f"tu-{TIMM}", in_channels=3)
    assert find_imagenet(f"tu-{TIMM}") == ImageNetWeights(
        f"tu-{TIMM}", path, found.sha256, found.origin, found.place, found.licence
    )
    load_imagenet(encoder, found, 3)
    assert torch.equal(encoder.state_dict()["model.layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])


def test_weights_of_segmentation_models_are_found_at_their_revision(machine: Path) -> None:
    settings = smp.encoders.encoders["mobilenet_v2"]["pretrained_settings"]["imagenet"]
    encoder = smp.encoders.get_encoder("mobilenet_v2", in_channels=1)
    state = shaken(smp.encoders.get_encoder("mobilenet_v2", in_channels=3))
    hub_file(machine, settings["repo_id"], state, settings["revision"])
    found = find_imagenet("mobilenet_v2")
    assert found is not None
    load_imagenet(encoder, found, 1)
    first = next(layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d))
    assert torch.allclose(first.weight, state["features.0.0.weight"].sum(1, keepdim=True))


def test_torchvision_weights_in_the_torch_hub_cache(machine: Path) -> None:
    state = shaken(get_model("squeezenet1_1", weights=None))
    folder = machine / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "squeezenet1_1-b8a52dc0.pth")
    found = find_imagenet(SQUEEZE)
    assert found is not None
    network = build_network(SequenceNetwork(encoder=SQUEEZE, size=64, hidden=4))
    assert isinstance(network, SequenceNet)
    ((module, name, channels),) = network.pretrained_parts()
    assert (name, channels) == (SQUEEZE, 3)
    load_imagenet(module, found, channels)
    assert torch.equal(module.state_dict()["features.3.squeeze.weight"], state["features.3.squeeze.weight"])


@pytest.mark.parametrize("name", ["squeezenet1_1.pth", "torchvision-squeezenet1_1.safetensors", "squeezenet1_1.pt"])
def test_a_given_folder_comes_first(machine: Path, name: str) -> None:
    folder = machine / "given"
    folder.mkdir()
    state = get_model("squeezenet1_1", weights=None).state_dict()
    if name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save({"state_dict": state}, folder / name)
    found = find_imagenet(SQUEEZE, folder)
    assert found is not None
    assert (found.origin, found.place) == (name, "the given folder")
    assert "layers" in load_imagenet(get_model("squeezenet1_1", weights=None), found, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 9])
def test_grey_looks_alike_through_any_number_of_channels(machine: Path, channels: int) -> None:
    state = shaken(timm.create_model(TIMM))
    hub_file(machine, "timm/resnet10t.c3_in1k", state)
    found = find_imagenet(TIMM)
    assert found is not None
    network = timm.create_model(TIMM, num_classes=0, in_chans=channels)
    load_imagenet(network, found, channels)
    grey = torch.rand(1, 1, 16, 16)
    expected = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), state["conv1.0.weight"], padding=1, stride=2)
    answer = nn.functional.conv2d(
        grey.expand(-1, channels, -1, -1), network.get_parameter("conv1.0.weight"), padding=1, stride=2
    )
    assert torch.allclose(answer, expected, rtol=1e-4)


def test_files_of_a_namesake_in_another_library_are_left_alone(machine: Path) -> None:
    folder = machine / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("convnext_tiny-983f1562.pth", "resnet18-f37072fd.pth"):
        (folder / name).write_bytes(b"weights")
    # The layers of torchvision's ConvNeXt have other names than timm's; those of ResNets are the same.
    assert find_imagenet("convnext_tiny") is None
    assert find_imagenet("torchvision:convnext_tiny") is not None
    assert find_imagenet("resnet18") is not None


def test_layers_under_other_names_are_filled_in_order(machine: Path) -> None:
    state = shaken(timm.create_model(TIMM))
    torch.save({f"layer_{number}": value for number, value in enumerate(state.values())}, machine / f"{TIMM}.pth")
    found = find_imagenet(TIMM, machine)
    assert found is not None
    network = timm.create_model(TIMM, num_classes=0, in_chans=4)
    load_imagenet(network, found, 4)
    assert torch.equal(network.state_dict()["layer4.0.conv2.weight"], state["layer4.0.conv2.weight"])


def test_old_names_of_densenet_are_known(machine: Path) -> None:
    encoder = get_model("densenet121", weights=None).features.denseblock1
    state = {f"features.{name}": value for name, value in shaken(encoder).items()}
    older = {name.replace("norm1", "norm.1").replace("conv2", "conv.2"): value for name, value in state.items()}
    torch.save(older, machine / "densenet121.pth")
    found = find_imagenet("densenet121", machine)
    assert found is not None
    wrapped = nn.Sequential()
    wrapped.add_module("features", encoder)
    load_imagenet(wrapped, found, 3)
    assert all(torch.equal(value, state[name]) for name, value in wrapped.state_dict().items())


def test_weights_of_another_network_are_refused(machine: Path) -> None:
    torch.save(shaken(get_model("squeezenet1_1", weights=None)), machine / f"{TIMM}.pth")
    found = find_imagenet(TIMM, machine)
    assert found is not None
    with pytest.raises(CspineError, match="0 of 14 layers fit"):
        load_imagenet(timm.create_model(TIMM, num_classes=0), found, 3)


class _Code:
    """What a pickle may do when it is read without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize("name", [f"{TIMM}.pth", f"{TIMM}.safetensors"])
def test_files_that_are_no_tensors_are_refused(machine: Path, name: str) -> None:
    path = machine / name
    if name.endswith(".pth"):
        torch.save({"conv1.weight": _Code()}, path)
    else:
        path.write_bytes(b"none of it")
    found = find_imagenet(TIMM, machine)
    assert found is not None
    with pytest.raises(CspineError, match="expected tensors"):
        load_imagenet(timm.create_model(TIMM, num_classes=0), found, 3)


def test_a_file_that_changes_after_it_was_found_is_refused(machine: Path) -> None:
    path = machine / f"{TIMM}.pth"
    torch.save(shaken(timm.create_model(TIMM)), path)
    found = find_imagenet(TIMM, machine)
    assert found is not None
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(CspineError, match="have changed"):
        load_imagenet(timm.create_model(TIMM, num_classes=0), found, 3)


def test_only_encoders_of_libraries_ask_for_weights() -> None:
    for config in (
        SequenceNetwork(encoder="own", size=32, hidden=4),
        SequenceNetwork(encoder=TIMM, size=32, hidden=4, pretrained=False),
    ):
        network = build_network(config)
        assert isinstance(network, SequenceNet)
        assert network.pretrained_parts() == []
