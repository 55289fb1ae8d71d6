"""Weight files of VGGish and VGG-19: recognized by hash and layout, converted to PyTorch's layout, never executed.

| network | kind | files |
| --- | --- | --- |
| VGGish | `audioset` | `vggish_model.ckpt` (TensorFlow, one file), `vggish-10086976.pth` |
| VGG-19 | `caffe` | `vgg19_weights_tf_dim_ordering_tf_kernels[_notop].h5` (Keras), `vgg19-d01eb7cb.pth` (converted) |
| VGG-19 | `torchvision` | `vgg19-dcbb9e9d.pth` (torchvision's own training) |

The published features come from `audioset` and `caffe`; those of `torchvision` differ in values and scale.
"""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from cmg.data.archive import require_stored
from cmg.data.hdf5 import open_hdf5, reading, require_plain
from cmg.extract import audio, networks, tf_checkpoint
from cmg.systems.state_dicts import rules
from cmg.utils.errors import InputError, readable
from cmg.utils.files import open_input, require_regular
from cmg.utils.limits import LIMITS

KINDS = {"vggish": ("audioset",), "vgg19": ("caffe", "torchvision")}
HASHES = {                          # prefix of the hash -> kind; MD5 for Keras' files, else SHA-256, as published
    "10086976": "audioset", "d01eb7cb": "caffe", "dcbb9e9d": "torchvision",
    "cbe5617147190e668d6c5d5026f83318": "caffe", "253f8cb515780f3b799900260a226db6": "caffe",
}
FILES = {
    "vggish": "vggish_model.ckpt (storage.googleapis.com/audioset) or vggish-10086976.pth (github.com/harritaylor/"
              "torchvggish, release v0.1)",
    "vgg19": "vgg19_weights_tf_dim_ordering_tf_kernels[_notop].h5 (Keras) or vgg19-d01eb7cb.pth (github.com/jcjohnson/"
             "pytorch-vgg)",
}
# Output of AudioSet's VGGish for digital silence, first 24 of 128 values; it occurs three times in AVE's published
# features of noisy videos. It identifies the TensorFlow file, whose hash was never published.
SILENCE_ANSWER = np.zeros(24)
SILENCE_ANSWER[[3, 12, 13, 16, 17, 18]] = 0.2957465, 0.58667713, 0.15900975, 0.23309658, 0.3222829, 0.22957823
SAME_ANSWER = 1e-3

VGGISH_TF = dict(zip(networks.convolution_keys(networks.VGGISH_BLOCKS),
                     ("conv1", "conv2", "conv3/conv3_1", "conv3/conv3_2", "conv4/conv4_1", "conv4/conv4_2"))) | {
    "embeddings.0": "fc1/fc1_1", "embeddings.2": "fc1/fc1_2", "embeddings.4": "fc2"}
VGG19_KERAS = dict(zip(networks.convolution_keys(networks.VGG19_BLOCKS),
                       (f"block{b + 1}_conv{c + 1}" for b, n in enumerate(networks.VGG19_BLOCKS) for c in range(n))))
LAYERS = {"vggish": tuple(VGGISH_TF), "vgg19": tuple(VGG19_KERAS)}


@dataclass(frozen=True)
class Weights:
    """The network's state dict in PyTorch's layout, and its origin for the record of a run."""

    network: str
    kind: str
    recognised_by: str              # "hash", "answer to silence" or "name given"
    sha256: str
    state: dict

    @property
    def published(self):
        """Whether the published features were computed with weights of this kind."""
        return self.kind != "torchvision"

    def record(self):
        """JSON values for the record of a run."""
        return {"network": self.network, "kind": self.kind, "recognised_by": self.recognised_by, "sha256": self.sha256}

    def build(self):
        """The float32 network in evaluation mode; it shares the tensors of `state` (288 MB for VGGish)."""
        widths = [len(self.state[f"{layer}.bias"]) for layer in LAYERS[self.network]]
        with torch.device("meta"):
            network = (networks.VGGish if self.network == "vggish" else networks.VGG19)(widths)
        network.load_state_dict(self.state, assign=True)
        return network.eval().requires_grad_(False)


