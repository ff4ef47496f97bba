"""What the plugin's tests share: the library, registered once, and the folder of models."""

import os
from pathlib import Path

import onnxruntime as ort
import pytest

import wheels
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


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "since(version): of what ONNX Runtime can do from this version on")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what the wheel under test cannot do: its versions are given beside each test."""
    later = [item for item in items if any(wheels.VERSION < wheels.version(mark.args[0]) for mark in item.iter_markers("since"))]
    if later:
        items[:] = [item for item in items if item not in later]
        config.hook.pytest_deselected(items=later)


def pytest_terminal_summary(terminalreporter) -> None:
    if not wheels.IS_REFERENCE:
        terminalreporter.write_line(wheels.table())


@pytest.fixture(scope="session")
def models() -> Path:
    folder = ROOT / ".models"
    assert folder.is_dir(), f"no {folder}; run `cargo xtask models`"
    return folder


@pytest.fixture(scope="session")
def library() -> str:
    return library_path()
