"""Both runtimes run the same ONNX bytes to the same numbers, offline, and precision is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cspine.errors import BundleError, UsageError
from cspine.inference.runtime import (
    RUNTIMES,
    classifier_distance,
    gate,
    locator_distance,
    make_runtime,
)

onnx = pytest.importorskip("onnx", reason="onnx is in the dev extra")


def tiny_locator(scale: float = 1.0) -> bytes:
    """One convolution, dynamic shape, random weights from a fixed seed: image → locator."""
    rng = np.random.default_rng(3)
    weight = (rng.normal(size=(11, 1, 3, 3, 3)) * scale).astype(np.float32)
    node = onnx.helper.make_node("Conv", ["image", "w"], ["locator"], kernel_shape=[3, 3, 3], pads=[1] * 6)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "tiny",
        [value("image", onnx.TensorProto.FLOAT, [1, 1, "z", "y", "x"])],
        [value("locator", onnx.TensorProto.FLOAT, [1, 11, "z", "y", "x"])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


def image(seed: int = 0, shape: tuple[int, int, int] = (16, 16, 32)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 1, *shape)).astype(np.float32)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_network_runs_at_several_shapes_and_repeats_itself_to_the_bit(name: str) -> None:
    network = make_runtime(name, threads=1).load(tiny_locator())
    for shape in ((16, 16, 16), (32, 16, 48), (16, 16, 16)):
        first, second = (network({"image": image(1, shape)})["locator"] for _ in range(2))
        assert first.shape == (1, 11, *shape)
        assert first.dtype == np.float32
        assert first.tobytes() == second.tobytes()


def test_answers_stay_when_the_network_runs_again() -> None:
    network = make_runtime("openvino", threads=1).load(tiny_locator())
    first = network({"image": image(1)})["locator"]
    kept = first.copy()
    network({"image": image(2)})
    assert (first == kept).all()


def test_the_runtimes_agree() -> None:
    answers = [make_runtime(name, threads=1).load(tiny_locator())({"image": image()})["locator"] for name in RUNTIMES]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)


@pytest.mark.parametrize("name", RUNTIMES)
def test_what_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(BundleError) as caught:
        make_runtime(name, threads=1).load(b"not a model")
    assert caught.value.fix


def test_an_unknown_runtime_is_named() -> None:
    with pytest.raises(UsageError, match="tensorrt"):
        make_runtime("tensorrt")


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_is_refused(threads: int) -> None:
    with pytest.raises(UsageError, match="thread"):
        make_runtime("openvino", threads)


def test_onnx_runtime_has_no_bf16() -> None:
    runtime = make_runtime("onnxruntime", threads=1)
    assert not runtime.supports("bf16")
    with pytest.raises(UsageError):
        runtime.load(tiny_locator(), "bf16")


class Pair:
    """A runtime whose lower precision is off by a chosen amount."""

    name = "pair"

    def __init__(self, error: float) -> None:
        self.error = error

    def supports(self, precision: str) -> bool:
        return True

    def load(self, model: bytes, precision: str = "f32"):
        shift = self.error if precision == "bf16" else 0.0
        return lambda inputs: dict.fromkeys(("vertebra", "slices", "evidence"), inputs["x"] + shift)


def test_the_gate_decides_by_the_worst_input() -> None:
    inputs = [{"x": np.full((1, 2), value, np.float32)} for value in (-9.0, 0.0)]
    record = gate(Pair(0.4), b"", inputs, distance=classifier_distance, tolerance=0.02)
    # The sigmoid is steepest at 0: that input is the worst.
    assert record.error == pytest.approx(1 / (1 + np.exp(-0.4)) - 0.5, abs=1e-5)
    assert record.inputs == 2
    assert not record.passed
    assert gate(Pair(0.01), b"", inputs, distance=classifier_distance, tolerance=0.02).passed


def test_answers_that_are_not_numbers_never_pass() -> None:
    inputs = [{"x": np.zeros((1, 2), np.float32)}]
    assert not gate(Pair(float("nan")), b"", inputs, distance=classifier_distance, tolerance=0.5).passed


def test_the_gate_needs_inputs() -> None:
    with pytest.raises(UsageError):
        gate(Pair(0.0), b"", [], distance=classifier_distance, tolerance=0.1)


def test_the_locators_distance_is_the_share_of_bone_that_changes_its_name() -> None:
    exact = np.full((1, 11, 4, 4, 4), -5.0, np.float32)
    exact[:, 0] = 5.0
    exact[:, :, 0] = -5.0
    exact[:, 3, 0] = 5.0
    other = exact.copy()
    other[:, 3, 0, 0] = -5.0
    other[:, 4, 0, 0] = 5.0
    assert locator_distance({"locator": exact}, {"locator": other}) == pytest.approx(0.25)
    assert locator_distance({"locator": exact}, {"locator": exact}) == 0.0


def test_bf16_passes_on_a_mild_network_where_the_processor_has_it() -> None:
    runtime = make_runtime("openvino", threads=1)
    if not runtime.supports("bf16"):
        pytest.skip("this processor has no bf16")
    record = gate(runtime, tiny_locator(0.2), [{"image": image()}], distance=locator_distance, tolerance=0.2)
    assert record.passed


def test_running_needs_no_network_and_loads_no_telemetry() -> None:
    code = """
import socket, sys
def refuse(*_, **__):
    raise AssertionError("a connection was tried")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from test_runtime import image, tiny_locator
from cspine.inference.runtime import make_runtime
for name in ("openvino", "onnxruntime"):
    make_runtime(name, 1).load(tiny_locator())({"image": image()})
loaded = [name for name in sys.modules if name.startswith("openvino_telemetry")]
assert not loaded, loaded
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
