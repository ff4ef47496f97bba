"""What a user of ONNX Runtime writes: a model, run on the device a few times.

    NPU_EP_LIBRARY=libep_npu.so python tests/smi/application.py MODEL DEVICE
"""

import os
import sys

import numpy as np
import onnxruntime as ort


def main(model: str, device: str) -> None:
    ort.register_execution_provider_library("NpuExecutionProvider", os.environ["NPU_EP_LIBRARY"])
    providers = [("NpuExecutionProvider", {"device": device}), "CPUExecutionProvider"]
    # Without `enable_fallback=0` Python runs the model on the CPU, and says nothing of a device that fails.
    session = ort.InferenceSession(model, providers=providers, enable_fallback=0)
    image = np.full([1, 1, 28, 28], 0.5, np.float32)
    for _ in range(3):
        session.run(None, {session.get_inputs()[0].name: image})


main(*sys.argv[1:])
