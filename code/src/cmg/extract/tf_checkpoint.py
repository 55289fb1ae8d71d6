"""Read TensorFlow's old one-file checkpoint format (`vggish_model.ckpt`) without TensorFlow.

The file is a sorted table in LevelDB's format: data blocks, an index block, a footer of 48 bytes. Every value is a
`SavedTensorSlices` message (tensorflow/core/util/saved_tensor_slice.proto): the empty key stores the names, shapes and
types of all tensors, every other key the values of one slice of a tensor. Only float32 tensors saved as a single slice
are read; no code in the file is executed.
"""

import numpy as np

from cmg.utils.errors import InputError
from cmg.utils.limits import LIMITS

FOOTER, MAGIC = 48, (0xDB4775248B80FB57).to_bytes(8, "little")
LONGEST_NAME = 4096                 # limit on a tensor's name, in bytes
FLOAT = 1                           # DT_FLOAT in tensorflow/core/framework/types.proto


def is_checkpoint(tail):
    """Whether a file that ends with these bytes has this format."""
    return tail.endswith(MAGIC)


def _varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def _block(data, handle):
    """Yield the (key, value) entries of the block at (offset, length); keys share prefixes, values are views."""
    offset, length = handle
    if offset + length + 5 > len(data):
        raise ValueError("a block past the end of the file")
    if data[offset + length] != 0:
        raise ValueError("a compressed block")
    block = data[offset:offset + length]
    end = length - 4 - 4 * int.from_bytes(block[length - 4:], "little")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        size, at = _varint(block, at)
        if shared + own > LONGEST_NAME:
            raise ValueError(f"a name of {shared + own} bytes")
        key = key[:shared] + bytes(block[at:at + own])
        yield key, block[at + own:at + own + size]
        at += own + size


def _handle(data, at):
    offset, at = _varint(data, at)
    length, at = _varint(data, at)
    return (offset, length), at


def _fields(message):
    """Yield (number, value) for each field of a protocol buffer; a value is an integer or a view of the bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        elif tag & 7 in (1, 5):
            size = 8 if tag & 7 == 1 else 4
            value, at = message[at:at + size], at + size
        elif tag & 7 == 2:
            size, at = _varint(message, at)
            value, at = message[at:at + size], at + size
            if len(value) != size:
                raise ValueError("a field past the end of its message")
        else:
            raise ValueError(f"a field of wire type {tag & 7}")
        yield tag >> 3, value


def _all(message, number):
    return [value for field, value in _fields(message) if field == number]


def _one(message, number, default=b""):
    return next(iter(_all(message, number)), default)


def _shapes(meta):
    """Name -> (shape, type, slices) of the tensors in a `SavedTensorSliceMeta`."""
    shapes = {}
    for tensor in _all(meta, 1):
        shape = tuple(_one(size, 1, 0) for size in _all(_one(tensor, 2), 2))
        shapes[bytes(_one(tensor, 1)).decode()] = shape, _one(tensor, 3, 0), len(_all(tensor, 4))
    return shapes


def _numbers(tensor):
    """The float32 values of a `TensorProto`: packed floats or raw content."""
    parts = _all(tensor, 5) or _all(tensor, 4)
    return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), "<f4")     # one part: no copy


def read(path):
    """Read the float32 tensors of a one-file checkpoint: name -> array.

    Raises:
        InputError: not such a file, truncated, compressed, or with a tensor in several slices.
    """
    try:
        return _tensors(memoryview(np.memmap(path, np.uint8, "r")))
    except (OSError, ValueError, IndexError, OverflowError) as error:       # UnicodeDecodeError is a ValueError
        raise InputError(f"{path}: not an intact one-file TensorFlow checkpoint ({error}); expected vggish_model.ckpt; "
                         "download it again") from None


def _tensors(data):
    if len(data) < FOOTER or not is_checkpoint(bytes(data[-8:])):
        raise ValueError("no table at the end")
    _, at = _handle(data, len(data) - FOOTER)
    index, _ = _handle(data, at)
    shapes, tensors, size = {}, {}, 0
    for _, value in _block(data, index):
        handle, _ = _handle(value, 0)
        size += handle[1]
        if size > len(data):
            raise ValueError("overlapping blocks")
        for key, value in _block(data, handle):
            if not key:
                shapes = _shapes(_one(value, 1))
                continue
            saved = _one(value, 2)
            name = bytes(_one(saved, 1)).decode()
            shape, kind, slices = shapes.get(name, ((), 0, 0))
            if kind != FLOAT:
                continue                            # counters of the optimizer
            if slices != 1:
                raise ValueError(f"tensor {name} in {slices} slices")
            numbers = _numbers(_one(saved, 3))
            if len(shape) > LIMITS.dimensions or numbers.size != np.prod(shape, dtype=object):
                raise ValueError(f"tensor {name} has {numbers.size} values; expected shape {shape}")
            tensors[name] = numbers.reshape(shape)
    return tensors
