"""Sessions of ONNX Runtime on the NPU, by each door, and on the CPU; and what ONNX Runtime says ran where."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnxruntime as ort

import wheels

EP = "NpuExecutionProvider"
CPU = "CPUExecutionProvider"


def options(severity: int | None = None) -> ort.SessionOptions:
    made = ort.SessionOptions()
    if wheels.RECORDS_PLACEMENT:
        made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if severity is not None:
        made.log_severity_level = severity
    return made


def cpu(model: bytes | str) -> ort.InferenceSession:
    """The reference: the whole model on the CPU provider, at the default optimisation level."""
    return ort.InferenceSession(model, options(), providers=[CPU])


def on_npu(model: bytes | str, made: ort.SessionOptions, settings: dict[str, str] | None = None) -> ort.InferenceSession:
    """A session with options of the caller's, as most users write it. Without `enable_fallback=0` Python hides a provider's errors."""
    if wheels.TAKES_NAMES:
        return ort.InferenceSession(model, made, providers=[(EP, settings or {}), CPU], enable_fallback=0)
    made.add_provider_for_devices(devices()[:1], settings or {})
    return ort.InferenceSession(model, made, enable_fallback=0)


def by_name(model: bytes | str, settings: dict[str, str] | None = None, severity: int | None = None) -> ort.InferenceSession:
    """By the provider's name; by its device, in a wheel whose lists of names know no plugins."""
    return on_npu(model, options(severity), settings)


def by_device(model: bytes | str, settings: dict[str, str] | None = None, severity: int | None = None) -> ort.InferenceSession:
    made = options(severity)
    made.add_provider_for_devices(devices()[:1], settings or {})
    return ort.InferenceSession(model, made, enable_fallback=0)


DOORS: dict[str, Callable[..., ort.InferenceSession]] = {"by name": by_name} if wheels.TAKES_NAMES else {}
DOORS["by device"] = by_device


def devices() -> list:
    return [device for device in ort.get_ep_devices() if device.ep_name == EP]


def placement(session: ort.InferenceSession) -> list[tuple[str, list[str]]]:
    """ONNX Runtime's own record: for each subgraph its provider and the operators in it."""
    record = session.get_provider_graph_assignment_info()
    return [(subgraph.ep_name, [node.op_type for node in subgraph.get_nodes()]) for subgraph in record]


def nodes_on(session: ort.InferenceSession, provider: str) -> list[str]:
    record = session.get_provider_graph_assignment_info()
    return [node.name for subgraph in record if subgraph.ep_name == provider for node in subgraph.get_nodes()]


def operators_on(session: ort.InferenceSession, provider: str) -> list[str]:
    return [kind for name, kinds in placement(session) if name == provider for kind in kinds]


def assert_all_on_npu(session: ort.InferenceSession) -> None:
    if not wheels.RECORDS_PLACEMENT:
        # Then ONNX Runtime makes no session of which it would run a node itself.
        made = options()
        made.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        on_npu(session._model_bytes or session._model_path, made)
        return
    subgraphs = Counter(name for name, _ in placement(session))
    left = Counter(operators_on(session, CPU))
    assert subgraphs == {EP: 1}, f"wanted one subgraph, on the NPU; found {dict(subgraphs)}, on the CPU {dict(left)}"


def run(session: ort.InferenceSession, x: np.ndarray | dict[str, np.ndarray]) -> list[np.ndarray]:
    return session.run(None, {session.get_inputs()[0].name: x} if isinstance(x, np.ndarray) else x)


def assert_same(
    session: ort.InferenceSession, reference: ort.InferenceSession, x: np.ndarray | dict[str, np.ndarray], what: str
) -> list[np.ndarray]:
    """Runs both and compares every output bit for bit; returns the outputs.

    With another wheel than the one whose CPU provider is the reference, differences are counted for the closing table.
    """
    found, wanted = run(session, x), run(reference, x)
    names = [output.name for output in reference.get_outputs()]
    for name, a, b in zip(names, found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{what}, {name}"
        differ = np.flatnonzero(bits(a) != bits(b))
        wheels.compared(session, differ.size, a.size)
        if differ.size and wheels.IS_REFERENCE:
            at = np.unravel_index(differ[0], a.shape)
            raise AssertionError(f"{what}, {name}: {differ.size} of {a.size} values differ, first at {at}: NPU {a[at]}, CPU {b[at]}")
    return found


def bits(values: np.ndarray) -> np.ndarray:
    """The values as unsigned integers, so that -0 is not 0. All NaNs count as one value: their payload means nothing."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype.kind == "f":
        flat = np.where(np.isnan(flat), flat.dtype.type(np.nan), flat)
    return flat.view(f"u{flat.dtype.itemsize}")
