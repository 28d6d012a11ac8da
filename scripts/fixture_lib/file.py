"""One fixture file: what is drawn for it, and how it is written."""

import json
import math
import struct

import numpy as np

from fixture_lib.maths import layer_norm, rms_norm, silu

ROWS = [1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65]
WIDTHS = [1, 4, 7, 8, 12, 15, 16, 17, 20, 24, 28, 31, 32, 33, 36, 40, 48, 64, 65, 96]
HIDDEN = [1, 7, 8, 16, 20, 24, 31, 32, 33, 48, 64]
SCALES = [1.0, 1.0, 1.0, 1.0, 0.003, 0.1, 10.0, 30.0]
# The widest row of heads.
MOST_INNER = 160


class File:
    """One fixture while it is made: draws shapes and numbers, keeps what the file will hold."""

    def __init__(self, seed, number, name):
        self.rng = np.random.default_rng([seed, number, *name.encode()])
        self.tensors, self.config = {}, {}

    def pick(self, values):
        return values[self.rng.integers(len(values))]

    def chance(self, one_in=2):
        return self.rng.integers(one_in) == 0

    def heads(self, groups=False):
        """Heads, key heads and head width."""
        while True:
            kv_heads, group = self.pick([1, 2, 3, 5]), self.pick([1, 2, 3, 4] if groups else [1])
            heads, width = kv_heads * group, self.pick([1, 2, 3, 4, 8, 16, 17, 24, 32, 40, 64, 80, 96, 128])
            if heads * width <= MOST_INNER:
                return heads, kv_heads, width

    def keep(self, name, value):
        """Rounds to float32 and keeps; the rounded numbers go on in float64."""
        self.tensors[name] = np.ascontiguousarray(value, np.float32)
        return self.tensors[name].astype(np.float64)

    def matrix(self, name, rows, columns):
        return self.keep(f"weights.{name}", self.rng.normal(size=(rows, columns)) / math.sqrt(columns))

    def table(self, name, *shape):
        return self.keep(f"weights.{name}", self.rng.normal(size=shape))

    def scale(self, name, *shape):
        return self.keep(f"weights.{name}", 1.0 + 0.2 * self.rng.normal(size=shape))

    def bias(self, name, *shape):
        return self.keep(f"weights.{name}", 0.2 * self.rng.normal(size=shape))

    def ln(self, name, width, eps=1e-5):
        weight, bias = self.scale(f"{name}.weight", width), self.bias(f"{name}.bias", width)
        return lambda x: layer_norm(x, weight, bias, eps)

    def rms(self, name, width, eps):
        weight = self.scale(f"{name}.weight", width)
        return lambda x: rms_norm(x, weight, eps)

    def product(self, name, rows, columns):
        weight = self.matrix(f"{name}.weight", rows, columns)
        return lambda x: x @ weight.T

    def dense(self, name, rows, columns):
        weight, bias = self.matrix(f"{name}.weight", rows, columns), self.bias(f"{name}.bias", rows)
        return lambda x: x @ weight.T + bias

    def swiglu(self, name, width, hidden, out):
        gate, up = self.product(f"{name}.gate_proj", hidden, width), self.product(f"{name}.up_proj", hidden, width)
        down = self.product(f"{name}.down_proj", out, hidden)
        return lambda x: down(silu(gate(x)) * up(x))

    def reals(self, name, *shape):
        scale = self.pick(SCALES)
        self.config.setdefault("scales", {})[name] = scale
        return self.keep(f"inputs.{name}", scale * self.rng.normal(size=shape))

    def flags(self, name, value):
        self.tensors[f"inputs.{name}"] = np.ascontiguousarray(value, np.uint8)
        return np.asarray(value, bool)

    def ids(self, name, most, *shape):
        self.tensors[f"inputs.{name}"] = self.rng.integers(most, size=shape).astype(np.int32)
        return self.tensors[f"inputs.{name}"]

    def prefixes(self, name, batch, rows, least):
        """The first so many of each sample: [batch, rows]."""
        lengths = self.rng.integers(least, rows + 1, size=batch)
        return self.flags(name, np.arange(rows) < lengths[:, None])

    def scattered(self, name, *shape):
        """Flags of which all, some or none of a sample are set."""
        share = self.rng.choice([0.0, 0.3, 0.7, 1.0], size=shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        return self.flags(name, self.rng.random(shape) < share)

    def out(self, name, value):
        self.tensors[f"outputs.{name}"] = np.ascontiguousarray(value, np.float32)


def write(path, tensors, metadata):
    """A safetensors file: the header's length, the header, the tensors behind each other."""
    dtypes = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8", np.dtype(np.int32): "I32"}
    header, end, data = {"__metadata__": metadata}, 0, []
    # Elements of four bytes first: offsets stay multiples of their size.
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        tensor = tensors[name]
        header[name] = {"dtype": dtypes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
        data.append(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))
