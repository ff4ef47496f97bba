"""What the ONNX Runtime under test can do, by its version, and how far its CPU provider is from the reference.

The provider promises the bits of one version's CPU provider, the pinned one. Other versions compute a few values
differently; with those the tests count such values and print them by model, and assert all the rest.
"""

import re
from collections import defaultdict
from pathlib import Path

import onnxruntime as ort

PINNED = Path(__file__).resolve().parents[2] / "tools/python/requirements.txt"


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


VERSION = version(ort.__version__)
REFERENCE = re.search(r"^onnxruntime==(\S+)", PINNED.read_text(), re.MULTILINE)[1]
IS_REFERENCE = ort.__version__ == REFERENCE
# Whether a session says which node it gave to whom.
RECORDS_PLACEMENT = VERSION >= (1, 24)
# Whether `providers=[...]` finds a plugin.
TAKES_NAMES = VERSION >= (1, 25)

# Values that differ, and all of them, by model.
_compared: dict[str, list[int]] = defaultdict(lambda: [0, 0])


def compared(session: ort.InferenceSession, differing: int, values: int) -> None:
    path = session._model_path
    counts = _compared[Path(path).name if path else "models made by the tests"]
    counts[0] += differing
    counts[1] += values


def table() -> str:
    """Values that this wheel's CPU provider computes otherwise than the NPU, by model."""
    lines = [f"ONNX Runtime {ort.__version__}: values in which its CPU provider and the NPU differ", f"{'model':<40} {'differ':>10} {'of':>12}"]
    lines += [f"{name:<40} {differing:>10} {values:>12}" for name, (differing, values) in sorted(_compared.items())]
    return "\n".join(lines)
