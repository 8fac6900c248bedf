"""Export: every runtime answers as torch does, small storage included; a run becomes a bundle that loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cspine.errors import UsageError
from cspine.inference.bundle import Bundle
from cspine.training.export import add_figures, calibrate_bundle, export_bundle, trained_on, type_levels
from cspine.training.fit import CHECKPOINT, build_module
from cspine.training.networks import build_network
from cspine.training.onnx_files import (
    PARITY_TOLERANCE,
    Kind,
    differences,
    export_onnx,
    stored_half,
    torch_answers,
)
from cspine.training.recipe import ClassifierStage, LocatorStage, Recipe, StackNetwork, UNet3dNetwork
from test_calibration import records

RECIPE = Recipe(
    name="tiny",
    locator=LocatorStage(network=UNet3dNetwork(widths=(8, 16, 16)), window=(32, 32, 32)),
    classifier=ClassifierStage(
        network=StackNetwork(widths=(8, 8, 16, 16), blocks=(1, 1, 1), neck=8, hidden=24)
    ),
)  # fmt: skip


def settled(kind: Kind) -> torch.nn.Module:
    """A small network with batch statistics of its own."""
    torch.manual_seed(0)
    network = build_network(RECIPE.locator.network if kind == "locator" else RECIPE.classifier.network)
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(1, 1, 32, 32, 32) if kind == "locator" else torch.randn(1, 24, 4, 128, 160))
    return network.eval()


SHAPES: dict[Kind, list[tuple[int, ...]]] = {
    "locator": [(1, 1, 16, 48, 32), (1, 1, 64, 32, 16)],
    "classifier": [(1, 24, 4, 128, 160), (3, 24, 4, 128, 160)],
}


@pytest.fixture(scope="module", params=["locator", "classifier"])
def exported(request: pytest.FixtureRequest) -> tuple[Kind, torch.nn.Module, bytes]:
    kind: Kind = request.param
    network = settled(kind)
    return kind, network, export_onnx(network, kind)


@pytest.mark.parametrize("half", [False, True])
def test_runtimes_agree_with_torch_at_every_size(
    exported: tuple[Kind, torch.nn.Module, bytes], half: bool
) -> None:  # fmt: skip
    kind, network, model = exported
    rng = np.random.default_rng(0)
    inputs = [rng.normal(0, 1, shape).astype(np.float32) for shape in SHAPES[kind]]
    expected = [torch_answers(network, kind, x) for x in inputs]
    found = differences(stored_half(model) if half else model, kind, inputs, expected)
    assert set(found) == {"onnxruntime", "openvino"}
    # Rounding the weights costs a little; that both runtimes round alike shows that nothing else changed.
    assert max(found.values()) < (10 * PARITY_TOLERANCE if half else PARITY_TOLERANCE)
    assert abs(found["onnxruntime"] - found["openvino"]) < PARITY_TOLERANCE


def test_half_storage_is_smaller_and_names_no_machine(exported: tuple[Kind, torch.nn.Module, bytes]) -> None:
    _, _, model = exported
    small = stored_half(model)
    assert len(small) < 0.75 * len(model)
    assert str(Path(__file__).parents[1]).encode() not in model
    assert b"site-packages" not in model


def run_folder(folder: Path) -> Path:
    """A run whose checkpoints hold random networks, as ``fit_stage`` writes them."""
    for name, stage in (("locator", RECIPE.locator), ("classifier", RECIPE.classifier)):
        module = build_module(stage)
        module.average.values = {key: value.clone() for key, value in settled(name).state_dict().items()}
        saved: dict[str, object] = {"global_step": 3}
        module.on_save_checkpoint(saved)
        (folder / name).mkdir(parents=True)
        torch.save(saved, folder / name / CHECKPOINT)
    (folder / "recipe.json").write_text(RECIPE.model_dump_json())
    return folder


def test_a_run_becomes_a_bundle_that_is_calibrated_and_tells_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    bundle = export_bundle(run_folder(tmp_path / "run"), out)
    assert bundle.manifest.recipe == "tiny"
    assert bundle.manifest.types[0] == "jefferson"
    assert b"Not a diagnosis" in bundle.files["card.md"]
    calibrated = calibrate_bundle(out, records())
    assert calibrated.sha256 != bundle.sha256
    assert set(calibrated.manifest.calibration.levels) == {f"C{k}" for k in range(1, 8)}
    assert calibrated.model("locator") == bundle.model("locator")
    final = add_figures(out, "# Title\n\n| figure | value |\n|---|---|\n| AUC | 0.9 |\n")
    again = add_figures(out, "# Title\n\n| figure | value |\n|---|---|\n| AUC | 0.8 |\n")
    card = again.files["card.md"].decode()
    assert card.count("## Figures") == card.count("## Calibration") == 1
    assert "0.8" in card
    assert final.sha256 != again.sha256 == Bundle.load(out).sha256


def test_a_run_without_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(RECIPE.model_dump_json())
    with pytest.raises(UsageError, match="no trained locator"):
        export_bundle(tmp_path, tmp_path / "bundle")


def test_types_know_where_they_occur() -> None:
    levels = type_levels()
    assert levels["jefferson"] == ["C1"]
    assert levels["dens-ii"] == ["C2"]
    assert "C7" in levels["spinous-process"]


def test_the_card_says_when_patients_were_among_the_data(tmp_path: Path) -> None:
    def made(stage: str, *names: str) -> None:
        for name in names:
            (tmp_path / stage / name).mkdir(parents=True)
            (tmp_path / stage / name / "meta.json").write_text('{"format": 1}')

    recipe = Recipe(name="tiny")
    made("classifier", "phantom-000001", "phantom-000002", "scan-00-000001")
    said = trained_on(tmp_path, recipe)
    assert "classifier: 2 phantoms and 1 copies of real scans with planted fractures" in said
    assert said.endswith("no patient with a known fracture")
    made("classifier", "1.2.826.1")
    (tmp_path / "classifier" / "splits.json").unlink(missing_ok=True)
    said = trained_on(tmp_path, recipe)
    assert "1 studies of patients" in said
    assert "no patient" not in said
