"""A small digit classifier, trained here with numpy: conv, pool, conv, pool, fully connected.

`python -m npu_models digits FILE` writes the quantised model that is checked in as `tests/models/digits.qdq.onnx`.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from . import images, quantise
from .network import Network

EPOCHS, BATCH, RATE, MOMENTUM = 6, 50, 0.05, 0.9
HELD_OUT = 1000


def split(cache: Path):
    """Training and held-out digits: (pictures, labels) each, shuffled the same way every time."""
    pictures, labels = images.digits(cache)
    order = np.random.default_rng(5).permutation(len(labels))
    train, test = order[HELD_OUT:], order[:HELD_OUT]
    return (pictures[train], labels[train]), (pictures[test], labels[test])


def train(cache: Path) -> onnx.ModelProto:
    """Trains and returns the float model: input [batch, 1, 28, 28], output 10 logits."""
    (pictures, labels), _ = split(cache)
    random = np.random.default_rng(7)
    shapes = [(8, 1, 3, 3), (16, 8, 3, 3), (10, 784)]
    weights = [(random.standard_normal(s) * np.sqrt(2 / np.prod(s[1:]))).astype(np.float32) for s in shapes]
    biases = [np.zeros(s[0], np.float32) for s in shapes]
    parameters = weights + biases
    speed = [np.zeros_like(p) for p in parameters]
    for epoch in range(EPOCHS):
        order = random.permutation(len(labels))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            for parameter, velocity, slope in zip(parameters, speed, _slopes(pictures[rows], labels[rows], weights, biases)):
                velocity *= MOMENTUM
                velocity -= RATE * 0.5 ** (epoch / 2) * slope
                parameter += velocity
    return _model(weights, biases)


def calibration(cache: Path) -> list[np.ndarray]:
    """500 training digits, in batches of 50."""
    pictures = split(cache)[0][0]
    return [pictures[i : i + 50] for i in range(0, 500, 50)]


def accuracy(model: onnx.ModelProto, cache: Path) -> float:
    """Share of the held-out digits that the CPU provider gets right."""
    _, (pictures, labels) = split(cache)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return float((session.run(None, {"input": pictures})[0].argmax(axis=1) == labels).mean())


def _model(weights, biases) -> onnx.ModelProto:
    net = Network("digits", None)
    x = "input"
    for layer in (1, 2):
        x = net.conv(x, f"conv{layer}", weights[layer - 1], biases[layer - 1], 1, [1] * 4)
        x = net.node("Relu", [x], f"relu{layer}")
        x = net.node("MaxPool", [x], f"pool{layer}", kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Flatten", [x], "flatten", axis=1)
    net.node("Gemm", [x, net.constant("fc.weight", weights[2]), net.constant("fc.bias", biases[2])], "output", transB=1)
    return net.model([1, 28, 28], [10])


def _slopes(x, labels, weights, biases):
    """Gradients of the mean cross-entropy with respect to the three weights and the three biases."""
    columns, masks, winners = [], [], []
    for layer in (0, 1):
        columns.append(_patches(x))
        y = columns[-1] @ weights[layer].reshape(len(weights[layer]), -1).T + biases[layer]
        masks.append(y > 0)
        blocks = _blocks(np.maximum(y, 0))
        winners.append(blocks.argmax(axis=-1)[..., None])
        x = np.take_along_axis(blocks, winners[-1], -1)[..., 0].transpose(0, 3, 1, 2)
    flat = x.reshape(len(x), -1)
    logits = flat @ weights[2].T + biases[2]
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    share[np.arange(len(labels)), labels] -= 1
    share /= np.float32(len(labels))
    slope_w, slope_b = [None, None, share.T @ flat], [None, None, share.sum(axis=0)]
    slope = (share @ weights[2]).reshape(x.shape)
    for layer in (1, 0):
        blocks = np.zeros((*slope.transpose(0, 2, 3, 1).shape, 4), np.float32)
        np.put_along_axis(blocks, winners[layer], slope.transpose(0, 2, 3, 1)[..., None], -1)
        slope_y = (_unblocks(blocks) * masks[layer]).reshape(-1, len(weights[layer]))
        wide = columns[layer].reshape(-1, columns[layer].shape[-1])
        slope_w[layer] = (slope_y.T @ wide).reshape(weights[layer].shape)
        slope_b[layer] = slope_y.sum(axis=0)
        if layer == 1:
            turned = weights[1][:, :, ::-1, ::-1].transpose(1, 0, 2, 3).reshape(weights[1].shape[1], -1)
            planes = slope_y.reshape(*columns[1].shape[:3], -1).transpose(0, 3, 1, 2)
            slope = (_patches(planes) @ turned.T).transpose(0, 3, 1, 2)
    return slope_w + slope_b


def _patches(x: np.ndarray) -> np.ndarray:
    """Every 3x3 neighbourhood, zero-padded: [n, c, h, w] to [n, h, w, c * 9]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(len(x), x.shape[2], x.shape[3], -1)


def _blocks(y: np.ndarray) -> np.ndarray:
    """2x2 blocks: [n, h, w, c] to [n, h/2, w/2, c, 4]."""
    n, h, w, c = y.shape
    return y.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, c, 4)


def _unblocks(blocks: np.ndarray) -> np.ndarray:
    n, h, w, c, _ = blocks.shape
    return blocks.reshape(n, h, w, c, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(n, h * 2, w * 2, c)
