"""SqueezeNet 1.1, MobileNetV3-small and EfficientNet-B0 in torchvision's topology, with random weights.

What they have over `topologies`: branches that are joined, and gates, small networks over the mean of all pixels whose
result multiplies every channel. HardSwish is one node, as an exporter writes it from operator set 14 on; SiLU is two.
"""

import numpy as np
import onnx

from .network import Network

CLASSES = 1000


def squeezenet1_1(sample: np.ndarray) -> onnx.ModelProto:
    net = Network("squeezenet1_1", sample, seed=11)
    x = _relu(net, net.conv_bn("input", "features.0", 64, 3, 2, pad=0))
    widths = {3: 16, 4: 16, 6: 32, 7: 32, 9: 48, 10: 48, 11: 64, 12: 64}
    for index in range(2, 13):
        if index in widths:
            x = _fire(net, x, f"features.{index}", widths[index])
        else:
            x = net.node("MaxPool", [x], f"features.{index}", ceil_mode=1, kernel_shape=[3, 3], strides=[2, 2])
    x = _relu(net, net.conv_bn(x, "classifier.1", CLASSES, 1, gain=3))
    net.node("Flatten", [net.node("GlobalAveragePool", [x], "avgpool")], "output", axis=1)
    return net.model([3, 224, 224], [CLASSES])


def mobilenet_v3_small(sample: np.ndarray) -> onnx.ModelProto:
    net = Network("mobilenet_v3_small", sample, seed=3)
    x = _hard_swish(net, net.conv_bn("input", "features.0", 16, 3, 2, gain=1.5, shift=1))
    channels = 16
    # kernel, width, channels out, gate, activation, stride
    rows = [
        (3, 16, 16, True, _relu, 2),
        (3, 72, 24, False, _relu, 2),
        (3, 88, 24, False, _relu, 1),
        (5, 96, 40, True, _hard_swish, 2),
        (5, 240, 40, True, _hard_swish, 1),
        (5, 240, 40, True, _hard_swish, 1),
        (5, 120, 48, True, _hard_swish, 1),
        (5, 144, 48, True, _hard_swish, 1),
        (5, 288, 96, True, _hard_swish, 2),
        (5, 576, 96, True, _hard_swish, 1),
        (5, 576, 96, True, _hard_swish, 1),
    ]
    for index, (kernel, wide, out, gated, activation, stride) in enumerate(rows):
        name, entry = f"features.{index + 1}", x
        if wide != channels:
            x = activation(net, net.conv_bn(x, f"{name}.expand", wide, 1, gain=1.5, shift=1))
        x = activation(net, net.conv_bn(x, f"{name}.depthwise", wide, kernel, stride, group=wide, gain=1.5, shift=1))
        if gated:
            x = _gate(net, x, f"{name}.gate", -(-wide // 32) * 8, _relu, _hard_sigmoid)
        joins = stride == 1 and channels == out
        x = net.conv_bn(x, f"{name}.project", out, 1, gain=0.5 if joins else 1.0)
        if joins:
            x = net.node("Add", [x, entry], f"{name}.add")
        channels = out
    x = _hard_swish(net, net.conv_bn(x, "features.12", 576, 1, gain=1.5))
    net.head(x, CLASSES)
    return net.model([3, 224, 224], [CLASSES])


def efficientnet_b0(sample: np.ndarray) -> onnx.ModelProto:
    net = Network("efficientnet_b0", sample, seed=50)
    x = _silu(net, net.conv_bn("input", "features.0", 32, 3, 2, gain=1.5, shift=1))
    channels = 32
    # repeats, kernel, stride, expansion, channels out
    stages = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
    for stage, (repeats, kernel, stride, expansion, out) in enumerate(stages):
        for repeat in range(repeats):
            name, entry, step, wide = f"features.{stage + 1}.{repeat}", x, stride if repeat == 0 else 1, channels * expansion
            if expansion != 1:
                x = _silu(net, net.conv_bn(x, f"{name}.expand", wide, 1, gain=1.5, shift=1))
            x = _silu(net, net.conv_bn(x, f"{name}.depthwise", wide, kernel, step, group=wide, gain=1.5, shift=1))
            x = _gate(net, x, f"{name}.gate", max(1, channels // 4), _silu, _sigmoid)
            joins = step == 1 and channels == out
            x = net.conv_bn(x, f"{name}.project", out, 1, gain=0.5 if joins else 1.0)
            if joins:
                x = net.node("Add", [x, entry], f"{name}.add")
            channels = out
    x = _silu(net, net.conv_bn(x, "features.8", 1280, 1, gain=1.5))
    net.head(x, CLASSES)
    return net.model([3, 224, 224], [CLASSES])


def _fire(net: Network, x: str, name: str, squeeze: int) -> str:
    x = _relu(net, net.conv_bn(x, f"{name}.squeeze", squeeze, 1))
    sides = [_relu(net, net.conv_bn(x, f"{name}.expand{kernel}x{kernel}", squeeze * 4, kernel)) for kernel in (1, 3)]
    return net.node("Concat", sides, f"{name}.concat", axis=1)


def _gate(net: Network, x: str, name: str, narrow: int, inner, outer) -> str:
    """Mean of all pixels, two fully connected layers written as convolutions, and a multiplication per channel."""
    wide = net.sample[x].shape[1]
    mean = net.node("GlobalAveragePool", [x], f"{name}.mean")
    y = inner(net, net.conv_bn(mean, f"{name}.fc1", narrow, 1))
    y = outer(net, net.conv_bn(y, f"{name}.fc2", wide, 1, gain=1.5, shift=1))
    return net.node("Mul", [y, x], f"{name}.scale")


def _relu(net: Network, x: str) -> str:
    return net.node("Relu", [x], f"{x}.relu")


def _hard_swish(net: Network, x: str) -> str:
    return net.node("HardSwish", [x], f"{x}.hardswish")


def _hard_sigmoid(net: Network, x: str) -> str:
    return net.node("HardSigmoid", [x], f"{x}.hardsigmoid", alpha=1 / 6)


def _sigmoid(net: Network, x: str) -> str:
    return net.node("Sigmoid", [x], f"{x}.sigmoid")


def _silu(net: Network, x: str) -> str:
    return net.node("Mul", [x, _sigmoid(net, x)], f"{x}.silu")
