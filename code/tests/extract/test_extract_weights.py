"""Files of weights: every published form, recognised by hash or layout; the reading code runs on small files.

`golden/vggish_tiny.ckpt` was written by TensorFlow 2.21 (Saver, version V1): VGGish of a 64th of its widths, filled by
the golden rule under the section `vggish64`.
"""

import hashlib

import h5py
import numpy as np
import pytest
import torch

from cmg.extract import audio, encoders, networks, tf_checkpoint, weights
from cmg.utils.errors import InputError
from conftest import ROOT, refused
from parity_features import filled

TINY = ROOT / "code" / "tests" / "golden" / "vggish_tiny.ckpt"
VGGISH_WIDTHS, VGG19_WIDTHS = (1, 2, 4, 4, 8, 8, 64, 64, 2), (1, 1, 2, 2, *(4,) * 4, *(8,) * 8)
CPU = torch.device("cpu")


def small(network):
    """A narrow network filled by the golden rule."""
    return filled(networks.VGGish(VGGISH_WIDTHS) if network == "vggish" else networks.VGG19(VGG19_WIDTHS),
                  f"{network}{'64' if network == 'vggish' else '_64'}")


def keras_file(path, state, suffix="_W_1:0", top=True):
    """Weights as Keras stores them; `top`: with the classifier and empty layers, `suffix`: naming of its version."""
    with h5py.File(path, "w") as file:
        for key, layer in weights.VGG19_KERAS.items():
            group = file.create_group(layer)
            group[f"{layer}{suffix}"] = state[f"{key}.weight"].permute(2, 3, 1, 0).numpy()
            group[f"{layer}{suffix.replace('_W', '_b')}" if "_W" in suffix else f"{layer}/bias:0"] = (
                state[f"{key}.bias"].numpy())
        if top:
            file.create_group("block1_pool")
            file["fc1/fc1_W_1:0"], file["fc1/fc1_b_1:0"] = np.zeros((7, 5), np.float32), np.zeros(5, np.float32)
    return path


def torch_file(path, state, legacy=False):
    torch.save(dict(state), path, _use_new_zipfile_serialization=not legacy)
    return path


def same(weights_read, network):
    state = network.state_dict()
    return weights_read.state.keys() == state.keys() and all(
        torch.equal(weights_read.state[key], state[key]) for key in state)


def test_tensorflows_own_file():
    read = weights.read(TINY, "vggish", "audioset")
    assert same(read, small("vggish")) and read.recognised_by == "name given"
    assert read.sha256 == hashlib.sha256(TINY.read_bytes()).hexdigest()
    assert "global_step" not in tf_checkpoint.read(TINY)            # int64, a counter


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("network", ["vggish", "vgg19"])
def test_pytorch_files_of_both_ages(tmp_path, network, legacy):
    state = dict(small(network).state_dict()) | {"classifier.0.weight": torch.zeros(3, 3)}
    path = torch_file(tmp_path / "x.pth", state, legacy)
    assert same(weights.read(path, network, weights.KINDS[network][0]), small(network))


@pytest.mark.parametrize("suffix", ["_W_1:0", "/kernel:0"])
@pytest.mark.parametrize("top", [False, True])
def test_keras_files_of_any_naming(tmp_path, suffix, top):
    path = keras_file(tmp_path / "x.h5", small("vgg19").state_dict(), suffix, top)
    assert same(weights.read(path, "vgg19", "caffe"), small("vgg19"))


def test_unknown_file_is_refused_unless_its_kind_is_named(tmp_path):
    path = torch_file(tmp_path / "x.pth", small("vgg19").state_dict())
    refused("unknown vgg19 weights.*--vgg19-kind caffe or torchvision", weights.read, path, "vgg19")
    assert weights.read(path, "vgg19", "torchvision").record()["kind"] == "torchvision"


@pytest.mark.parametrize("name, kind", [("md5", "caffe"), ("sha256", "torchvision")])
def test_known_hash_needs_no_name_and_bears_no_other(tmp_path, monkeypatch, name, kind):
    path = torch_file(tmp_path / "x.pth", small("vgg19").state_dict())
    digest = getattr(hashlib, name)(path.read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "HASHES", {digest if name == "md5" else digest[:8]: kind})
    read = weights.read(path, "vgg19")
    assert (read.kind, read.recognised_by, read.published) == (kind, "hash", kind == "caffe")
    refused("known to be", weights.read, path, "vgg19", "caffe" if kind == "torchvision" else "torchvision")


