"""Wrong inputs, wrong models, wrong options: an error that names the thing, or the CPU's result. Never a wrong one."""

import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphs
import sessions

# Everything that ONNX Runtime's Python raises for a failed status derives from Exception only.
Failure = Exception


def outcome(make, model: bytes, x: np.ndarray):
    """The outputs, or the error of making the session or running it."""
    try:
        return sessions.run(make(model), x), None
    except Failure as error:
        return None, error


@pytest.fixture
def npu():
    return sessions.by_name(graphs.quantised().SerializeToString())


@pytest.mark.parametrize("door", sessions.DOORS)
@pytest.mark.parametrize("shape", [(1, 3, 16, 17), (1, 4, 16, 16), (3, 16, 16), (1, 1, 3, 16, 16)])
def test_a_wrong_shape_names_the_input(shape, door):
    session = sessions.DOORS[door](graphs.quantised().SerializeToString())
    with pytest.raises(Failure, match="input"):
        sessions.run(session, np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", [np.float64, np.uint8, np.int64, np.float16])
def test_a_wrong_type_is_an_error_and_the_session_goes_on(npu, kind):
    reference = sessions.cpu(graphs.quantised().SerializeToString())
    with pytest.raises(Failure, match="input|expected"):
        sessions.run(npu, np.zeros((1, *graphs.SHAPE), kind))
    sessions.assert_same(npu, reference, graphs.sample(1), "after the error")


def test_a_missing_or_unknown_input_is_named(npu):
    with pytest.raises(Failure, match="input"):
        npu.run(None, {})
    with pytest.raises(Failure, match="elsewhere"):
        npu.run(None, {"elsewhere": graphs.sample(1)})


def test_an_empty_batch_is_an_error_or_empty(npu):
    model = graphs.quantised().SerializeToString()
    x = np.zeros((0, *graphs.SHAPE), np.float32)
    found, error = outcome(sessions.by_name, model, x)
    if error is None:
        assert found[0].shape == (0, 10)
    else:
        assert re.search("batch|empty|zero|dimension|shape|size", str(error)), error


@pytest.mark.parametrize("batches", [[1, 2, 3, 5, 1, 3], [5, 1], [4, 3, 2, 1] * 3, list(range(1, 13)) + [1]])
def test_batch_sizes_in_any_order_on_one_session(batches):
    model = graphs.quantised().SerializeToString()
    session, reference = sessions.by_name(model), sessions.cpu(model)
    sessions.assert_all_on_npu(session)
    for turn, batch in enumerate(batches):
        sessions.assert_same(session, reference, graphs.sample(batch, seed=turn), f"turn {turn}, batch {batch}")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_whole_and_exact(batch):
    model = graphs.with_fixed_batch(batch).SerializeToString()
    session, reference = sessions.by_name(model), sessions.cpu(model)
    sessions.assert_all_on_npu(session)
    sessions.assert_same(session, reference, graphs.sample(batch), "fixed batch")


@pytest.mark.parametrize("side", [16, 15, 33])
def test_height_and_width_known_only_at_run(side):
    model = graphs.with_symbolic_sides().SerializeToString()
    x = np.random.default_rng(side).standard_normal((2, 3, side, side + 2)).astype(np.float32)
    sessions.assert_same(sessions.by_name(model), sessions.cpu(model), x, f"side {side}")


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, -0.0, 1e-45])
def test_odd_input_values_give_the_cpus_bits(fill):
    model = graphs.quantised().SerializeToString()
    session, reference = sessions.by_name(model), sessions.cpu(model)
    sessions.assert_all_on_npu(session)
    x = graphs.sample(2)
    x[:, :, ::3, ::5] = fill
    sessions.assert_same(session, reference, x, f"{fill} among the values")
    sessions.assert_same(session, reference, np.full_like(x, fill), f"{fill} alone")


# Which scale is wrong: the node that uses it, and which of its inputs carries it (-1: its output).
PLACES = {"input": ("conv1", 0), "weights": ("conv1", 1), "bias": ("conv2", 2), "between": ("conv2", 0), "last": ("output", -1)}


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 0.0, -0.05, 1e-45])
@pytest.mark.parametrize("place", PLACES)
def test_an_impossible_scale_is_an_error_or_the_cpus_result(place, scale):
    model = graphs.with_scale(*PLACES[place], scale).SerializeToString()
    x = graphs.sample(2)
    wanted, cpu_error = outcome(sessions.cpu, model, x)
    for door, make in sessions.DOORS.items():
        found, error = outcome(make, model, x)
        if error is not None:
            assert re.search("scale", str(error)) or cpu_error is not None, f"{door}: {error}"
            continue
        assert cpu_error is None, f"{door}: the CPU provider refuses this model ({cpu_error}), the NPU ran it"
        for a, b in zip(found, wanted, strict=True):
            assert np.array_equal(sessions.bits(a), sessions.bits(b)), f"{door}: {place} scale {scale}"


