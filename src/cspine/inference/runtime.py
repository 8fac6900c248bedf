"""What runs the networks: OpenVINO by default, ONNX Runtime as the other. Both on the CPU, offline, deterministic.

Lower precision is never a hope: ``gate`` measures what it does to a network's answers on real weights and inputs,
the bundle records it, and the predictor uses it only when the record says so and the processor has it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cspine.errors import BundleError, MissingExtraError, UsageError
from cspine.inference.bundle import GateRecord, Precision

Tensor = NDArray[np.float32]
Tensors = Mapping[str, Tensor]
RuntimeName = Literal["openvino", "onnxruntime"]
RUNTIMES: tuple[RuntimeName, ...] = ("openvino", "onnxruntime")


class Network(Protocol):
    """A loaded network: named float32 arrays in, named float32 arrays out."""

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """Run once; blocks until done."""


class Runtime(Protocol):
    """Loads networks from ONNX bytes."""

    @property
    def name(self) -> str:
        """For provenance: the library and its version."""

    def supports(self, precision: Precision) -> bool:
        """Whether this library computes in that precision on this processor, faster than in f32."""

    def load(self, model: bytes, precision: Precision = "f32") -> Network:
        """Compile a model.

        Raises:
            BundleError: not a model that this runtime can run.
        """


def make_runtime(name: str = "openvino", threads: int | None = None) -> Runtime:
    """The runtime of that name.

    Args:
        name: ``openvino`` or ``onnxruntime``.
        threads: processor threads; None for all that this process may use.

    Raises:
        UsageError: another name, or no thread.
        MissingExtraError: the library is not installed.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"expected at least one thread, got {threads}", where="threads")
    if name == "openvino":
        return OpenVinoRuntime(threads)
    if name == "onnxruntime":
        return OnnxRuntime(threads)
    raise UsageError(f"unknown runtime '{name}'", where="runtime", fix=f"Choose from: {', '.join(RUNTIMES)}")


def available_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Import OpenVINO with its own stub in place of the telemetry package, which otherwise may send usage data."""
    name = "openvino_telemetry"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


class OpenVinoRuntime:
    """OpenVINO on the CPU: one stream, fixed threads, no model cache on disk, no telemetry."""

    def __init__(self, threads: int | None = None) -> None:
        try:
            with _without_telemetry():
                import openvino
        except ImportError as error:
            raise MissingExtraError("OpenVINO is not installed", fix="pip install openvino") from error
        self._openvino: Any = openvino
        self._core: Any = openvino.Core()
        self._threads = threads or available_threads()

    @property
    def name(self) -> str:
        """``openvino <version>``."""
        return f"openvino {str(self._openvino.__version__).split('-')[0]}"

    def supports(self, precision: Precision) -> bool:
        """bf16 needs processor instructions for it (AVX512-BF16 or AMX)."""
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return precision == "f32" or "BF16" in capabilities

    def load(self, model: bytes, precision: Precision = "f32") -> Network:
        """See ``Runtime.load``."""
        config = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Pinning takes processors from other programs on a shared machine.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            return _OpenVinoNetwork(self._core.compile_model(self._core.read_model(model=model), "CPU", config))
        except RuntimeError as error:
            raise _unusable("OpenVINO", error) from error


class _OpenVinoNetwork:
    """A compiled OpenVINO model; keeps one request, so its memory is allocated once."""

    def __init__(self, compiled: Any) -> None:
        self._request: Any = compiled.create_infer_request()
        self._outputs = [(output.get_any_name(), output) for output in compiled.outputs]

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """See ``Network``."""
        result = self._request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        # Copied: the next call writes into the same memory.
        return {name: np.array(result[output], dtype=np.float32) for name, output in self._outputs}


class OnnxRuntime:
    """ONNX Runtime on the CPU: sequential graph, fixed threads, telemetry off, f32 only."""

    def __init__(self, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("ONNX Runtime is not installed", fix="pip install onnxruntime") from error
        self._library: Any = onnxruntime
        onnxruntime.disable_telemetry_events()
        self._threads = threads or available_threads()

    @property
    def name(self) -> str:
        """``onnxruntime <version>``."""
        return f"onnxruntime {self._library.__version__}"

    def supports(self, precision: Precision) -> bool:
        """Its CPU kernels compute convolutions in f32 only."""
        return precision == "f32"

    def load(self, model: bytes, precision: Precision = "f32") -> Network:
        """See ``Runtime.load``."""
        if not self.supports(precision):
            raise UsageError(f"ONNX Runtime does not compute in {precision} on a CPU", where="precision")
        options = self._library.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._library.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        # Threads that spin while they wait slow down whatever runs beside or after.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return _OnnxNetwork(self._library.InferenceSession(model, options, providers=["CPUExecutionProvider"]))
        # The library's exceptions share no base but Exception.
        except Exception as error:
            raise _unusable("ONNX Runtime", error) from error


class _OnnxNetwork:
    """A session."""

    def __init__(self, session: Any) -> None:
        self._session: Any = session
        self._names = [output.name for output in session.get_outputs()]

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """See ``Network``."""
        values = self._session.run(self._names, dict(inputs))
        return {name: np.asarray(value, dtype=np.float32) for name, value in zip(self._names, values, strict=True)}


def _unusable(library: str, error: Exception) -> BundleError:
    """The library's own words, shortened."""
    reason = " ".join(str(error).split())[:300]
    return BundleError(
        f"{library} cannot load this network: {reason}", fix="Try the other runtime, or get the bundle again"
    )