def _digests(path):
    """Hex SHA-256 and MD5 of a file, in one pass."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with readable(path), open_input(path) as file:
        while block := file.read(1 << 22):
            sha256.update(block)
            md5.update(block)
    return sha256.hexdigest(), md5.hexdigest()


def _from_tf(path):
    tensors = tf_checkpoint.read(path)
    for key, name in VGGISH_TF.items():
        for ours, theirs in ((f"{key}.weight", f"vggish/{name}/weights"), (f"{key}.bias", f"vggish/{name}/biases")):
            if theirs in tensors:
                yield ours, _permuted(tensors[theirs])


def _from_keras(path):
    """Find arrays by their layer's group and rank, because dataset names differ between versions of Keras."""
    with open_hdf5(path) as file, reading(path, "a file of Keras' weights of VGG-19", "download it again"):
        groups = _group(file, "model_weights") or file
        for key, layer in VGG19_KERAS.items():
            arrays, group = [], _group(groups, layer)
            if group is not None:
                group.visititems(lambda _, node, arrays=arrays: arrays.append(node)
                                 if isinstance(node, h5py.Dataset) else None)
            for array in arrays:
                require_plain(array, path)
                if array.ndim in (1, 4) and array.dtype.kind == "f":
                    yield f"{key}.{'weight' if array.ndim == 4 else 'bias'}", _permuted(array[:])


def _group(groups, name):
    """A group of this name stored in the file itself (not an external link); None if there is none."""
    is_own = name in groups and isinstance(groups.get(name, getlink=True), h5py.HardLink)
    return groups[name] if is_own and isinstance(groups[name], h5py.Group) else None


def _permuted(array):
    """Convert from TensorFlow's layout: kernels (3, 3, in, out), matrices (in, out)."""
    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}.get(array.ndim)
    return torch.tensor(np.ascontiguousarray(array.transpose(order), np.float32)) if order else None


def _from_torch(path, network):
    require_stored(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:      # noqa: BLE001   a broken or foreign file may fail anywhere in torch's reader
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a PyTorch file with only tensors ({reason[:100]}); expected {FILES[network]}; "
                         "download it again") from None
    for layer in LAYERS[network]:
        for key in (f"{layer}.weight", f"{layer}.bias"):
            if isinstance(state, dict) and isinstance(state.get(key), torch.Tensor):
                try:
                    rules.require_plain(key, state[key])
                    if state[key].dtype not in rules.FLOATS:
                        raise InputError(f"{key} has data type {state[key].dtype}")
                except InputError as error:
                    raise InputError(f"{path}: {error}; expected {FILES[network]}; download it again") from None
                yield key, state[key].float()


def _state(path, network):
    with readable(path), open_input(path) as file:
        head = file.read(8)
        file.seek(max(0, file.seek(0, 2) - 8))
        tail = file.read(8)
    if tf_checkpoint.is_checkpoint(tail):
        form, pairs = "a TensorFlow checkpoint", _from_tf(path) if network == "vggish" else ()
    elif head == b"\x89HDF\r\n\x1a\n":
        form, pairs = "an HDF5 file", _from_keras(path) if network == "vgg19" else ()
    else:
        form, pairs = "a PyTorch file", _from_torch(path, network)
    return form, dict(pairs)


def _check_layout(path, network, form, state):
    """Check that every layer exists and fits the previous one; InputError names the first that does not."""
    inputs = 1 if network == "vggish" else 3
    for layer in LAYERS[network]:
        weight, bias = state.get(f"{layer}.weight"), state.get(f"{layer}.bias")
        if layer == "embeddings.0":
            inputs *= 6 * 4
        form_wanted = (inputs,) if layer.startswith("embeddings") else (inputs, 3, 3)
        if weight is None or bias is None or weight.shape[1:] != form_wanted or weight.shape[:1] != bias.shape or (
                not len(weight)):
            found = "is missing" if weight is None or bias is None else f"has the shape {tuple(weight.shape)}"
            raise InputError(f"{path}: {form} in which layer {layer} of {network} {found}; expected {FILES[network]}; "
                             "check which file this is")
        inputs = len(weight)


