"""ResNet-18, ResNet-50 and MobileNetV2 in torchvision's topology, with random but well-conditioned weights.

The weights are noise, so these say nothing about accuracy. They are for comparing two machines bit by bit, and for
that a network must keep its values spread: see `Network.conv_bn`.
"""

import numpy as np
import onnx

from .network import Network

CLASSES = 1000


def resnet18(sample: np.ndarray) -> onnx.ModelProto:
    return _resnet("resnet18", sample, [2, 2, 2, 2], _basic, seed=18)


def resnet50(sample: np.ndarray) -> onnx.ModelProto:
    return _resnet("resnet50", sample, [3, 4, 6, 3], _bottleneck, seed=50)


def mobilenet_v2(sample: np.ndarray) -> onnx.ModelProto:
    net = Network("mobilenet_v2", sample, seed=2)
    x = net.relu6(net.conv_bn("input", "features.0.0", 32, 3, 2, gain=1.5, shift=1), "features.0.2")
    channels, block = 32, 1
    # expansion, channels out, repeats, stride
    for expansion, out, repeats, stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for repeat in range(repeats):
            x = _inverted_residual(net, x, f"features.{block}", channels, out, expansion, stride if repeat == 0 else 1)
            channels, block = out, block + 1
    x = net.relu6(net.conv_bn(x, "features.18.0", 1280, 1, gain=1.5), "features.18.2")
    net.head(x, CLASSES)
    return net.model([3, 224, 224], [CLASSES])


def _inverted_residual(net: Network, x: str, name: str, channels: int, out: int, expansion: int, stride: int) -> str:
    entry, wide = x, channels * expansion
    if expansion != 1:
        x = net.relu6(net.conv_bn(x, f"{name}.expand", wide, 1, gain=1.5, shift=1), f"{name}.expand.relu6")
    x = net.relu6(net.conv_bn(x, f"{name}.depthwise", wide, 3, stride, group=wide, gain=1.5, shift=1), f"{name}.depthwise.relu6")
    joins = stride == 1 and channels == out
    x = net.conv_bn(x, f"{name}.project", out, 1, gain=0.5 if joins else 1.0)
    return net.node("Add", [entry, x], f"{name}.add") if joins else x


def _resnet(name: str, sample: np.ndarray, repeats: list[int], block, seed: int) -> onnx.ModelProto:
    net = Network(name, sample, seed)
    x = net.node("Relu", [net.conv_bn("input", "conv1", 64, 7, 2)], "relu")
    pool = {"ceil_mode": 0, "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    x = net.node("MaxPool", [x], "maxpool", **pool)
    for stage, count in enumerate(repeats):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            x = block(net, x, f"layer{stage + 1}.{index}", 64 << stage, stride, first=index == 0)
    net.head(x, CLASSES)
    return net.model([3, 224, 224], [CLASSES])


def _basic(net: Network, x: str, name: str, width: int, stride: int, first: bool) -> str:
    y = net.node("Relu", [net.conv_bn(x, f"{name}.conv1", width, 3, stride)], f"{name}.relu1")
    y = net.conv_bn(y, f"{name}.conv2", width, 3, gain=0.5)
    if first and (stride != 1 or net.sample[x].shape[1] != width):
        x = net.conv_bn(x, f"{name}.downsample.0", width, 1, stride)
    return net.node("Relu", [net.node("Add", [y, x], f"{name}.add")], f"{name}.relu2")


def _bottleneck(net: Network, x: str, name: str, width: int, stride: int, first: bool) -> str:
    y = net.node("Relu", [net.conv_bn(x, f"{name}.conv1", width, 1)], f"{name}.relu1")
    y = net.node("Relu", [net.conv_bn(y, f"{name}.conv2", width, 3, stride)], f"{name}.relu2")
    y = net.conv_bn(y, f"{name}.conv3", width * 4, 1, gain=0.5)
    if first:
        x = net.conv_bn(x, f"{name}.downsample.0", width * 4, 1, stride)
    return net.node("Relu", [net.node("Add", [y, x], f"{name}.add")], f"{name}.relu3")
