"""Networks to ONNX bytes, stored small, and proof that every runtime answers as torch does."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cspine.inference.planar_boxes import boxes_distance
from cspine.inference.runtime import make_runtime

OPSET = 18
# Initializers with fewer values stay float32: biases and scales weigh nothing and carry range.
MIN_HALF_VALUES = 512
# Largest difference between runtimes, as a share of the largest logit; rounding, not arithmetic.
PARITY_TOLERANCE = 2e-3
_BOXES = ("boxes", "scores")

Tensor = NDArray[np.float32]
Kind = Literal["locator", "refiner", "classifier"]


class _Named(nn.Module):
    """Outputs as a tuple in a fixed order, which exporters keep."""

    def __init__(self, network: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.network(x)
        return tuple(found[name] for name in self.outputs) if isinstance(found, dict) else (found,)


@dataclass(frozen=True, slots=True)
class Interface:
    """What goes into a network and what comes out.

    Attributes:
        name: of the network, for errors.
        input: name of its one input.
        outputs: their names, in order.
        example: shape of an input, as small as tracing allows.
        axes: of input and outputs alike that may have any length, with their names.
    """

    name: str
    input: str
    outputs: tuple[str, ...]
    example: tuple[int, ...]
    axes: Mapping[int, str]


_SPACE = {2: "z", 3: "y", 4: "x"}
INTERFACES: dict[Kind, Interface] = {
    "locator": Interface("locator", "image", ("locator",), (1, 1, 64, 64, 64), _SPACE),
    "refiner": Interface("refiner", "image", ("refiner",), (1, 3, 64, 64, 64), _SPACE),
    "classifier": Interface(
        "classifier", "stack", ("vertebra", "slices", "types", "evidence"), (2, 24, 4, 128, 160), {0: "batch"}
    ),
}


def _known(kind: Kind | Interface) -> Interface:
    return kind if isinstance(kind, Interface) else INTERFACES[kind]


def export_onnx(network: nn.Module, kind: Kind | Interface) -> bytes:
    """ONNX bytes of a network in evaluation mode.

    Z, Y and X of a locator and a refiner are dynamic, and the batch of a classifier and of planar networks.
    """
    use = _known(kind)
    network = network.eval().cpu().float()
    example = torch.zeros(use.example)
    dynamic = {name: dict(use.axes) for name in (use.input, *use.outputs)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter says that dynamic_axes is the older of two ways to name dynamic axes; both give one graph.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Named(network, use.outputs).eval(),
            (example,),
            None,
            input_names=[use.input],
            output_names=list(use.outputs),
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the ONNX exporter returned no model")
    return _stripped(program.model_proto.SerializeToString())


def _stripped(model: bytes) -> bytes:
    """Without the exporter's notes, which hold source paths of the machine that exported."""
    import onnx

    proto = onnx.load_from_string(model)
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    proto.graph.doc_string = proto.doc_string = ""
    return bytes(proto.SerializeToString())


def stored_half(model: bytes) -> bytes:
    """The same network with its large weights stored in float16 and cast to float32 when it is loaded.

    Arithmetic stays float32. Weights beyond the range of float16 stay as they are.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    proto = onnx.load_from_string(model)
    casts = []
    for index, tensor in enumerate(proto.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < MIN_HALF_VALUES or np.abs(values).max(initial=0.0) > 6e4:
            continue
        half = f"{tensor.name}_half"
        casts.append(helper.make_node("Cast", [half], [tensor.name], to=TensorProto.FLOAT, name=f"{half}_cast"))
        proto.graph.initializer[index].CopyFrom(numpy_helper.from_array(values.astype(np.float16), half))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def torch_answers(network: nn.Module, kind: Kind | Interface, x: Tensor) -> dict[str, Tensor]:
    """What torch says, float32."""
    outputs = _known(kind).outputs
    with torch.inference_mode():
        found = _Named(network.eval(), outputs)(torch.from_numpy(x))
    return {name: value.float().numpy() for name, value in zip(outputs, found, strict=True)}


def differences(
    model: bytes, kind: Kind | Interface, inputs: list[Tensor], expected: list[Mapping[str, Tensor]]
) -> dict[str, float]:
    """Largest difference of each runtime from ``expected``, as a share of the largest expected logit.

    Args:
        model: ONNX bytes.
        kind: of network.
        inputs: arrays for its one input.
        expected: for each input the outputs by name.
    """
    out: dict[str, float] = {}
    for name in ("onnxruntime", "openvino"):
        network: Any = make_runtime(name, threads=1).load(model)
        worst = 0.0
        for x, wanted in zip(inputs, expected, strict=True):
            found = network({_known(kind).input: x})
            worst = max(worst, _boxes_apart(found, wanted))
            for key, value in wanted.items():
                if key not in _BOXES:
                    scale = max(1.0, float(np.abs(value).max()))
                    worst = max(worst, float(np.abs(found[key] - value).max()) / scale)
        out[name] = worst
    return out


def _boxes_apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The same for the boxes of a detector, not row by row: which is the last to be answered is decided by rounding."""
    if not wanted.keys() >= set(_BOXES):
        return 0.0
    pairs = [[(one["boxes"][k], one["scores"][k]) for one in (found, wanted)] for k in range(len(wanted["boxes"]))]
    return max(boxes_distance(*pair) for pair in pairs)
