"""`python -m npu_models`: what `cargo xtask models` and `demo` call."""

import argparse
import sys
from pathlib import Path

from . import build, digits, quantise


def main() -> int:
    parser = argparse.ArgumentParser(prog="npu_models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    models = commands.add_parser("build", help="make the models and print the table")
    models.add_argument("folder", type=Path)
    models.add_argument("--only", nargs="+", choices=list(build.ALL))
    models.add_argument("--set", choices=list(build.SETS), default="demo")
    small = commands.add_parser("digits", help="train and quantise the small digit model into one file")
    small.add_argument("file", type=Path)
    small.add_argument("--packages", type=Path, default=Path(".models/packages"))
    show = commands.add_parser("demo", help="classify labelled photographs on the NPU and on the CPU")
    show.add_argument("folder", type=Path)
    show.add_argument("--plugin", type=Path, required=True, help="libep_npu.so")
    arguments = parser.parse_args()
    if arguments.command == "build":
        print(build.table(build.build(arguments.folder, arguments.only or build.SETS[arguments.set])))
        return 0
    if arguments.command == "digits":
        model = digits.train(arguments.packages)
        small_model = quantise.static_qdq(model, digits.calibration(arguments.packages), per_channel=True)
        arguments.file.write_bytes(small_model.SerializeToString(deterministic=True))
        held_out = [digits.accuracy(m, arguments.packages) for m in (model, small_model)]
        print(f"{arguments.file}: {arguments.file.stat().st_size} bytes; held-out accuracy {held_out[0]:.1%} float, {held_out[1]:.1%} quantised")
        return 0
    from . import demo  # the other commands need no ONNX Runtime with the plugin

    return demo.run(arguments.folder, arguments.plugin)


if __name__ == "__main__":
    sys.exit(main())
