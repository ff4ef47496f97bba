"""Static QDQ quantisation with ONNX Runtime's own quantiser (U8 activations, S8 weights), and views into the result."""

import logging
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class _Batches(CalibrationDataReader):
    def __init__(self, batches: Iterable[np.ndarray | dict[str, np.ndarray]]):
        self.batches = iter(batches)

    def get_next(self):
        batch = next(self.batches, None)
        return {"input": batch} if isinstance(batch, np.ndarray) else batch


def static_qdq(
    model: onnx.ModelProto,
    calibration: list[np.ndarray] | list[dict[str, np.ndarray]],
    per_channel: bool,
    activations: QuantType = QuantType.QUInt8,
) -> onnx.ModelProto:
    """Quantises `model` as users do: pre-process, then `quantize_static` over the calibration batches."""
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises pre-processing even after it was done
    with TemporaryDirectory() as folder:
        source, prepared, result = (str(Path(folder, name)) for name in ("in.onnx", "pre.onnx", "out.onnx"))
        onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            result,
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=activations,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(result)


def all_taps(model: onnx.ModelProto, most: int = 200) -> list[onnx.ModelProto]:
    """Copies that have every quantised activation among their outputs, `most` each: the device has 256 slots."""
    count = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    parts = -(-count // most)
    return [with_taps(model, part, parts) for part in range(parts)]


def with_taps(model: onnx.ModelProto, part: int = 0, parts: int = 1) -> onnx.ModelProto:
    """A copy whose outputs are, besides its own, every quantised activation, or every `parts`-th from `part` on.

    Only outputs of QuantizeLinear are exposed. An 8-bit tensor lies between two units, so showing it changes neither
    how ONNX Runtime fuses them nor how the NPU's compiler groups them; a float tensor lies inside one.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {value.name: value for value in inferred.graph.value_info}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    tapped = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in types]
    for node in tapped[part::parts]:
        name = node.output[0]
        kind = types[node.input[2]] if len(node.input) > 2 else TensorProto.UINT8
        copy.graph.output.append(known[name] if name in known else helper.make_tensor_value_info(name, kind, None))
    return copy
