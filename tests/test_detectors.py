"""Detectors of torchvision: what they learn from, what they answer, and that every runtime answers alike."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from cspine.errors import RecipeError
from cspine.inference.planar import PlanarView
from cspine.inference.planar_boxes import box_overlap, suppressed
from cspine.inference.runtime import make_runtime
from cspine.training.detectors import BEST, build_detector, class_count, strongest
from cspine.training.onnx_files import differences, export_onnx, stored_half, torch_answers
from cspine.training.planar_export import Probabilities, planar_interface
from cspine.training.planar_samples import boxes_of
from cspine.training.recipe import PlanarNetwork, PlanarStage

SIZE = 64
VIEW = PlanarView(size=SIZE, windows=((600.0, 1800.0),))
BODIES = ("retinanet", "fcos")


def network(body: str, **settings) -> PlanarNetwork:
    return PlanarNetwork(body=body, heads=("boxes",), **({"encoder": "resnet18"} | settings))


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """One image twice, with C3 above C4, and its labels."""
    labels = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    labels[6:30, 8:34] = 3
    labels[34:60, 26:54] = 4
    noise = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    image = labels.float() / 2 - 1 + 0.05 * noise
    return image.expand(2, 1, SIZE, SIZE).contiguous(), labels.expand(2, SIZE, SIZE)


def truth_of(labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The boxes of each image of labels, as ``losses`` takes them."""
    rows = [torch.from_numpy(boxes_of(image)) for image in labels.numpy()]
    return [{"boxes": own[:, 1:], "labels": own[:, 0].long()} for own in rows]


@cache
def trained(body: str) -> nn.Module:
    """A detector after 30 steps on the scene."""
    torch.manual_seed(0)
    detector = build_detector(network(body), VIEW).train()
    image, labels = scene()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    for _ in range(30):
        loss = torch.stack(list(detector.losses(image, truth_of(labels)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 2.0)
        optimizer.step()
    return detector.eval()


@pytest.mark.parametrize("body", BODIES)
def test_thirty_steps_on_one_image_find_its_two_vertebrae(body):
    image, labels = scene()
    truth = truth_of(labels)[0]
    detector = trained(body)
    with torch.no_grad():
        found = detector(image)
    kept = suppressed(found["boxes"][0].numpy(), found["scores"][0].numpy(), floor=0.3)
    for box, label in zip(truth["boxes"].numpy(), truth["labels"].numpy(), strict=True):
        surest = kept[kept[:, 0] == label][0]
        assert box_overlap(box[None], surest[None, 2:])[0, 0] > 0.5


@pytest.mark.parametrize("body", BODIES)
def test_both_runtimes_answer_as_torch_does(body):
    use = planar_interface(PlanarStage(network=network(body), view=VIEW), "locator")
    detector = Probabilities(trained(body), "one")
    model = export_onnx(detector, use)
    image = torch.cat([scene()[0], torch.rand(1, 1, SIZE, SIZE) * 2 - 1]).numpy()
    # One image, and several.
    inputs = [image[:1], image]
    wanted = [torch_answers(detector, use, x) for x in inputs]
    assert max(differences(model, use, inputs, wanted).values()) < 1e-3
    # Rounded weights change which box is the last to be answered, and so the place of others; not what they say.
    assert max(differences(stored_half(model), use, inputs, wanted).values()) < 1e-2
    found = make_runtime("openvino", threads=1).load(model)({"image": image})
    kept, again = (suppressed(one["boxes"][0], one["scores"][0], floor=0.3) for one in (found, wanted[1]))
    np.testing.assert_allclose(kept, again, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("body", BODIES)
def test_answers_are_boxes_in_the_image_and_probabilities(body):
    view = PlanarView(size=128, windows=((600.0, 1800.0), (40.0, 400.0)), neighbours=1)
    detector = build_detector(network(body, encoder="mobilenet_v3_large", fractured_boxes=True), view).eval()
    with torch.no_grad():
        found = detector(torch.rand(2, view.channels, 128, 128) * 2 - 1)
    boxes, scores = found["boxes"], found["scores"]
    assert boxes.shape == (2, min(BEST, len(detector.anchors)), 4) and scores.shape == (*boxes.shape[:2], 14)
    assert boxes.min() >= 0 and boxes.max() <= 128 and (boxes[..., 2:] >= boxes[..., :2]).all()
    assert scores.min() >= 0 and scores.max() <= 1


@pytest.mark.parametrize("body", BODIES)
def test_images_without_vertebrae_teach_the_background(body):
    detector = build_detector(network(body), VIEW).train()
    nothing = truth_of(torch.zeros(2, SIZE, SIZE, dtype=torch.uint8))
    assert [len(one["labels"]) for one in nothing] == [0, 0]
    losses = detector.losses(torch.zeros(2, 1, SIZE, SIZE), nothing)
    assert set(losses) == {"classification", "box"} | ({"centerness"} if body == "fcos" else set())
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["classification"] > 0 and losses["box"] == 0


def test_half_precision_leaves_boxes_and_losses_in_full():
    detector = build_detector(network("fcos"), VIEW)
    image, labels = scene()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(value.dtype == torch.float32 for value in detector.losses(image, truth_of(labels)).values())
        assert all(value.dtype == torch.float32 for value in detector.eval()(image).values())


def test_the_strongest_boxes_keep_their_order():
    scores = torch.tensor([[[0.1, 0.2], [0.9, 0.0], [0.0, 0.3], [0.8, 0.9]]])
    assert strongest(scores, 2).flatten().tolist() == [1, 3]
    assert strongest(scores, 9).flatten().tolist() == [0, 1, 2, 3]
    assert class_count(network("fcos", fractured_boxes=True)) == 14 and class_count(network("fcos")) == 7


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v3_large"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_encoder_is_named_as_its_library_names_it(encoder, channels):
    view = PlanarView(size=SIZE, windows=((600.0, 1800.0),) * channels)
    ((part, name, inputs),) = build_detector(network("fcos", encoder=encoder), view).pretrained_parts()
    assert (name, inputs) == (f"torchvision:{encoder}", channels)
    from torchvision import models

    whole = getattr(models, encoder)(weights=None).state_dict()
    own = part.state_dict()
    assert own.keys() <= whole.keys() and len(own) > 100
    assert {key for key in own if own[key].shape != whole[key].shape} <= {"conv1.weight", "features.0.0.weight"}


def test_an_unknown_encoder_is_refused_with_those_that_are_known():
    with pytest.raises(RecipeError, match="mobilenet_v3_large"):
        build_detector(network("fcos", encoder="vgg16"), VIEW)
    with pytest.raises(RecipeError, match="retinanet or fcos"):
        build_detector(PlanarNetwork(body="yolo", encoder="yolov8n", heads=("boxes",)), VIEW)
