"""A device that is not the CPU, made of CPU tensors: what mixes tensors of both, or takes one for the other, fails here
as on a GPU. Results are those of the CPU."""

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "other"
COPIES = ("aten::copy_", "aten::_to_copy")
INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")   # of a tensor there; indices may be here


class Backend:
    """What torch asks of the module of a device."""

    def is_initialized(self):
        return True

    def is_available(self):
        return True

    def current_device(self):
        return 0

    def device_count(self):
        return 1

    def _is_in_bad_fork(self):
        return False

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def manual_seed_all(self, seed):
        """Random numbers are the CPU's."""

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        torch.set_rng_state(state)


class Other(torch.Tensor):
    """A tensor there; `numbers` holds it."""

    @staticmethod
    def __new__(cls, numbers):
        made = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype,
                                                   storage_offset=numbers.storage_offset(), device=DEVICE)
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})

    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), Other(self.numbers.clone()).requires_grad_(self.requires_grad))

    def tolist(self):
        return self.numbers.tolist()

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.numbers = value.numbers


def refuse_mixed(function, args, kwargs):
    """RuntimeError where an operation is given tensors of both devices and a GPU's would be, too."""
    name, leaves = function._schema.name, tree_leaves((args, kwargs))
    there = [x for x in leaves if isinstance(x, Other)]
    here = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, Other) and x.ndim]
    if there and here and name not in COPIES and not (name in INDEXING and isinstance(args[0], Other)):
        shapes = ", ".join(f"{x.device.type} {tuple(x.shape)}" for x in there + here)
        raise RuntimeError(f"{name} is given tensors of different devices: {shapes}")


def lstm_cell(gates, more, cell, *biases):
    """Of a GPU's LSTM: (new hidden state, new cell, gates for the backward pass)."""
    i, f, c, o = (sum((b for b in biases if b is not None), gates + more)).chunk(4, 1)
    i, f, c, o = i.sigmoid(), f.sigmoid(), c.tanh(), o.sigmoid()
    new = f * cell + i * c
    return o * new.tanh(), new, torch.cat([i, f, c, o], 1)


def lstm_cell_backward(of_hidden, of_cell, cell, new, gates, has_bias):
    """Gradients of the gates before their functions, of the cell and of the bias."""
    i, f, c, o = gates.chunk(4, 1)
    of_hidden, of_cell = (torch.zeros_like(new) if x is None else x for x in (of_hidden, of_cell))
    t = new.tanh()
    of_cell = of_cell + of_hidden * o * (1 - t * t)
    of_gates = torch.cat([of_cell * c * i * (1 - i), of_cell * cell * f * (1 - f), of_cell * i * (1 - c * c),
                          of_hidden * t * o * (1 - o)], 1)
    return of_gates, of_cell * f, of_gates.sum(0) if has_bias else None


OWN = {"aten::_thnn_fused_lstm_cell": lstm_cell, "aten::_thnn_fused_lstm_cell_backward_impl": lstm_cell_backward,
       "aten::_fused_sdp_choice": lambda *args, **kwargs: 0}         # of attention's forms the plain one


def compute(function, args, kwargs):
    """An operation on the tensors' numbers; what it makes is where its arguments are, or where it is told."""
    refuse_mixed(function, args, kwargs)
    name, owner, asked = function._schema.name, {}, kwargs.get("device")
    is_there = any(isinstance(x, Other) for x in tree_leaves((args, kwargs)))
    if asked is not None:
        is_there = torch.device(asked).type == NAME
    if name in ("aten::copy_", "aten::index"):
        is_there = isinstance(args[0], Other)

    def numbers(x):
        if isinstance(x, Other):
            owner[id(x.numbers)] = x
            return x.numbers
        return torch.device("cpu") if isinstance(x, torch.device) else x

    def wrapped(x):
        if not isinstance(x, torch.Tensor):
            return x
        return owner.get(id(x)) if id(x) in owner else Other(x)
    args, kwargs = tree_map(numbers, (args, kwargs))
    found = OWN.get(name, function)(*args, **kwargs)
    if is_there:
        return tree_map(wrapped, found)
    return tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) and id(x) in owner else x, found)


def register():
    """Make the device known; everything that is kept alive for it."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    others, ranges = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    others.fallback(lambda function, *args, **kwargs: compute(function, args, kwargs), "PrivateUse1")
    for name in ("arange", "arange.start", "arange.start_step"):        # torch's own would resize a tensor
        ranges.impl(name, lambda *args, dtype=None, **kwargs: Other(torch.arange(*args, dtype=dtype)), "PrivateUse1")
    return others, ranges


REGISTERED = register()
DEVICE, GPU = torch.device(NAME, 0), torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = [DEVICE, pytest.param(GPU, marks=needs_gpu)]          # of tests on another device than the CPU
