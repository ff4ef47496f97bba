"""Variants of the networks, quantised with the same settings but other types or scales, made when they are asked for."""

import json
from hashlib import sha256
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType

from . import build, quantise
from .published import Published

# Types of activations, and whether weights have a scale for each channel.
VARIANTS = {"s8s8-pc": (QuantType.QInt8, True), "s8s8-pt": (QuantType.QInt8, False), "u8s8-pt": (QuantType.QUInt8, False)}
KINDS = [kind for kind, (activations, _) in VARIANTS.items() if activations == QuantType.QInt8]


def ensure(name: str, kind: str, folder: Path) -> Path:
    """The file of this variant in `folder`, quantised anew where the float model or the way to do it is another."""
    source, file = folder / f"{name}.fp32.onnx", folder / f"{name}.{kind}.onnx"
    if not source.exists():
        build.build(folder, [name])
    digest = sha256(source.read_bytes())
    for path in (Path(__file__), Path(quantise.__file__)):
        digest.update(path.read_bytes())
    manifest, stamp = file.with_suffix(".json"), digest.hexdigest()
    if file.exists() and manifest.exists() and json.loads(manifest.read_text())["stamp"] == stamp:
        return file
    recipe = build.ALL[name]
    calibration = recipe.calibration(folder / "packages")
    activations, per_channel = VARIANTS[kind]
    model = quantise.static_qdq(onnx.load(source), calibration, per_channel, activations)
    part = file.with_suffix(".part")
    part.write_bytes(model.SerializeToString(deterministic=True))
    part.replace(file)
    manifest.write_text(json.dumps({"stamp": stamp}))
    return file


def feeds(name: str, folder: Path) -> list[dict]:
    """Four inputs, none of which calibrated the model as it was."""
    from . import inputs

    recipe, cache = build.ALL[name], folder / "packages"
    if isinstance(recipe, Published):
        return recipe.four(cache)
    eight = inputs.eight(list(recipe.shape), 1, cache)
    return [{"input": eight[kind]} for kind in ("real", "real, others", "normal", "wide normal")]
