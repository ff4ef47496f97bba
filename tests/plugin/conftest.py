"""What the plugin's tests share: the library, registered once, and the folder of models."""

import os
from pathlib import Path

import onnxruntime as ort
import pytest

from sessions import EP

ROOT = Path(__file__).resolve().parents[2]


def library_path() -> str:
    path = os.environ.get("NPU_EP_LIBRARY", "")
    if not Path(path).is_file():
        pytest.exit(f"NPU_EP_LIBRARY is {path!r}, which is no file; `cargo xtask test` builds the plugin and sets it", 2)
    return str(Path(path).resolve())


def pytest_sessionstart() -> None:
    try:
        ort.register_execution_provider_library(EP, library_path())
    except Exception as error:  # all that ONNX Runtime's failed statuses have in common
        pytest.exit(f"ONNX Runtime {ort.__version__} does not load the plugin: {error}", 3)


@pytest.fixture(scope="session")
def models() -> Path:
    folder = ROOT / ".models"
    assert folder.is_dir(), f"no {folder}; run `cargo xtask models`"
    return folder


@pytest.fixture(scope="session")
def library() -> str:
    return library_path()