# How far two answers of a stage are apart, as a share of the scale that decisions are made on.
Distance = Callable[[Tensors, Tensors], float]


def gate(
    runtime: Runtime,
    model: bytes,
    inputs: Sequence[Tensors],
    *,
    distance: Distance,
    tolerance: float,
    precision: Precision = "bf16",
) -> GateRecord:
    """Measure what a lower precision does to a network, on its real weights and on real inputs.

    Args:
        runtime: must support the precision.
        model: ONNX bytes.
        inputs: at least one; typical ones, and some with a fracture.
        distance: see ``locator_distance``, ``refiner_distance`` and ``classifier_distance``.
        tolerance: largest distance that may pass.
        precision: the candidate; the reference is f32.

    Returns:
        The record for ``bundle.json``: worst distance over the inputs, tolerance, number of inputs.

    Raises:
        UsageError: no input, or the runtime cannot compute in that precision here.
    """
    if not inputs:
        raise UsageError("expected at least one input to measure precision on", where="inputs")
    if not runtime.supports(precision):
        raise UsageError(f"{runtime.name} does not compute in {precision} here", fix="Run the gate on another machine")
    exact, candidate = runtime.load(model), runtime.load(model, precision)
    worst = max(distance(exact(item), candidate(item)) for item in inputs)
    # A network that answers with NaN is as far off as can be.
    return GateRecord(error=worst if np.isfinite(worst) else 1e9, tolerance=tolerance, inputs=len(inputs))


def locator_distance(exact: Tensors, other: Tensors) -> float:
    """Share of bone voxels (in either answer) whose class changes, or the largest change of heat if that is larger."""
    from cspine.inference.locate import CLASSES, probabilities

    first, second = (probabilities(answer["locator"][0]) for answer in (exact, other))
    a, b = first[:CLASSES].argmax(axis=0), second[:CLASSES].argmax(axis=0)
    bone = (a > 0) | (b > 0)
    changed = float((a != b)[bone].mean()) if bone.any() else 0.0
    return max(changed, float(np.abs(first[CLASSES] - second[CLASSES]).max()))


def refiner_distance(exact: Tensors, other: Tensors) -> float:
    """Share of bone voxels (in either answer) whose class changes."""
    a, b = (answer["refiner"][0].argmax(axis=0) for answer in (exact, other))
    bone = (a > 0) | (b > 0)
    finite = all(np.isfinite(answer["refiner"]).all() for answer in (exact, other))
    if not finite:
        return float("nan")
    return float((a != b)[bone].mean()) if bone.any() else 0.0


def classifier_distance(exact: Tensors, other: Tensors) -> float:
    """Largest change of any probability: vertebra, slices or evidence map."""
    names = ("vertebra", "slices", "evidence")
    return max(float(np.abs(_sigmoid(exact[name]) - _sigmoid(other[name])).max()) for name in names)


def _sigmoid(x: Tensor) -> Tensor:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float32)
