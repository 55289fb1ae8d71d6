"""Videos, HDF5 files, weights of other programs, exported folders and pictures with any bytes wrong: read, or refused
in one line that names the file. They are read in a process of its own (foreign_reader.py), with one GiB of room: a
crash, a hang or a bomb is a failed example."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from foreign_files import (
    Files,
    damaged,
    ends,
    hdf5_files,
    header_of,
    images,
    not_zero,
    safetensors,
    saved,
    videos,
    weight_files,
    with_places,
    write_shared,
)
from foreign_reader import FAILED, READ
from test_extract_weights import small
from test_fuzz import FUZZ, ODD


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`Files`, and the folder "here" for damaged ones."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "videos").mkdir()
    return Files(here=folder, videos=with_places(videos(folder / "videos"), ends),
                 hdf5=with_places(hdf5_files(folder / "hdf5"), not_zero),
                 weights=with_places(weight_files(folder / "weights"), ends),
                 images=with_places(images(folder / "images"), ends))


def check(reader, what, path):
    outcome, text = reader.read(what, path)
    assert outcome != FAILED, f"{what}: {text}"
    return outcome


def test_good_files_are_read(files, reader):
    here = files["here"]
    for name in files["videos"]:
        assert check(reader, "video", here / "videos" / name) == READ
        assert check(reader, "video, all", here / "videos" / name) == READ
    for name in files["hdf5"]:
        assert check(reader, name, here / "hdf5" / name) == READ
    for name in files["weights"]:
        assert check(reader, name.partition(",")[0].partition(".")[0], here / "weights" / name) == READ
    for name in files["images"]:
        assert check(reader, "image", here / "images" / name) == READ


@settings(max_examples=60, **FUZZ)
@given(data=st.data(), what=st.sampled_from(["video", "video", "video, all", "video, silence"]))
def test_videos(files, reader, data, what):
    name, content = data.draw(damaged(files["videos"]))
    path = files["here"] / f"fuzzed-{name}"
    path.write_bytes(content)
    check(reader, what, path)


@settings(max_examples=40, **FUZZ)
@given(data=st.data())
def test_hdf5(files, reader, data):
    name, content = data.draw(damaged(files["hdf5"]))
    path = files["here"] / "fuzzed.h5"
    path.write_bytes(content)
    check(reader, name, path)


@settings(max_examples=100, **FUZZ)
@given(data=st.data())
def test_bytes_of_weights(files, reader, data):
    name, content = data.draw(damaged(files["weights"]))
    what, _, ending = name.partition(".")
    path = files["here"] / f"fuzzed.{ending or 'bin'}"
    path.write_bytes(content)
    check(reader, what.partition(",")[0], path)


@settings(max_examples=40, **FUZZ)
@given(data=st.data())
def test_pictures(files, reader, data):
    name, content = data.draw(damaged(files["images"]))
    path = files["here"] / f"fuzzed-{name}"
    path.write_bytes(content)
    check(reader, "image", path)


TENSORS = st.one_of(ODD, st.builds(
    lambda shape, kind: torch.ones(shape, dtype=kind),
    st.lists(st.sampled_from([0, 1, 2, 3, 8]), max_size=5),
    st.sampled_from([torch.float16, torch.float64, torch.int8, torch.complex64, torch.float8_e5m2, torch.bool])),
    st.builds(lambda n: torch.zeros(1, dtype=torch.float16).expand(n, n, 3, 3), st.sampled_from([1, 3, 1 << 20])))


@settings(max_examples=50, **FUZZ)
@given(data=st.data(), network=st.sampled_from(["vgg19", "vggish", "pca"]))
def test_tensors_of_weights(files, reader, data, network):
    state = ({"pca_eigen_vectors": torch.eye(4), "pca_means": torch.zeros(4)} if network == "pca" else
             dict(small(network).state_dict()))
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(state)))
        state[key] = data.draw(TENSORS)
    path = files["here"] / "fuzzed.pth"
    torch.save(state, path)
    check(reader, network, path)


HUGE = st.sampled_from([0, 1, 2, 7, 8, 1 << 20, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1, 1 << 64, -1])
KINDS = st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4", "X", ""])


@settings(max_examples=60, **FUZZ)
@given(data=st.data())
def test_headers_of_exported_weights(files, reader, exported, data):
    weights, about = exported["weights"], exported["about"]
    header, content = header_of(weights)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
        entry = header[name] = dict(header[name])
        change = data.draw(st.sampled_from(["shape", "size", "kind", "offset", "name", "copy", "odd"]))
        if change == "shape":
            entry["shape"] = data.draw(st.lists(HUGE, max_size=4))
        elif change == "size" and entry["shape"]:
            entry["shape"] = [data.draw(HUGE), *entry["shape"][1:]]
        elif change == "kind":
            entry["dtype"] = data.draw(KINDS)
        elif change == "offset":
            entry["data_offsets"] = [data.draw(HUGE), data.draw(HUGE)]
        elif change == "copy":
            entry["data_offsets"] = header[data.draw(st.sampled_from(sorted(header)))]["data_offsets"]
        elif change == "odd":
            odd = data.draw(st.sampled_from([None, "x", [], {}, -1, [[1]]]))
            entry[data.draw(st.sampled_from(sorted(entry)))] = odd
        else:
            header[data.draw(st.text(max_size=4))] = header.pop(name)
    length = data.draw(st.one_of(st.none(), st.none(), HUGE.filter(lambda n: 0 <= n < 1 << 64)))
    check(reader, "shared", write_shared(files["here"] / "folder", safetensors(header, content, length), about))


@settings(max_examples=40, **FUZZ)
@given(data=st.data())
def test_exported_tensors_and_configs(files, reader, exported, data):
    about = {**exported["about"], "config": dict(exported["about"]["config"])}
    state = load(exported["weights"])
    if data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(state)))
        state[key] = data.draw(TENSORS.filter(lambda x: isinstance(x, torch.Tensor) and x.numel() < 1 << 16
                                              and x.layout == torch.strided and not x.is_meta))
    else:
        place = about if data.draw(st.booleans()) else about["config"]
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(st.one_of(
            HUGE, st.none(), st.text(max_size=3), st.lists(HUGE, max_size=3), st.floats(allow_nan=False),
            st.dictionaries(st.text(max_size=2), HUGE, max_size=2)))
    check(reader, "shared", write_shared(files["here"] / "folder", saved(state), about))
