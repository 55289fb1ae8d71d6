"""Networks in ONNX files, run by onnxruntime. Files are not trusted: their size is limited, and they must not refer to
files outside their folder."""

from pathlib import Path

import numpy as np

from cmg.extract.functions import Failed
from cmg.utils.errors import InputError, readable
from cmg.utils.files import open_input, sha256
from cmg.utils.limits import LIMITS

EXTRA = "onnx and onnxruntime are required; install them, or the extra 'onnx' of this package"


def _tensors(graph):
    """All stored tensors of a graph: initializers and node attributes, including nested graphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _tensors_of(node)


def _tensors_of(node):
    for value in node.attribute:
        yield from (value.t, *value.tensors)
        yield from (part for sparse in (value.sparse_tensor, *value.sparse_tensors)
                    for part in (sparse.values, sparse.indices))
        for graph in (value.g, *value.graphs):
            yield from _tensors(graph)


def _external_files(path, model):
    """Sorted external data files of an ONNX file.

    Raises:
        InputError: a file is outside the ONNX file's folder or does not exist.
    """
    from onnx import TensorProto
    folder, found = path.resolve().parent, set()
    tensors = [*_tensors(model.graph), *(tensor for function in model.functions for node in function.node
                                         for tensor in _tensors_of(node))]
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
            file = (folder / location).resolve()
            if not location or folder not in file.parents or (folder / location).is_symlink():
                raise InputError(f"{path}: refers to external data {location[:80]!r}; expected a file in its own "
                                 "folder; do not use it")
            if not file.is_file():
                raise InputError(f"{path}: its external data file {location[:80]} does not exist; expected both files; "
                                 "download the other one as well")
            found.add(file)
    return sorted(found)


class OnnxNetwork:
    """The network of an ONNX file.

    Args:
        path: file.
        device: torch device; "cuda" needs onnxruntime's CUDA provider.
        output: name of the tensor to use, which may be an inner one; None for the only output.
    Attributes:
        inputs: name -> (shape, dtype); None in a shape stands for any size.
        source: JSON values for the record of a run.
    Raises:
        InputError: onnxruntime is not installed; not an ONNX file, too large, or external data elsewhere.
    """

    def __init__(self, path, device, output=None):
        self.path = Path(path)
        try:
            import onnx
            import onnxruntime
        except ImportError:
            raise InputError(f"{path}: an ONNX file; {EXTRA}") from None
        try:
            with readable(self.path, "name another file"), open_input(self.path) as file:
                data = file.read(LIMITS.onnx_bytes + 1)
            if len(data) > LIMITS.onnx_bytes:
                raise ValueError(f"more than {LIMITS.onnx_bytes:,} bytes (cmg/utils/limits.py)")
            model = onnx.load_model_from_string(data)
        except InputError:
            raise
        except Exception as error:      # noqa: BLE001   protobuf has errors of its own
            raise InputError(f"{path}: not an ONNX file ({_line(error)}); expected a network in ONNX format; export it "
                             "again") from None
        files = _external_files(self.path, model)
        size = sum(file.stat().st_size for file in files)
        if size > LIMITS.onnx_data_bytes:
            raise InputError(f"{path}: {size:,} bytes of external data; expected at most {LIMITS.onnx_data_bytes:,} "
                             "(cmg/utils/limits.py); check where the file comes from")
        self.output = self._choose(model, output)
        if self.output not in [value.name for value in model.graph.output]:
            del model.graph.output[:]
            model.graph.output.append(onnx.ValueInfoProto(name=self.output))
            data = model.SerializeToString()
        self.session = self._open(onnxruntime, data, device)
        self.inputs = {value.name: ([n if isinstance(n, int) else None for n in value.shape], _dtype(value.type))
                       for value in self.session.get_inputs()}
        self.source = {"network": "onnx", "model": self.path.name, "sha256": sha256(self.path, *files)}

    def _choose(self, model, output):
        names = [value.name for value in model.graph.output]
        if output is None and len(names) == 1:
            return names[0]
        inner = [name for node in model.graph.node for name in node.output if name]
        if output not in names + inner:
            raise InputError(f"{self.path}: " + (f"no tensor {output[:60]!r}" if output else f"{len(names)} outputs")
                             + f"; its outputs are {', '.join(names)[:200]}; set 'output' in the front end to one of "
                             "them or to an inner tensor")
        return output

    def _open(self, onnxruntime, data, device):
        import torch
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3                                  # only errors
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path",
                                         str(self.path.resolve().parent))
        providers = ["CPUExecutionProvider"]
        if device.type == "cuda":
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise InputError(f"{self.path}: this onnxruntime only supports the CPU; install onnxruntime-gpu, or "
                                 "pass --device cpu")
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        try:
            return onnxruntime.InferenceSession(data, options, providers=providers)
        except Exception as error:      # noqa: BLE001   onnxruntime's errors have no common base
            raise InputError(f"{self.path}: onnxruntime cannot load this network ({_line(error)}); expected standard "
                             "ONNX operators; export it again") from None

    @property
    def main_input(self):
        """(shape, dtype) of the only input.

        Raises:
            InputError: there are several inputs.
        """
        if len(self.inputs) != 1:
            raise InputError(f"{self.path}: has inputs {', '.join(self.inputs)[:100]}; expected a single input; export "
                             "only the encoder")
        return next(iter(self.inputs.values()))

    def __call__(self, **inputs):
        """Run the network; if its batch size is fixed, the inputs are split and padded to it.

        Args:
            inputs: name -> (N, ...) arrays; a single input may have any name.
        """
        if len(inputs) == 1 == len(self.inputs):
            inputs = dict(zip(self.inputs, inputs.values()))
        shape, _ = next(iter(self.inputs.values()))
        count, fixed = len(next(iter(inputs.values()))), shape[0] if shape else None
        if not fixed:
            return self._run(inputs)
        parts = []
        for k in range(0, count, fixed):
            part = {name: value[k:k + fixed] for name, value in inputs.items()}
            missing = fixed - len(next(iter(part.values())))
            parts.append(self._run({name: np.concatenate([value, np.repeat(value[-1:], missing, 0)])
                                    for name, value in part.items()})[:fixed - missing])
        return np.concatenate(parts)

    def _run(self, inputs):
        try:
            result, = self.session.run([self.output], inputs)
        except Exception as error:      # noqa: BLE001   onnxruntime's errors have no common base
            shapes = ", ".join(f"{name} {value.shape} {value.dtype}" for name, value in inputs.items())
            raise Failed(f"{self.path}: fails on {shapes} ({_line(error)})") from None
        return np.asarray(result)


def _dtype(kind):
    """NumPy dtype for an onnxruntime type name such as tensor(float)."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64", "bool": "bool"}.get(name, name) if name in (
        "float", "double", "float16", "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64",
        "uint64") else "float32")


def _line(error):
    """First line of an exception's message, shortened."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
