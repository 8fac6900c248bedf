"""How large a network is, read from its ONNX graph: parameters, and floating-point operations of one run.

Parameters are the elements of the graph's floating-point weights. Operations are two for every multiplication with
addition in convolutions, matrix products and recurrent layers, as the shapes of the graph have them; what is cheap
beside these (activations, norms, pooling, resizing) is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from cspine.errors import BundleError
from cspine.inference.bundle import Bundle
from cspine.inference.locate import WINDOW
from cspine.inference.refine import WINDOW as REFINER_WINDOW
from cspine.inference.stacks import CHANNELS, COLUMNS, PLANES, ROWS

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


class NetworkSize(BaseModel):
    """Size of one network.

    Attributes:
        stages: that use it.
        parameters: number of weights.
        flops: operations of one run on ``input``; what could not be worked out is left out.
        input: shape of what one run sees.
        unknown: operators whose shapes could not be worked out, so that ``flops`` is too low; mostly 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[str, ...]
    parameters: int
    flops: int
    input: Shape
    unknown: int = 0


def bundle_sizes(bundle: Bundle) -> tuple[NetworkSize, ...]:
    """The size of every network of a bundle, in the order in which they run; a shared one once.

    Raises:
        BundleError: a file is no ONNX model.
    """
    stages: dict[str, list[str]] = {}
    for name, stage in bundle.manifest.stages.items():
        stages.setdefault(stage.file, []).append(name)
    out = []
    for file, names in stages.items():
        stage = bundle.manifest.stages[names[0]]  # type: ignore[index]
        if stage.planar is not None:
            view = stage.planar.view
            shape: Shape = (1, view.channels, view.size, view.size)
        elif names[0] == "classifier":
            shape = (1, PLANES, CHANNELS, ROWS, COLUMNS)
        else:
            block = stage.window or (WINDOW if names[0] == "locator" else REFINER_WINDOW)
            shape = (1, 1 if names[0] == "locator" else 3, *block)
        out.append(network_size(bundle.files[file], shape, tuple(names)))
    return tuple(out)


def network_size(model: bytes, shape: Shape, stages: tuple[str, ...] = ()) -> NetworkSize:
    """Size of a network with one input.

    Args:
        model: ONNX bytes.
        shape: of the input; takes the place of dynamic axes.
        stages: that use it.

    Raises:
        BundleError: not an ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import inliner

    try:
        proto = onnx.load_from_string(model)
        graph = inliner.inline_local_functions(proto).graph if proto.functions else proto.graph
        floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        parameters = sum(math.prod(item.dims) for item in graph.initializer if item.data_type in floating)
        shapes = _shapes(proto, shape)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise BundleError(f"expected an ONNX model: {error}"[:300], fix="Export the bundle again") from error
    flops = unknown = 0
    for node in graph.node:
        count = _COUNTS.get(node.op_type)
        if count is None:
            continue
        try:
            flops += count(node, shapes)
        except (KeyError, IndexError):
            unknown += 1
    return NetworkSize(stages=stages, parameters=parameters, flops=flops, input=shape, unknown=unknown)


def _shapes(proto: Any, shape: Shape) -> dict[str, Shape]:
    """Shapes of all values of the graph, for an input of one shape."""
    import onnx
    from onnx import inliner

    flat = inliner.inline_local_functions(proto) if proto.functions else proto
    weights = {item.name for item in flat.graph.initializer}
    # What the exporter noted has dynamic axes; all shapes are worked out anew from the input.
    del flat.graph.value_info[:]
    for value in flat.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in flat.graph.input:
        if value.name not in weights:
            for axis, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                axis.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(flat, data_prop=True).graph
    shapes = {item.name: tuple(item.dims) for item in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            shapes[value.name] = tuple(axis.dim_value for axis in axes)
    return shapes


def _attribute(node: Any, name: str, default: Any) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _convolution(node: Any, shapes: Shapes) -> int:
    """Every output value is a product with the kernel over its group's input channels."""
    weight = shapes[node.input[1]]
    return 2 * math.prod(shapes[node.output[0]]) * math.prod(weight[1:])


def _transposed(node: Any, shapes: Shapes) -> int:
    """Every input value is multiplied with the kernel over its group's output channels."""
    return 2 * math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(node: Any, shapes: Shapes) -> int:
    """Every output value is a sum over the shared axis."""
    first = shapes[node.input[0]]
    shared = first[-2] if node.op_type == "Gemm" and _attribute(node, "transA", 0) else first[-1]
    return 2 * math.prod(shapes[node.output[0]]) * shared


def _recurrent(node: Any, shapes: Shapes) -> int:
    """Each step multiplies its input and its state with the gates' weights ``[directions, gates * hidden, ...]``."""
    inputs = shapes[node.input[0]]
    steps, batch = (inputs[0], inputs[1]) if not _attribute(node, "layout", 0) else (inputs[1], inputs[0])
    return 2 * steps * batch * sum(math.prod(shapes[name]) for name in node.input[1:3])


_COUNTS: dict[str, Callable[[Any, Shapes], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _product,
    "MatMul": _product,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