def test_vggish_is_recognised_by_its_published_answer_to_silence(tmp_path, golden):
    answer = np.load(golden / "features_nets.npz")["published_silence_embedding"]
    network = networks.VGGish((1, 1, 1, 1, 1, 1, 4, 4, 128))
    with torch.no_grad():
        network.embeddings[4].weight.zero_()
        network.embeddings[4].bias.copy_(torch.from_numpy(answer) - (torch.from_numpy(answer) == 0).float())
    read = weights.read(torch_file(tmp_path / "x.pth", network.state_dict()), "vggish")
    assert (read.kind, read.recognised_by) == ("audioset", "answer to silence")


@pytest.mark.parametrize("network, write, found", [
    ("vgg19", lambda path: torch_file(path, small("vggish").state_dict()), "layer features.0 of vgg19 has the shape"),
    ("vggish", lambda path: keras_file(path, small("vgg19").state_dict()), "HDF5 file"),
    ("vgg19", lambda path: path.write_bytes(TINY.read_bytes()), "TensorFlow checkpoint in which"),
    ("vggish", lambda path: path.write_bytes(TINY.read_bytes()[30000:]), "not an intact one-file TensorFlow"),
    ("vggish", lambda path: path.write_bytes(TINY.read_bytes()[:30000]), "not a PyTorch file"),
    ("vggish", lambda path: path.write_bytes(b""), "not a PyTorch file"),
    ("vgg19", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "not a valid HDF5"),
    ("vgg19", lambda path: torch.save([eval], path), "not a PyTorch file with only tensors"),
    ("vgg19", lambda path: torch_file(path, {**small("vgg19").state_dict(), "features.5.weight": torch.zeros(2, 9, 3, 3)
                                             }), "features.5 .*shape"),
    ("vgg19", lambda path: torch_file(path, {**small("vgg19").state_dict(), "features.0.bias": torch.tensor([np.nan])}),
     "NaN"),
    ("vgg19", lambda path: None, "no such file"),
])
def test_bad_files_end_in_one_line(tmp_path, network, write, found):
    write(tmp_path / "x.bin")
    refused(f"x.bin.*{found}", weights.read, tmp_path / "x.bin", network, weights.KINDS[network][0])


def test_any_byte_of_a_checkpoint_may_be_wrong(tmp_path):
    data, rng = TINY.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data)
        place = int(rng.integers(len(data) - 1500, len(data) - 8))          # index and footer
        broken[place] ^= 1 << rng.integers(8)
        (tmp_path / "x.ckpt").write_bytes(broken)
        try:
            tf_checkpoint.read(tmp_path / "x.ckpt")
        except InputError:
            pass


@pytest.mark.parametrize("column", [False, True])
def test_pca_files(tmp_path, column):
    vectors, means = np.eye(4, dtype=np.float32), np.arange(4, dtype=np.float32)
    np.savez(tmp_path / "x.npz", pca_eigen_vectors=vectors, pca_means=means)
    torch.save({"pca_eigen_vectors": torch.from_numpy(vectors), "pca_means": torch.from_numpy(means[:, None])},
               tmp_path / "x.pth")
    read = weights.read_pca(tmp_path / ("x.pth" if column else "x.npz"))
    assert networks.pca(np.full((2, 4), 5.0), *read).tolist() == [[5, 4, 3, 2]] * 2
    refused("PCA", weights.read_pca, TINY)


def test_the_kinds_preprocess_differently():
    grey = np.full((224, 224, 3), 128, np.uint8)
    state = small("vgg19").state_dict()
    maps = {kind: encoders.VGG19Pictures(weights.Weights("vgg19", kind, "", "", state), CPU).encode([grey])
            for kind in weights.KINDS["vgg19"]}
    assert maps["caffe"].shape == (1, 7, 7, 8) and not np.allclose(maps["caffe"], maps["torchvision"])


def test_vggish_encoder_gives_bytes_and_values_before_the_relu():
    read = weights.read(TINY, "vggish", "audioset")
    seconds = [np.random.default_rng(k).integers(-9000, 9000, (16000, 1)).astype(np.int16) for k in range(3)]
    pca = np.eye(2), np.zeros(2)
    plain, before, small_bytes = (
        encoders.VGGishSound(read, audio.FrontEnd(), CPU, **more).encode(seconds, 16000)
        for more in ({}, {"pre_relu": True}, {"pca": pca, "as_bytes": True}))
    assert plain.shape == (3, 2) and (plain == np.maximum(before, 0)).all() and (before < 0).any()
    assert small_bytes.dtype == np.uint8 and (small_bytes == networks.quantize(plain.astype(np.float64))).all()