@pytest.mark.parametrize("door", sessions.DOORS)
def test_an_unknown_option_lists_the_known_ones(door):
    with pytest.raises(Failure) as caught:
        sessions.DOORS[door](graphs.quantised().SerializeToString(), {"thread": "1"})
    text = str(caught.value)
    assert re.search(r"\bthread\b", text) and re.search(r"\bthreads\b", text), text


@pytest.mark.parametrize("value", ["many", "-1", "", "1.5", "99999999999999999999"])
def test_a_bad_value_names_its_option(value):
    with pytest.raises(Failure, match="threads"):
        sessions.by_name(graphs.quantised().SerializeToString(), {"threads": value})


@pytest.mark.parametrize("door", sessions.DOORS)
def test_an_unknown_device_is_named(door):
    with pytest.raises(Failure, match="no-such-device"):
        sessions.DOORS[door](graphs.quantised().SerializeToString(), {"device": "no-such-device:here"})


@pytest.mark.parametrize("door", sessions.DOORS)
def test_strict_refuses_a_model_that_is_not_whole_and_takes_one_that_is(door):
    make = sessions.DOORS[door]
    whole = graphs.quantised().SerializeToString()
    sessions.assert_same(make(whole, {"strict": "1"}), sessions.cpu(whole), graphs.sample(2), "strict")
    with pytest.raises(Failure, match="tail"):
        make(graphs.with_float_tail("Softmax").SerializeToString(), {"strict": "1"})


MIXED = {
    "float in the middle": (lambda: graphs.quantised(middle="Sin"), "Sin", "middle"),
    "quantised logarithm of a softmax at the end": (lambda: graphs.quantised(tail="LogSoftmax"), "LogSoftmax", "output"),
    "float softmax at the end": (lambda: graphs.with_float_tail("Softmax"), "Softmax", "tail"),
    "float at the end": (lambda: graphs.with_float_tail("Exp"), "Exp", "tail"),
}


@pytest.mark.since("1.24")
@pytest.mark.parametrize("door", sessions.DOORS)
@pytest.mark.parametrize("case", MIXED)
def test_an_operator_that_the_npu_lacks_stays_on_the_cpu_and_is_named(case, door, capfd):
    make, kind, node = MIXED[case]
    model = make().SerializeToString()
    reference = sessions.cpu(model)
    capfd.readouterr()
    session = _with_info_log(sessions.DOORS[door], model)
    log = capfd.readouterr().err
    assert kind in sessions.operators_on(session, sessions.CPU)
    assert sessions.operators_on(session, sessions.EP).count("Conv") == 2
    assert any(kind in line and node in line for line in _summary(log)), log
    for batch in (1, 3):
        sessions.assert_same(session, reference, graphs.sample(batch), f"{case}, batch {batch}")


@pytest.mark.since("1.24")
@pytest.mark.parametrize("door", sessions.DOORS)
def test_a_float_model_runs_on_the_cpu(door):
    model = graphs.float_net().SerializeToString()
    session = sessions.DOORS[door](model)
    assert sessions.operators_on(session, sessions.EP) == []
    sessions.assert_same(session, sessions.cpu(model), graphs.sample(2), "float model")


def test_a_model_cut_short_is_an_error():
    whole = graphs.quantised().SerializeToString()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(Failure):
            sessions.by_name(whole[:length])


def test_two_outputs_of_one_tensor_and_an_output_in_the_middle():
    model = graphs.quantised()
    middle = next(n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear" and "relu1" in n.input[0])
    model.graph.output.append(onnx.helper.make_tensor_value_info(middle, onnx.TensorProto.UINT8, None))
    data = model.SerializeToString()
    session = sessions.by_name(data)
    sessions.assert_all_on_npu(session)
    sessions.assert_same(session, sessions.cpu(data), graphs.sample(2), "two outputs")


def _with_info_log(make, model: bytes) -> ort.InferenceSession:
    """By name the provider logs to the default logger, by device to the session's: ask both for INFO."""
    ort.set_default_logger_severity(1)
    try:
        return make(model, severity=1)
    finally:
        ort.set_default_logger_severity(2)


def _summary(log: str) -> list[str]:
    """The lines that the plugin itself wrote."""
    return [line for line in log.splitlines() if re.search(r"npu", line, re.IGNORECASE)]
