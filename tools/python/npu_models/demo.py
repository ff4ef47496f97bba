"""EfficientNet-Lite0 on labelled photographs: float on the CPU, INT8 on the CPU, INT8 on the NPU, side by side.

Prints the labels, the accuracy of each, how many output values differ between the two INT8 runs, ONNX Runtime's own
record of what ran where, and the latency of both. Fails where one value differs or one node is not on the NPU.
"""

import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort

from . import build, images

EP = "NpuExecutionProvider"
CPU = "CPUExecutionProvider"
BLOCKS, RUNS, PAUSE_S = 6, 6, 0.05


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
    show_labels(photos, logits)
    differing = int((logits["INT8 CPU"] != logits["INT8 NPU"]).sum())
    print(f"\noutput values that differ, INT8 NPU against INT8 CPU: {differing} of {logits['INT8 CPU'].size:,}")
    placed = show_placement(on_npu)
    show_latency(int8_model, pictures[0])
    print(
        "\nThe photographs are the 20 ImageNet samples of the foolbox package. No package ships more, so the quantiser was\n"
        "calibrated on the same 20 (as they are, mirrored, and cropped tighter): the INT8 accuracy is not a held-out figure.\n"
        "Labels are ImageNet-1k class indices."
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
    settings = {"threads": str(threads)} if threads else {}
    return ort.InferenceSession(model, options, providers=[(EP, settings)], enable_fallback=0)


def classify(session: ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    return session.run(None, {"input": x})[0]


def show_labels(photos: list[images.Photo], logits: dict[str, np.ndarray]) -> None:
    best = {name: values.argmax(axis=1) for name, values in logits.items()}
    print(f"\n{'photograph':<18} {'label':>5}  " + "  ".join(f"{name:>14}" for name in logits))
    for row, photo in enumerate(photos):
        verdicts = (f"{best[name][row]:>8} {'right' if best[name][row] == photo.label else 'wrong'}" for name in logits)
        print(f"{photo.name:<18} {photo.label:>5}  " + "  ".join(f"{verdict:>14}" for verdict in verdicts))
    right = {name: sum(int(b == photo.label) for b, photo in zip(best[name], photos)) for name in logits}
    print(f"{'top-1':<18} {'':>5}  " + "  ".join(f"{right[name]:>11}/{len(photos)}" for name in logits))


def show_placement(session: ort.InferenceSession) -> bool:
    """Prints who ran what, from ONNX Runtime's record. True where one subgraph on the NPU is all there is."""
    record = session.get_provider_graph_assignment_info()
    print("\nwhat ran where, as ONNX Runtime recorded it:")
    for subgraph in record:
        kinds = Counter(node.op_type for node in subgraph.get_nodes())
        print(f"  {subgraph.ep_name}: {kinds.total()} nodes ({', '.join(f'{kind} {n}' for kind, n in kinds.most_common())})")
    on_cpu = sum(len(subgraph.get_nodes()) for subgraph in record if subgraph.ep_name != EP)
    on_npu = sum(subgraph.ep_name == EP for subgraph in record)
    print(f"  subgraphs on the NPU: {on_npu}; nodes on the CPU: {on_cpu}")
    return on_npu == 1 and on_cpu == 0


def show_latency(model: str, x: np.ndarray) -> None:
    """Times both in turn, block by block. The pause lets the threads of the other session stop spinning."""
    print(f"\nlatency of one photograph, median of {BLOCKS * RUNS} runs in alternating blocks of {RUNS}:", flush=True)
    for threads in (1, 2):
        sessions = {"CPU": cpu_session(model, threads), "NPU": npu_session(model, threads)}
        times = {name: [] for name in sessions}
        for _ in range(BLOCKS):
            for name, session in sessions.items():
                time.sleep(PAUSE_S)
                classify(session, x)
                times[name] += [timed_ms(session, x) for _ in range(RUNS)]
        cpu, npu = (statistics.median(times[name]) for name in ("CPU", "NPU"))
        print(f"  {threads} thread{'s' if threads > 1 else ' '}: CPU provider {cpu:6.2f} ms, NPU {npu:6.2f} ms")


def timed_ms(session: ort.InferenceSession, x: np.ndarray) -> float:
    start = time.perf_counter()
    classify(session, x)
    return 1e3 * (time.perf_counter() - start)