def read(path, network, kind=None):
    """Read the weights in a file.

    Args:
        path: file in any of the formats in this module's table.
        network: "vggish" or "vgg19".
        kind: the kind of a file with an unknown hash, from `KINDS[network]`; None rejects such files.
    Returns:
        `Weights`.
    Raises:
        InputError: no such file, an unknown format, missing layers, an unknown file without `kind`, a kind that
            contradicts the hash, or values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the weights of {network}: {FILES[network]}")
    sha256, md5 = _digests(path)
    form, state = _state(path, network)
    _check_layout(path, network, form, state)
    if not all(bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()) for tensor in state.values()):
        raise InputError(f"{path}: some weights are NaN or infinite; expected finite values; download it again")
    known = next((name for start, name in HASHES.items() if sha256.startswith(start) or md5 == start), None)
    by = "hash"
    if known is None and network == "vggish" and _answers_as_published(Weights(network, "", "", sha256, state)):
        known, by = "audioset", "answer to silence"
    if known is None:
        if kind is None:
            raise InputError(f"{path}: unknown {network} weights (SHA-256 {sha256[:8]}...); expected "
                             f"{FILES[network]}; if you know their kind, pass --{network}-kind "
                             f"{' or '.join(KINDS[network])}")
        known, by = kind, "name given"
    if kind not in (None, known):
        raise InputError(f"{path}: the weights are known to be of kind {known}, not {kind}; omit --{network}-kind")
    return Weights(network, known, by, sha256, state)


def _answers_as_published(weights):
    network = weights.build()
    silence = torch.full((1, audio.PATCH, audio.BANDS), float(audio.SILENCE))
    with torch.inference_mode():
        answer = network(silence)[0, :len(SILENCE_ANSWER)].numpy()
    return len(answer) == len(SILENCE_ANSWER) and bool(np.abs(answer - SILENCE_ANSWER).max() < SAME_ANSWER)


def _require_small(path):
    """Raise ValueError if a file is larger, when unpacked, than the limit on an array."""
    size = Path(path).stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(member.file_size for member in archive.infolist()))
    if size > LIMITS.pickle_bytes:
        raise ValueError(f"{size:,} bytes; expected at most {LIMITS.pickle_bytes:,}")


def read_pca(path):
    """Read AudioSet's PCA parameters (`vggish_pca_params.npz` or `...-970ea276.pth`): vectors (D, D), means (D,)."""
    try:
        require_regular(path)
        _require_small(path)
        loaded = (np.load(path, allow_pickle=False) if str(path).endswith(".npz")
                  else torch.load(path, map_location="cpu", weights_only=True))
        vectors, means = loaded["pca_eigen_vectors"], loaded["pca_means"]
        for name, found in (("vectors", vectors), ("means", means)):
            if isinstance(found, torch.Tensor):
                rules.require_plain(name, found)
        vectors, means = np.asarray(vectors, np.float64), np.asarray(means, np.float64).reshape(-1)
        if vectors.ndim != 2 or vectors.shape != (len(means), len(means)):
            raise ValueError(f"vectors {vectors.shape}, means {means.shape}")
        if not (np.isfinite(vectors).all() and np.isfinite(means).all()):
            raise ValueError("some values are NaN or infinite")
        return vectors, means
    except Exception as error:      # noqa: BLE001   torch's and NumPy's readers fail in many ways
        raise InputError(f"{path}: not VGGish's PCA ({str(error)[:100]}); expected vggish_pca_params.npz with "
                         "pca_eigen_vectors and pca_means; download it again") from None
