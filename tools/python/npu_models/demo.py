"""EfficientNet-Lite0 on labelled photographs: float on the CPU, INT8 on the CPU, INT8 on the NPU, side by side.

Prints the labels, the accuracy of each, how many output values differ between the two INT8 runs, ONNX Runtime's own
record of what ran where, and the latency of both. Fails where one value differs or one node is not on the NPU.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort

from . import build, images, labels, latency

EP = "NpuExecutionProvider"
CPU = "CPUExecutionProvider"


def run(folder: Path, plugin: Path) -> int:
    print(f"ONNX Runtime {ort.__version__}, stock wheel", flush=True)
    build.build(folder, ["effnet-lite0"])
    photos = images.photos(folder / "packages")
    pictures = [images.prepared(photo.image)[None] for photo in photos]
    ort.register_execution_provider_library(EP, str(plugin.resolve()))
    print(f"registered {plugin.name} as {EP}")
    float_model, int8_model = (str(folder / f"effnet-lite0.{kind}.onnx") for kind in ("fp32", "qdq-pc"))

    print("classifying 20 photographs three ways", flush=True)
    on_npu = npu_session(int8_model, 0)
    sessions = {"FP32 CPU": cpu_session(float_model, 0), "INT8 CPU": cpu_session(int8_model, 0), "INT8 NPU": on_npu}
    logits = {name: np.concatenate([classify(session, x) for x in pictures]) for name, session in sessions.items()}
    show_labels(photos, logits, labels.class_names(folder / "packages"))
    differing = int((logits["INT8 CPU"] != logits["INT8 NPU"]).sum())
    print(f"\noutput values that differ, INT8 NPU against INT8 CPU: {differing} of {logits['INT8 CPU'].size:,}")
    placed = show_placement(on_npu)
    show_latency(int8_model, pictures[0])
    print(
        "\nThe photographs are the 20 ImageNet samples of the foolbox package. It ships no more, so the quantiser was\n"
        "calibrated on the same 20 (as they are, mirrored, and cropped tighter): the INT8 accuracy is not a held-out figure."
    )
    if differing or not placed:
        print(f"\nFAILED: {differing} values differ; all nodes on the NPU: {'yes' if placed else 'no'}")
        return 1
    print("\nOK: the NPU gives the CPU provider's bits")
    return 0


def cpu_session(model: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=[CPU])


def npu_session(model: str, threads: int) -> ort.InferenceSession:
    """A session in which a node on the CPU is an error, and which keeps ONNX Runtime's record of the placement."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return ort.InferenceSession(model, options, providers=[EP], enable_fallback=0)


def classify(session: ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    return session.run(None, {"input": x})[0]


def show_labels(photos: list[images.Photo], logits: dict[str, np.ndarray], names: list[str]) -> None:
    best = {run: values.argmax(axis=1) for run, values in logits.items()}
    print(f"\n{'photograph':<16} {'label':<26} " + " ".join(f"{run:<11}" for run in logits) + " top class on the NPU")
    for row, photo in enumerate(photos):
        verdicts = " ".join(f"{best[run][row]:>4} {'right' if best[run][row] == photo.label else 'wrong'} " for run in logits)
        label = f"{photo.label:>3} {names[photo.label]}"[:26]
        print(f"{photo.name:<16} {label:<26} {verdicts} {names[best['INT8 NPU'][row]]}")
    right = {run: sum(int(b == photo.label) for b, photo in zip(best[run], photos)) for run in logits}
    print(f"{'top-1':<43} " + " ".join(f"{f'{right[run]}/{len(photos)}':<11}" for run in logits))


def show_placement(session: ort.InferenceSession) -> bool:
    """Prints who ran what, from ONNX Runtime's record. True where one subgraph on the NPU is all there is."""
    kinds: dict[str, Counter] = {EP: Counter(), CPU: Counter()}
    subgraphs: Counter = Counter()
    for subgraph in session.get_provider_graph_assignment_info():
        subgraphs[subgraph.ep_name] += 1
        kinds.setdefault(subgraph.ep_name, Counter()).update(node.op_type for node in subgraph.get_nodes())
    print("\nwhat ran where, as ONNX Runtime recorded it:")
    for provider, found in kinds.items():
        listed = ", ".join(f"{count} {kind}" for kind, count in found.most_common())
        print(f"  {provider}: {subgraphs[provider]} subgraph(s), {found.total()} nodes{': ' if listed else ''}{listed}")
    return subgraphs == {EP: 1}


def show_latency(model: str, x: np.ndarray) -> None:
    print(f"\nlatency of one photograph, median of {latency.BLOCKS * latency.RUNS} runs in alternating blocks:", flush=True)
    for threads in (1, 2):
        times = latency.compare(cpu_session(model, threads), npu_session(model, threads), x)
        print(f"  {threads} thread{'s' if threads > 1 else ' '}: CPU provider {times.cpu:6.2f} ms, NPU {times.npu:6.2f} ms")
