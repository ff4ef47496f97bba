"""Copies between the process and the device: none where none is needed, each counted, and refused where they are denied."""

import pytest

import processes

# Before that there is no memory of a device to be had.
pytestmark = pytest.mark.since("1.28")

ROWS, DEPTH, COLUMNS = 65536, 4096, 16
MIB = 2**20
LARGE = ROWS * DEPTH
assert LARGE == 256 * MIB

# A session, an input of 256 MiB and an output in device memory, bound; and what must come out.
BOUND = f"""
ROWS, DEPTH, COLUMNS = {ROWS}, {DEPTH}, {COLUMNS}
BLOCK = 1024
model = graphs.product(ROWS, DEPTH, COLUMNS).SerializeToString()
session = sessions.by_name(model, {{"deny_copy": sys.argv[1]}})
sessions.assert_all_on_npu(session)
memory = sessions.devices()[0].memory_info(ort.OrtDeviceMemoryType.DEFAULT)
device = lambda shape: ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, memory_info=memory)
block = np.random.default_rng(1).integers(0, 256, (BLOCK, DEPTH), dtype=np.uint8)
expected = sessions.run(sessions.cpu(graphs.product(BLOCK, DEPTH, COLUMNS).SerializeToString()), block)[0]
assert len(np.unique(expected)) > 64
target = device([ROWS, COLUMNS])
target.numpy()[:] = 0

def fill(array):
    # Block by block, so that nothing of the tensor's size is made on the way.
    for at in range(0, ROWS, BLOCK):
        array[at : at + BLOCK] = block

def check():
    found = target.numpy()
    for at in range(0, ROWS, BLOCK):
        assert np.array_equal(found[at : at + BLOCK], expected)
    found[:] = 0

def bound(source):
    binding = session.io_binding()
    binding.bind_ortvalue_input("input", source)
    binding.bind_ortvalue_output("output", target)
    return binding
"""


@pytest.fixture(scope="module")
def server(library):
    with processes.Simulator(library) as running:
        yield running


def test_a_tensor_of_256_mib_in_device_memory_is_copied_by_neither_process(server, library):
    code = """
MIB = 2**20
SERVER = int(sys.argv[2])
source = device([ROWS, DEPTH])
fill(source.numpy())
binding = bound(source)
both = {"client": os.getpid(), "server": SERVER}
tensors = ROWS * (DEPTH + COLUMNS)

before = {name: processes.memory(pid) for name, pid in both.items()}
session.run_with_iobinding(binding)
after = {name: processes.memory(pid) for name, pid in both.items()}
check()
for name in both:
    private = after[name]["RssAnon"] - before[name]["RssAnon"]
    shared = after[name]["RssShmem"] - before[name]["RssShmem"]
    print(f"{name}, first run: private memory grew by {private / MIB:.2f} MiB, mapped tensors by {shared / MIB:.2f} MiB")
    assert private < 4 * MIB, name
    assert shared < tensors + 4 * MIB, name
    # The tensor has no second home: what a process has of it is the one file's pages.
    assert after[name]["RssShmem"] >= ROWS * DEPTH, name

for pid in both.values():
    processes.forget_peak(pid)
resident = {name: processes.memory(pid)["VmRSS"] for name, pid in both.items()}
session.run_with_iobinding(binding)
peak = {name: processes.memory(pid)["VmHWM"] for name, pid in both.items()}
check()
for name in both:
    grown = peak[name] - resident[name]
    print(f"{name}, second run: the peak is {grown / MIB:.2f} MiB above the {resident[name] / MIB:.0f} MiB resident before")
    assert grown < 4 * MIB, name
"""
    said, _ = processes.run_registered(BOUND + code, library, server.device, 600, ["1", str(server.child.pid)])
    print(said)
    assert said.count("first run") == said.count("second run") == 2


def test_an_unaligned_tensor_of_the_process_is_refused_where_copies_are_denied(server, library):
    code = """
room = np.zeros(ROWS * DEPTH + 1, np.uint8)
view = room[1:].reshape(ROWS, DEPTH)
assert view.ctypes.data % 2 == 1
source = ort.OrtValue.ortvalue_from_numpy(view)
assert source.data_ptr() == view.ctypes.data
try:
    session.run_with_iobinding(bound(source))
except Exception as error:
    print(error)
else:
    raise AssertionError("it ran")
fill(view)
# The session goes on with tensors that need no copy.
given = device([ROWS, DEPTH])
fill(given.numpy())
session.run_with_iobinding(bound(given))
check()
"""
    said, _ = processes.run_registered(BOUND + code, library, server.device, 600, ["1"])
    for part in ("`input`", f"({LARGE} bytes)", "`deny_copy`", "unaligned", "allocator"):
        assert part in said, said


def test_an_unaligned_tensor_is_copied_and_told_to_the_byte(server, library):
    code = """
room = np.zeros(ROWS * DEPTH + 1, np.uint8)
view = room[1:].reshape(ROWS, DEPTH)
fill(view)
told = ort.RunOptions()
told.log_severity_level = 1
session.run_with_iobinding(bound(ort.OrtValue.ortvalue_from_numpy(view)), told)
check()
given = device([ROWS, DEPTH])
fill(given.numpy())
session.run_with_iobinding(bound(given), told)
check()
"""
    _, log = processes.run_registered(BOUND + code, library, server.device, 600, ["0"])
    lines = [line for line in log.splitlines() if "bytes of tensors" in line]
    assert len(lines) == 2, log
    assert f"copied {LARGE} bytes" in lines[0] and "copied 0 bytes" in lines[1], lines


def test_in_process_nothing_is_copied_wherever_it_lies(library):
    code = """
model = graphs.quantised().SerializeToString()
session = sessions.by_name(model, {"deny_copy": "1"})
x = graphs.sample(2)
room = np.zeros(x.size * 4 + 1, np.uint8)
view = room[1:].view(np.float32).reshape(x.shape)
view[:] = x
sessions.assert_same(session, sessions.cpu(model), view, "an unaligned input")
"""
    processes.run_registered(code, library, "sim")
