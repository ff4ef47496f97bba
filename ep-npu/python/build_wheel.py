"""Packs the plugin library and the `npu` tool, both built, into a wheel. Needs nothing but Python.

    python3 build_wheel.py --library libep_npu.so --tool npu --version 0.1.0 --folder target/wheels

The same inputs give the same bytes.
"""

import argparse
import base64
import hashlib
import zipfile
from pathlib import Path

NAME = "onnxruntime_ep_npu"
TAG = "py3-none-linux_x86_64"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# The oldest date that a zip file has.
DATE = (1980, 1, 1, 0, 0, 0)
FILE, PROGRAM = 0o100644, 0o100755

METADATA = """Metadata-Version: 2.4
Name: onnxruntime-ep-npu
Version: {version}
Summary: ONNX Runtime execution provider of an open NPU stack
License-Expression: Apache-2.0 OR MIT
License-File: LICENSE-APACHE
License-File: LICENSE-MIT
Requires-Python: >=3.10
Requires-Dist: numpy
Provides-Extra: onnxruntime
Requires-Dist: onnxruntime>=1.23.2; extra == "onnxruntime"
Description-Content-Type: text/markdown

{readme}"""

WHEEL = f"""Wheel-Version: 1.0
Generator: build_wheel.py
Root-Is-Purelib: false
Tag: {TAG}
"""


def contents(library: Path, tool: Path, version: str) -> list[tuple[str, bytes, int]]:
    """Path in the wheel, bytes and mode of each file but the record."""
    package, info = HERE / NAME, f"{NAME}-{version}.dist-info"
    files = [(f"{NAME}/{path.name}", path.read_bytes(), FILE) for path in sorted(package.iterdir()) if path.suffix in (".py", ".typed")]
    files.append((f"{NAME}/libep_npu.so", library.read_bytes(), PROGRAM))
    files.append((f"{NAME}/npu", tool.read_bytes(), PROGRAM))
    metadata = METADATA.format(version=version, readme=(HERE / "README.md").read_text())
    files.append((f"{info}/METADATA", metadata.encode(), FILE))
    files.append((f"{info}/WHEEL", WHEEL.encode(), FILE))
    files += [(f"{info}/licenses/{name}", (ROOT / name).read_bytes(), FILE) for name in ("LICENSE-APACHE", "LICENSE-MIT")]
    return files


def build(library: Path, tool: Path, version: str, folder: Path) -> Path:
    files = contents(library, tool, version)
    record = f"{NAME}-{version}.dist-info/RECORD"
    lines = [f"{path},sha256={digest(content)},{len(content)}" for path, content, _ in files]
    files.append((record, "\n".join([*lines, f"{record},,", ""]).encode(), FILE))
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{NAME}-{version}-{TAG}.whl"
    unfinished = wheel.with_suffix(".unfinished")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path, content, mode in files:
            entry = zipfile.ZipInfo(path, DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(entry, content)
    unfinished.replace(wheel)
    return wheel


def digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--tool", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    print(build(given.library, given.tool, given.version, given.folder))


if __name__ == "__main__":
    main()
