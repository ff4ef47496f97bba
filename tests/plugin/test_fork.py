"""A forked child of a process with a session and tensors in device memory: over each way to a device."""

import pytest

import processes

# Before that there is no memory of a device to be had.
pytestmark = pytest.mark.since("1.28")

FORKED = """
import multiprocessing, threading
fork = multiprocessing.get_context("fork")
LIMIT_S = 60
model = graphs.quantised().SerializeToString()
x = graphs.sample(2)
wanted = sessions.run(sessions.cpu(model), x)[0]
session = sessions.by_name(model)
assert np.array_equal(sessions.run(session, x)[0], wanted)
memory = sessions.devices()[0].memory_info(ort.OrtDeviceMemoryType.DEFAULT)

def tensor(array):
    made = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), np.float32, memory_info=memory)
    made.numpy()[:] = array
    return made

source, target = tensor(x), tensor(np.zeros((2, 10), np.float32))
view = source.numpy()
binding = session.io_binding()
binding.bind_ortvalue_input("input", source)
binding.bind_ortvalue_output("output", target)

def is_told(run):
    try:
        run()
    except Exception as error:
        assert "fork" in str(error), error
    else:
        raise AssertionError("the parent's session ran")

def child_of(work):
    child = fork.Process(target=work)
    child.start()
    return child

def join(child):
    child.join(LIMIT_S)
    if child.exitcode is None:
        child.kill()
        raise AssertionError("the child hangs")
    assert child.exitcode == 0, child.exitcode

def check_parent():
    assert np.array_equal(view, x), "the parent's tensor changed"
    target.numpy()[:] = np.nan
    session.run_with_iobinding(binding)
    assert np.array_equal(target.numpy(), wanted)
    assert np.array_equal(sessions.run(session, x)[0], wanted)
"""


@pytest.fixture(params=["sim", "vfio-user"])
def device(request, library):
    if request.param == "sim":
        yield "sim"
    else:
        with processes.Simulator(library) as server:
            yield server.device


def forked(code: str, library: str, device: str) -> None:
    said, _ = processes.run_registered(FORKED + code + "\nprint('done')", library, device, 240)
    assert "done" in said, said


def test_a_child_writes_its_own_copy_of_a_tensor(library, device):
    code = """
def child():
    global source, view
    assert np.array_equal(view, x), "the child finds its parent's tensor"
    view[:] = np.nan
    target.numpy()[:] = 1
    is_told(lambda: session.run_with_iobinding(binding))
    is_told(lambda: sessions.run(session, x))
    assert np.isnan(view).all()
    # A view outlives its tensor in the parent; here it is only a copy, of memory that stays.
    del source
    binding.clear_binding_inputs()
    view[:] = 2

target.numpy()[:] = 3
join(child_of(child))
assert (target.numpy() == 3).all()
check_parent()
# The parent's later tensors are no business of a child that still lives.
go = fork.Event()
def late():
    assert go.wait(LIMIT_S)
    view[:] = np.nan
living = child_of(late)
check_parent()
go.set()
join(living)
check_parent()
"""
    forked(code, library, device)


def test_a_child_gets_a_device_and_tensors_of_its_own(library, device):
    code = """
def child():
    fresh = sessions.by_name(model)
    assert np.array_equal(sessions.run(fresh, x)[0], wanted)
    own, out = tensor(x), tensor(np.zeros((2, 10), np.float32))
    binding = fresh.io_binding()
    binding.bind_ortvalue_input("input", own)
    binding.bind_ortvalue_output("output", out)
    fresh.run_with_iobinding(binding)
    assert np.array_equal(out.numpy(), wanted)
    is_told(lambda: sessions.run(session, x))
    # And so does its own child.
    def grandchild():
        own.numpy()[:] = np.nan
        is_told(lambda: sessions.run(fresh, x))
        assert np.array_equal(sessions.run(sessions.by_name(model), x)[0], wanted)
    join(child_of(grandchild))
    assert np.array_equal(own.numpy(), x)
    fresh.run_with_iobinding(binding)

join(child_of(child))
check_parent()
"""
    forked(code, library, device)


def test_children_of_a_process_whose_threads_run_sessions(library, device):
    code = """
over, wrong = threading.Event(), []
def busy(session):
    while not over.is_set():
        if not np.array_equal(sessions.run(session, x)[0], wanted):
            wrong.append("a result")
runners = [threading.Thread(target=busy, args=(s,), daemon=True) for s in (session, sessions.by_name(model))]
for thread in runners:
    thread.start()

def child():
    view[:] = np.nan
    # Only what this library does: ONNX Runtime's own locks may be held by a thread that is not here.
    fresh = tensor(x)
    assert np.array_equal(fresh.numpy(), x)

for _ in range(40):
    join(child_of(child))
over.set()
for thread in runners:
    thread.join(LIMIT_S)
    assert not thread.is_alive(), "a thread hangs"
assert not wrong, wrong
check_parent()
"""
    forked(code, library, device)
