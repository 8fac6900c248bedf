"""YOLO detectors: what is trained without their library, the data set for it, and, where it is, training and export."""

from __future__ import annotations

import json
import os
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from cspine.errors import CspineError, MissingExtraError, RecipeError, StudyError
from cspine.inference.planar import PlanarView
from cspine.training import yolo, yolo_data, yolo_library
from cspine.training.detectors import build_detector
from cspine.training.onnx_files import differences, export_onnx, torch_answers
from cspine.training.planar_export import planar_interface
from cspine.training.planar_samples import planar_sample, write_planar
from cspine.training.recipe import PlanarNetwork, PlanarStage, Schedule
from cspine.training.yolo_data import channels_of, class_names, write_yolo_data
from training_factory import block_case

WINDOWS = ((600.0, 2800.0), (700.0, 4000.0), (400.0, 1800.0))


def stage(encoder: str = "yolov8n", *, windows=WINDOWS, fractured: bool = False, **schedule) -> PlanarStage:
    return PlanarStage(
        network=PlanarNetwork(body="yolo", encoder=encoder, heads=("boxes",), fractured_boxes=fractured),
        view=PlanarView(size=64, windows=windows),
        schedule=Schedule(**({"optimizer": "sgd", "learning_rate": 0.01, "batch_size": 4, "steps": 10} | schedule)),
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Planar samples of three scans to learn from and one that is held back (its number is a multiple of 16)."""
    folder = tmp_path_factory.mktemp("samples")
    for number in (1, 2, 3, 16):
        sample = planar_sample(block_case(number, spacing=(2.5, 2.5, 4.0), fractured=number % 2 == 1))
        write_planar(sample, folder / "planar", f"phantom-{number:06d}")
    return folder


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(yolo_library, "installed", lambda: False)
    monkeypatch.setattr(yolo, "installed", lambda: False)


# --- without the library


def test_without_the_extra_a_permissive_detector_is_trained_and_that_is_said(not_installed):
    own, said = yolo.settled(stage("yolov8s", fractured=True))
    assert (own.network.body, own.network.encoder, own.network.fractured_boxes) == ("fcos", "resnet18", True)
    assert said is not None
    for word in ("yolov8s", "not installed", "AGPL-3.0", "resnet18", 'pip install "cspine[yolo]"'):
        assert word in said
    assert own.model_copy(update={"network": stage("yolov8s", fractured=True).network}) == stage(
        "yolov8s", fractured=True
    )


@pytest.mark.parametrize("encoder", ["yolov5s", "yolov5lu", "yolov8n", "yolov8m", "yolov8x"])
def test_what_takes_its_place_can_be_built(not_installed, encoder):
    own, _ = yolo.settled(stage(encoder))
    assert build_detector(own.network, own.view).classes == 7


def test_with_the_extra_and_for_other_networks_nothing_changes(monkeypatch):
    monkeypatch.setattr(yolo, "installed", lambda: True)
    assert yolo.settled(stage()) == (stage(), None)
    monkeypatch.setattr(yolo, "installed", lambda: False)
    other = PlanarStage()
    assert yolo.settled(other) == (other, None)


def test_the_missing_extra_is_named_with_its_licence(not_installed, samples, tmp_path):
    with pytest.raises(MissingExtraError, match=r"AGPL-3\.0") as caught:
        yolo.fit_yolo(stage(), samples, tmp_path, seed=0)
    assert 'pip install "cspine[yolo]"' in (caught.value.fix or "")
    with pytest.raises(MissingExtraError):
        yolo.build_yolo(stage().network, stage().view)


@pytest.mark.parametrize("encoder", ["yolov9s", "yolov8", "yolov8q", "resnet50"])
def test_an_unknown_yolo_is_refused(not_installed, encoder):
    with pytest.raises(RecipeError, match="yolov8n"):
        yolo.settled(stage(encoder))


# --- the data set


def test_pictures_and_boxes_lie_where_the_library_looks(samples, tmp_path):
    data = write(samples, tmp_path)
    described = json.loads(data.file.read_text())
    assert described["names"]["0"] == "C1" and len(described["names"]) == 7
    pictures = sorted((tmp_path / "images" / "train").rglob("*.png"))
    assert len(pictures) == data.train > 0
    assert len(list((tmp_path / "images" / "val").rglob("*.png"))) == data.held_back > 0
    assert not any("phantom" in str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    for picture in pictures:
        text = (tmp_path / "labels" / picture.relative_to(tmp_path / "images")).with_suffix(".txt").read_text()
        rows = [[float(value) for value in row.split()] for row in text.splitlines()]
        with Image.open(picture) as image:
            assert image.size == (64, 64) and image.mode == "RGB"
            bright = np.asarray(image)[..., 2].astype(float)
        for label, x, y, width, height in rows:
            assert label in range(7) and x - width / 2 >= 0 and y + height / 2 <= 1
            row, column = int(y * 64), int(x * 64)
            # A vertebra is a bright block in tissue: brighter in its box than the picture is as a whole.
            assert bright[row - 2 : row + 2, column - 2 : column + 2].mean() > bright.mean()


def write(samples, folder, **settings):
    return write_yolo_data(stage(**settings), samples / "planar", folder, seed=0)


def test_one_window_gives_grey_pictures_and_three_give_colours(samples, tmp_path):
    write(samples, tmp_path, windows=WINDOWS[:1])
    with Image.open(next((tmp_path / "images").rglob("*.png"))) as image:
        assert image.mode == "L"
    assert channels_of(PlanarView(windows=WINDOWS)) == slice(None)
    assert channels_of(PlanarView(windows=WINDOWS[:1], neighbours=1)) == slice(None)
    assert channels_of(PlanarView(windows=WINDOWS, neighbours=1)) == slice(3, 4)


def test_fractured_vertebrae_are_classes_of_their_own(samples, tmp_path):
    write(samples, tmp_path, fractured=True, steps=60)
    labels = [row.split()[0] for path in (tmp_path / "labels").rglob("*.txt") for row in path.read_text().splitlines()]
    assert {int(label) >= 7 for label in labels} == {True, False}
    assert class_names(stage(fractured=True))[7] == "C1 fractured"


def test_an_interrupted_data_set_is_finished_and_a_finished_one_is_kept(samples, tmp_path):
    write(samples, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    lost = tmp_path / "images" / "train" / "00001"
    lost.rename(lost.with_name(".00001.part"))
    write(samples, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    again = {path for path in tmp_path.rglob("*.png") if path.stat().st_mtime_ns != stamps[path]}
    assert {path.parent for path in again} == {lost}


def test_other_settings_replace_the_data_set(samples, tmp_path):
    write(samples, tmp_path)
    data = write(samples, tmp_path, steps=1)
    assert data.train == len(list((tmp_path / "images" / "train").rglob("*.png"))) <= 6
    (tmp_path / "plan.json").write_text("{")
    assert write(samples, tmp_path, steps=1) == data


def test_no_samples_is_an_error(tmp_path):
    with pytest.raises(StudyError, match="no planar samples"):
        write_yolo_data(stage(), tmp_path / "planar", tmp_path / "data", seed=0)


def test_the_schedule_is_told_in_the_words_of_the_library(samples, tmp_path):
    own = stage(steps=100, accumulate=2, decay="cosine", warmup_steps=20, patience=3)
    data = write(samples, tmp_path, steps=100)
    told = yolo.training_settings(own, data, tmp_path, seed=5, device="cpu")
    batches = -(-data.train // 4)
    assert told["epochs"] == round(100 / batches) and told["nbs"] == 8 and told["cos_lr"] is True
    assert (told["optimizer"], told["lr0"], told["batch"], told["imgsz"], told["seed"]) == ("SGD", 0.01, 4, 64, 5)
    assert told["warmup_epochs"] == pytest.approx(20 / batches) and told["amp"] is False


# --- with the library


needs_library = pytest.mark.skipif(not yolo_library.installed(), reason="the extra yolo (AGPL-3.0) is not installed")


@needs_library
def test_weights_that_the_user_has_are_taken_and_code_among_them_is_not_run(tmp_path):
    own = stage("yolov5nu")
    source = yolo.build_yolo(own.network.model_copy(update={"fractured_boxes": True}), own.view).yolo
    with torch.no_grad():
        for weight in source.parameters():
            weight.fill_(0.5)
    torch.save({"model": source.half(), "ema": None}, tmp_path / "yolov5n.pt")
    target = yolo.build_yolo(own.network, own.view).yolo
    said = yolo_library.start_from(target, "yolov5nu", tmp_path)
    taken = [bool((weight == 0.5).all()) for weight in target.parameters()]
    # All but the last layers, which had other classes.
    assert "yolov5n.pt" in said and len(taken) - 6 <= sum(taken) < len(taken)

    torch.save({"model": Harmful(tmp_path / "harm")}, tmp_path / "yolov8n.pt")
    with pytest.raises(CspineError, match=r"yolov8n\.pt"):
        yolo_library.start_from(target, "yolov8n", tmp_path)
    assert not (tmp_path / "harm").exists()
    assert "random weights" in yolo_library.start_from(target, "yolov8x", tmp_path)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@needs_library
def test_two_steps_of_training_go_on_and_are_exported_without_the_network(samples, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    # Eight pictures, two steps an epoch.
    monkeypatch.setattr(yolo_data, "MOST_PICTURES", 8)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    own = stage()
    first = yolo.fit_yolo(own, samples, tmp_path, seed=0, max_steps=2, device="cpu", progress=False)
    saved = torch.load(first, weights_only=True)
    assert saved["global_step"] == 2 and saved["stage"]["network"]["encoder"] == "yolov8n"
    assert not list(tmp_path.rglob("*.pt")) and not list((tmp_path / "home").rglob("*ltralytics*"))
    stamp = first.stat().st_mtime_ns
    assert yolo.fit_yolo(own, samples, tmp_path, seed=0, max_steps=2, device="cpu", progress=False) == first
    assert first.stat().st_mtime_ns == stamp
    longer = yolo.fit_yolo(own, samples, tmp_path, seed=0, max_steps=4, device="cpu", progress=False)
    assert torch.load(longer, weights_only=True)["global_step"] == 4

    # One row an epoch, those before the interruption too.
    assert [row.split(",")[0] for row in (tmp_path / "log" / "results.csv").read_text().splitlines()[1:]] == ["1", "2"]
    network = yolo.yolo_network(longer, own)
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        wanted = {name: value.numpy() for name, value in network(image).items()}
    assert wanted["boxes"].shape == (3, 84, 4) and wanted["scores"].shape == (3, 84, 7)
    assert wanted["boxes"].min() >= 0 and wanted["boxes"].max() <= 64
    use = planar_interface(own, "locator")
    inputs = [image[:1].numpy(), image.numpy()]
    answers = [torch_answers(network, use, x) for x in inputs]
    assert max(differences(export_onnx(network, use), use, inputs, answers).values()) < 1e-3
    with pytest.raises(RecipeError, match="another network"):
        yolo.yolo_network(longer, stage("yolov8s"))
