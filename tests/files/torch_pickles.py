"""Writes files of PyTorch without PyTorch, those of attackers included."""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np


class Name:
    """Pickles as a reference to a name of a package that is not here."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return self.name

    def __call__(self):
        raise AssertionError("only there because pickle asks for it")


class Call:
    """Pickles as a call of such a name."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = Name(name), arguments

    def __reduce__(self):
        return self.name, self.arguments


class Writer(pickle._Pickler):
    """Writes names without importing them, and storages by their persistent ids."""

    def save_global(self, obj, name=None):
        if not isinstance(obj, Name):
            return super().save_global(obj, name)
        module, _, attribute = obj.name.rpartition(".")
        self.write(f"c{module}\n{attribute}\n".encode())
        self.memoize(obj)

    def persistent_id(self, obj):
        return obj[1] if isinstance(obj, tuple) and obj and obj[0] == "storage of" else None


def tensor(key, shape, strides, size, kind="torch.FloatStorage", offset=0):
    storage = ("storage of", ("storage", Name(kind), key, "cuda:0", size, None))
    return Call(
        "torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, collections.OrderedDict()
    )


def legacy(path, content, storages, magic=0x1950A86A20F9469CFC6C):
    """A file as torch.save wrote it before version 1.6."""
    with open(path, "wb") as file:
        for part in (magic, 1001, {"little_endian": True}):
            pickle.dump(part, file, 2)
        Writer(file, 2).dump(content)
        pickle.dump(list(storages), file, 2)
        for array in storages.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())


def typed(key, shape, strides, size, kind):
    """A tensor of a type that has no storage of its own, such as torch.float8_e5m2; of `size` bytes."""
    storage = ("storage of", ("storage", Name("torch.storage.UntypedStorage"), key, "cpu", size, None))
    hooks = collections.OrderedDict()
    return Call("torch._utils._rebuild_tensor_v3", storage, 0, shape, strides, False, hooks, Name(kind))


def zipped(path, content, storages, root="net", protocol=2):
    """A file as torch.save has written it since version 1.6."""
    pickled = io.BytesIO()
    Writer(pickled, protocol).dump(content)
    return zipped_bytes(path, pickled.getvalue(), storages, root)


def zipped_bytes(path, pickled, storages, root="net"):
    """The same from the bytes of a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        archive.writestr(f"{root}/byteorder", b"little")
        for key, array in storages.items():
            archive.writestr(f"{root}/data/{key}", np.ascontiguousarray(array).tobytes())
    return path


def of_torch(path, arrays, kind="torch.FloatStorage"):
    tensors, storages = {}, {}
    for number, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in np.ascontiguousarray(array).strides)
        tensors[name] = tensor(str(number), array.shape, strides, array.size, kind)
        storages[str(number)] = array
    return zipped(path, tensors, storages)
