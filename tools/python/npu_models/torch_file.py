"""Weights out of a legacy (pre-zip) torch file, with numpy alone.

The file is five pickles and then the raw storages: magic, protocol, machine, the state dictionary whose tensors
name their storage, and the list of storages in file order. The unpickler refuses every class but the three that
such a file needs, so a hostile file cannot run code.
"""

import collections
import io
import pickle
import struct

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_TYPES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class _Storage:
    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self.data = None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: (storage, offset, size, stride)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _TYPES:
            return name
        raise pickle.UnpicklingError(f"a weight file has no use for {module}.{name}")

    def persistent_load(self, pid):
        return self.storages.setdefault(pid[2], _Storage(_TYPES[pid[1]]))


def load(data: bytes) -> dict[str, np.ndarray]:
    """The state dictionary of a legacy torch file."""
    file = io.BytesIO(data)
    if pickle.load(file) != _MAGIC or pickle.load(file) != _PROTOCOL:
        raise ValueError("not a legacy torch file")
    pickle.load(file)
    reader = _Unpickler(file)
    tensors = reader.load()
    for key in pickle.load(file):
        storage = reader.storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        storage.data = np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype)
    return {name: _tensor(*parts) for name, parts in tensors.items()}


def _tensor(storage: _Storage, offset: int, size, stride) -> np.ndarray:
    bytes_apart = [step * storage.dtype.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage.data[offset:], size, bytes_apart).copy()
