"""Encoders that users bring: ONNX files with their front ends, functions, and models of transformers of every type."""

import hashlib
import json
import sys
from dataclasses import replace

import hub_types
import numpy as np
import pytest
import torch

import prepare
from cmg.api import Encoder
from cmg.data.archive import read_zip
from cmg.data.text import TextFeatures
from cmg.extract import audio, custom, front_ends
from cmg.extract import onnx as onnx_files
from cmg.systems.base import FrozenEncoder
from cmg.systems.dcid import DCID
from cmg.utils.errors import InputError
from cmg.utils.limits import LIMITS
from conftest import message, refused
from made_videos import make_video, picture
from test_extract_hub import WORDS, tokenizer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CPU = torch.device("cpu")
FLOAT, UINT8, INT64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64
OPSET = [helper.make_opsetid("", 17)]


def save(path, nodes, inputs, outputs, weights=(), front_end=None, **options):
    """Write an ONNX file and the JSON beside it.

    Args:
        inputs, outputs: name -> (type, shape).
        weights: name -> array.
    """
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info(n, *of) for n, of in inputs.items()],
                              [helper.make_tensor_value_info(n, *of) for n, of in outputs.items()],
                              [numpy_helper.from_array(x, n) for n, x in dict(weights).items()])
    onnx.save(helper.make_model(graph, opset_imports=OPSET, ir_version=9), path, **options)
    if front_end is not None:
        path.with_suffix(".json").write_text(json.dumps(front_end))
    return path


def matrix(rows, columns, seed=0):
    return np.random.RandomState(seed).standard_normal((rows, columns)).astype(np.float32)


def waveform_net(path, batch="N", samples=16000, front_end=None, rank=2):
    """x (N, samples) times a fixed matrix: 6 numbers."""
    shape = [batch, samples] if rank == 2 else [batch, 1, samples]
    return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, shape)},
                {"y": (FLOAT, [*shape[:-1], 6])}, {"w": matrix(samples, 6)},
                {"input": "waveform", "rate": 16000} if front_end is None else front_end)


def picture_net(path, front_end=None, side=32):
    """A map: mean pixels of cells of 4 x 4 pixels, three channels."""
    nodes = [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[4, 4], strides=[4, 4]),
             helper.make_node("ReduceMean", ["y"], ["mean"], axes=[2, 3], keepdims=0)]
    given = {"mean": [0.5, 0.4, 0.3], "std": 0.25, "output": "y", "output_layout": "NCHW"}
    return save(path, nodes, {"x": (FLOAT, ["N", 3, side, side])}, {"mean": (FLOAT, ["N", 3])}, (),
                given if front_end is None else front_end)


def seconds_of(count, rate=16000, channels=2):
    return [(3000 * np.random.RandomState(k).standard_normal((rate, channels))).astype(np.int16) for k in range(count)]


# ----------------------------------------------------------------------------------------------------------- front ends
def test_log_mel_without_further_words_is_vggish_s():
    wave = audio.mono(seconds_of(1)[0])
    front = front_ends.described({"input": "log-mel"}, "audio", "test")
    np.testing.assert_allclose(front(wave), audio.log_mel(wave)[:audio.PATCH], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values, shape", [
    ({"input": "log-mel", "frames": 120}, (120, 64)),                       # more than a second has
    ({"input": "log-mel", "center": True, "frames": 101}, (101, 64)),
    ({"input": "log-mel", "center": True, "frames": 101, "window": 401}, (101, 64)),
    ({"input": "log-mel", "rate": 32000, "window": 1024, "fft": 1024, "hop": 320, "bands": 40, "lowest_hz": 50,
      "highest_hz": 14000, "mel_scale": "slaney", "norm": "slaney", "power": 2, "log": "db", "offset": 1e-10},
     (96, 40)),
    ({"input": "waveform", "samples": 15600}, (15600,)),
    ({"input": "waveform", "rate": 48000}, (48000,)), ({"input": "waveform", "rate": 8000}, (8000,))])
def test_front_ends_of_sound(values, shape):
    front = front_ends.described(values, "audio", "test")
    wave = np.random.RandomState(0).standard_normal(front.rate)
    result = front(wave)
    assert result.shape == shape and np.isfinite(result).all()
    if front.input == "waveform":
        np.testing.assert_array_equal(result, wave[:shape[0]])
    elif front.log == "db":                                                  # louder by 20 dB
        np.testing.assert_allclose(front(10 * wave), result + 20, atol=1e-3)


@pytest.mark.parametrize("resize, expected", [("stretch", (0, 255)), ("crop", (127, 128))])
def test_frames_are_stretched_or_cropped(resize, expected):
    """A frame of 40 x 80 whose left half is black: a crop of its middle has the border in the middle too."""
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:, 40:] = 255
    front = front_ends.described({"size": [20, 10], "resize": resize}, "video", "test")
    small = front.resized(frame)
    assert small.shape == (20, 10, 3) and small[0, 0, 0] == 0 and small[0, -1, 0] == 255
    assert abs(int(small[..., 0].mean()) - 127) <= 1
    frame[:, 40:60] = 60                # the middle: all of a crop's right half, half of the other's
    assert front.resized(frame)[0, -1, 0] == (60 if resize == "crop" else 255)


@pytest.mark.parametrize("modality, values, finding", [
    ("audio", {"rates": 3}, "unknown key 'rates'"), ("audio", {"input": "mel"}, "waveform or log-mel"),
    ("audio", {"rate": "x"}, 'rate is "x"; expected int'), ("audio", {"rate": 0}, "rate is 0"),
    ("audio", {"rate": 10 ** 9}, "rate is 1000000000"),
    ("audio", {"input": "log-mel", "fft": 256}, "window up to fft"),
    ("audio", {"input": "log-mel", "rate": 8000}, "half the rate"), ("audio", {"std": 0}, "std is 0"),
    ("audio", {"input": "log-mel", "frames": 10000, "hop": 10000}, "99,990,400 samples"),
    ("audio", {"center": 1}, "center is 1; expected bool"),
    ("video", {"mean": 0.5}, "mean and std"), ("video", {"size": [1, 2, 3]}, "[height, width]"),
    ("video", {"size": 10 ** 6}, "size is 1000000"), ("video", {"mean": [0.5, 0.5, None], "std": 1}, "mean is"),
    ("video", [1], "not a JSON object"), ("text", {"rate": 3}, "unknown key 'rate'")])
def test_a_wrong_front_end_is_one_line(modality, values, finding):
    assert finding in message(front_ends.described, values, modality, "net.json")


# ----------------------------------------------------------------------------------------------------------- ONNX files
@pytest.mark.parametrize("batch, rank", [("N", 2), (1, 2), (3, 2), ("N", 3)])
def test_waveforms(tmp_path, batch, rank):
    path = waveform_net(tmp_path / "net.onnx", batch, rank=rank,
                        front_end=None if rank == 2 else {"input": "waveform", "rate": 16000, "output_layout": "NTC"})
    encoder = custom.CustomSound(path, CPU)
    seconds = seconds_of(5)
    rows = encoder.encode(iter(seconds + [seconds[0][:9000]]), 16000)        # the last is too short for a row
    expected = np.stack([audio.mono(second) for second in seconds]) @ matrix(16000, 6)
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-3)
    record = encoder.record()
    assert record["width"] == 6 and record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["front_end"]["rate"] == 16000 and record["network"] == "onnx" and record["model"] == "net.onnx"
    assert encoder.encode([], 16000).shape == (0, 6)


def test_the_number_of_samples_is_the_network_s(tmp_path):
    path = waveform_net(tmp_path / "net.onnx", 1, 15600)
    encoder, second = custom.CustomSound(path, CPU), seconds_of(1)[0]
    np.testing.assert_allclose(encoder.encode([second], 16000)[0], audio.mono(second)[:15600] @ matrix(15600, 6),
                               rtol=1e-3, atol=1e-3)


def test_quantized_patches_and_an_inner_tensor(tmp_path):
    """As YAMNet of some packages is stored: 8-bit patches one at a time, the vector before the classes."""
    nodes = [helper.make_node("Cast", ["x"], ["float"], to=FLOAT),
             helper.make_node("ReduceMean", ["float"], ["vector"], axes=[1, 2], keepdims=0),
             helper.make_node("MatMul", ["vector", "w"], ["classes"])]
    path = save(tmp_path / "net.onnx", nodes, {"x": (UINT8, [1, 1, 96, 64])}, {"classes": (FLOAT, [1, 5])},
                {"w": matrix(64, 5)}, {"input": "log-mel", "scale": 0.05, "zero_point": 200, "output": "vector"})
    encoder, second = custom.CustomSound(path, CPU), seconds_of(3)
    patches = np.stack([audio.log_mel(audio.mono(one))[:96] for one in second])
    expected = np.clip(np.round(patches / 0.05 + 200), 0, 255).mean(1)
    np.testing.assert_allclose(encoder.encode(second, 16000), expected, atol=0.05)


@pytest.mark.parametrize("form", ["map", "vector"])
def test_pictures(tmp_path, form):
    encoder = custom.CustomPictures(picture_net(tmp_path / "net.onnx"), CPU, form=form)
    frames = [picture(k, 32, 32) for k in range(3)]
    result = encoder.encode([encoder.prepare(frame) for frame in frames])
    pixels = (np.stack(frames) / 255 - [0.5, 0.4, 0.3]) / 0.25
    cells = pixels.reshape(3, 8, 4, 8, 4, 3).mean((2, 4))
    if form == "vector":
        np.testing.assert_allclose(result, cells.mean((1, 2)), atol=1e-4)
    else:
        assert result.shape == (3, 7, 7, 3)
        np.testing.assert_allclose(result[:, 0, 0], cells[:, :2, :2].mean((1, 2)), atol=1e-4)   # pooled, 8 to 7
    assert encoder.record()["front_end"]["size"] == [32, 32] and encoder.record()["form"] == form


def test_raw_pixels_last_channels_and_bgr(tmp_path):
    nodes = [helper.make_node("Cast", ["x"], ["float"], to=FLOAT),
             helper.make_node("ReduceMean", ["float"], ["y"], axes=[1, 2], keepdims=0)]
    path = save(tmp_path / "net.onnx", nodes, {"x": (UINT8, ["N", 32, 32, 3])}, {"y": (FLOAT, ["N", 3])}, (),
                {"layout": "NHWC", "colors": "BGR"})
    encoder, frame = custom.CustomPictures(path, CPU, form="vector"), picture(1, 32, 32)
    np.testing.assert_allclose(encoder.encode([frame])[0], frame.mean((0, 1))[::-1], rtol=1e-4)


def text_net(path, inputs=("input_ids", "attention_mask")):
    """Embeddings of word pieces; the mask is multiplied in."""
    nodes = [helper.make_node("Gather", ["w", "input_ids"], ["e"]),
             helper.make_node("Cast", [inputs[1]], ["m"], to=FLOAT),
             helper.make_node("Unsqueeze", ["m", "last"], ["mask"]), helper.make_node("Mul", ["e", "mask"], ["y"])]
    return save(path, nodes, {name: (INT64, ["N", "L"]) for name in inputs}, {"y": (FLOAT, ["N", "L", 6])},
                {"w": matrix(len(WORDS), 6), "last": np.array([2])})


def test_words_are_the_means_of_their_pieces(tmp_path):
    tokenizer(tmp_path)
    encoder = custom.CustomWords(text_net(tmp_path / "net.onnx"), CPU)
    (words, vectors), (more, _) = encoder.encode(["the dog barking", "sea"])
    assert words == ["the", "dog", "barking"] and more == ["sea"]
    table = matrix(len(WORDS), 6)
    expected = [table[WORDS.index("the")], table[WORDS.index("dog")],
                (table[WORDS.index("bark")] + table[WORDS.index("##ing")]) / 2]
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)


def random_net(path):
    """Its answer has random numbers in it."""
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["noise"]), helper.make_node("Add", ["x", "noise"], ["y"])]
    return save(path, nodes, {"x": (FLOAT, ["N", 16000])}, {"y": (FLOAT, ["N", 16000])}, (),
                {"input": "waveform", "rate": 16000})


def mixing_net(path):
    """Its answer to an item depends on the others of the batch."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
             helper.make_node("Sub", ["x", "mean"], ["y"])]
    return save(path, nodes, {"x": (FLOAT, ["N", 16000])}, {"y": (FLOAT, ["N", 16000])}, (),
                {"input": "waveform", "rate": 16000})


def two_outputs(path):
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["z"])]
    return save(path, nodes, {"x": (FLOAT, ["N", 16000])}, {n: (FLOAT, ["N", 16000]) for n in "yz"}, (),
                {"input": "waveform", "rate": 16000})


def outside(path, location):
    """A file that keeps its numbers elsewhere."""
    waveform_net(path.parent / "inside.onnx")
    save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, ["N", 16000])}, {"y": (FLOAT, ["N", 6])},
         {"w": matrix(16000, 6)}, {"input": "waveform", "rate": 16000}, save_as_external_data=True, location="w.bin",
         size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    (path.parent / "w.bin").replace(path.parent.parent / "w.bin")
    for entry in model.graph.initializer[0].external_data:
        entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    if location == "link.bin":
        (path.parent / "link.bin").symlink_to(path.parent.parent / "w.bin")
    return path


def nested(path):
    """Numbers kept elsewhere by a tensor of a branch."""
    outside(path, "../w.bin")
    weights = onnx.load(path, load_external_data=False).graph.initializer[0]
    branch = [helper.make_graph([helper.make_node("MatMul", ["x", "w"], [out])], out, [],
                                [helper.make_tensor_value_info(out, FLOAT, ["N", 6])], [weights]) for out in "ab"]
    return save(path, [helper.make_node("If", ["always"], ["y"], then_branch=branch[0], else_branch=branch[1])],
                {"x": (FLOAT, ["N", 16000])}, {"y": (FLOAT, ["N", 6])}, {"always": np.array(True)})


@pytest.mark.parametrize("make, finding", [
    (random_net, "when it is encoded again"), (mixing_net, "in another batch"), (two_outputs, "its outputs are y, z"),
    (lambda path: waveform_net(path, front_end={}), "lacks input, rate"),
    (lambda path: waveform_net(path, front_end={"input": "log-mel"}), "net.onnx"),
    (lambda path: waveform_net(path, front_end={"input": "waveform", "rate": 16000, "output": "w2"}), "no tensor 'w2'"),
    (lambda path: waveform_net(path, front_end={"input": "waveform", "rate": 16000, "layout": "NFT"}), "layout 'NFT'"),
    (lambda path: waveform_net(path, front_end=[1]), "not a JSON object"),
    (lambda path: waveform_net(path, rank=3), "output_layout"),
    (lambda path: picture_net(path), "mean is [0.5"), (text_net, "lacks input"),
    (lambda path: outside(path, "../w.bin"), "in its own folder"),
    (lambda path: outside(path, "link.bin"), "in its own folder"), (nested, "in its own folder"),
    (lambda path: outside(path, "/dev/zero"), "in its own folder"), (lambda path: path.mkdir(), "cannot be read"),
    (lambda path: path.symlink_to("/dev/zero"), "cannot be read"),
    (lambda path: outside(path, "gone.bin"), "does not exist"), (lambda path: path, "cannot be read"),
    (lambda path: path.write_bytes(b"\x08\x09no ONNX file") and path, "not an ONNX file"),
    (lambda path: path.write_bytes(b"") and path, "net.onnx")])
def test_a_file_that_cannot_serve_is_one_line(tmp_path, make, finding):
    (tmp_path / "folder").mkdir()
    make(tmp_path / "folder" / "net.onnx")
    assert finding in message(custom.CustomSound, tmp_path / "folder" / "net.onnx", CPU)


@pytest.mark.parametrize("limit", ["onnx_bytes", "onnx_data_bytes"])
def test_too_large_a_file_is_one_line(tmp_path, monkeypatch, limit):
    (tmp_path / "folder").mkdir()
    path = outside(tmp_path / "folder" / "net.onnx", "w.bin")
    (tmp_path / "w.bin").replace(path.parent / "w.bin")
    monkeypatch.setattr(onnx_files, "LIMITS", replace(LIMITS, **{limit: 100}))
    refused(r"100 .*limits.py", custom.CustomSound, path, CPU)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_it_is_one_line(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    refused("install them", custom.CustomSound, waveform_net(tmp_path / "net.onnx"), CPU)


def test_a_gpu_needs_the_provider(tmp_path):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    refused("onnxruntime-gpu", custom.CustomSound, waveform_net(tmp_path / "net.onnx"), torch.device("cuda"))


def test_numbers_beside_the_file_are_read_and_hashed(tmp_path):
    path = save(tmp_path / "net.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, ["N", 16000])},
                {"y": (FLOAT, ["N", 6])}, {"w": matrix(16000, 6)}, {"input": "waveform", "rate": 16000},
                save_as_external_data=True, location="w.bin", size_threshold=0)
    encoder, second = custom.CustomSound(path, CPU), seconds_of(1)[0]
    np.testing.assert_allclose(encoder.encode([second], 16000)[0], audio.mono(second) @ matrix(16000, 6), rtol=1e-3,
                               atol=1e-3)
    both = path.read_bytes() + (tmp_path / "w.bin").read_bytes()
    assert encoder.record()["sha256"] == hashlib.sha256(both).hexdigest()


# ------------------------------------------------------------------------------------------------------------ functions
FUNCTIONS = '''
import numpy as np

def hear(waves):
    return np.stack([waves.mean(1), np.abs(waves).max(1)], 1)

def see(frames):
    return frames.mean((1, 2))

def see_map(frames):
    return frames[:, ::32, ::32].astype(float)

def read(sentences):
    return [np.array([[len(word), word.count("a")] for word in words], np.float32) for words in sentences]

calls = 0
def drifts(waves):
    global calls
    calls += 1
    return hear(waves) + (calls > 5)

def widens(frames):
    global calls
    calls += 1
    return frames.mean((1, 2)) if calls < 4 else frames.mean((1, 2))[:, :2]

def fails(waves):
    raise KeyError("no such layer")

def fails_on_loud(waves):
    if np.abs(waves).mean() > 0.15:
        raise ValueError("too loud")
    return hear(waves)

def flat(waves):
    return waves.mean()
'''


@pytest.fixture
def functions(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return tmp_path / "mine.py"


def test_functions(functions):
    second = seconds_of(2)
    sound = custom.CustomSound(f"{functions}:hear", CPU)
    waves = np.stack([audio.mono(one) for one in second])
    np.testing.assert_allclose(sound.encode(second, 16000), np.stack([waves.mean(1), abs(waves).max(1)], 1), atol=1e-6)
    assert sound.record()["sha256"] == hashlib.sha256(FUNCTIONS.encode()).hexdigest()
    assert sound.record()["model"] == "mine.py:hear" and sound.record()["width"] == 2
    frame = picture(3, 224, 224)
    pictures = custom.CustomPictures(f"{functions}:see", CPU, form="vector")
    np.testing.assert_allclose(pictures.encode([pictures.prepare(frame)])[0], frame.mean((0, 1)), rtol=1e-5)
    maps = custom.CustomPictures(f"{functions}:see_map", CPU, {"output_layout": "NHWC"})
    np.testing.assert_array_equal(maps.encode([maps.prepare(frame)])[0], frame[::32, ::32])
    words = custom.CustomWords(f"{functions}:read", CPU)
    assert words.encode(["A cat.", ""])[0][1].tolist() == [[1, 1], [3, 1], [1, 0]]


def test_a_module_s_function_and_a_callable():
    for name in ("numpy:mean", np.mean):            # of a second: one number, no batch
        refused("numpy:mean.*row per item", custom.CustomSound, name, CPU)
    assert custom.CustomSound(torch.nn.Identity(), CPU).record()["model"].endswith(":Identity")
    encoder = custom.CustomSound(lambda waves: torch.from_numpy(waves[:, :4]), CPU)
    second = seconds_of(1)[0]
    np.testing.assert_allclose(encoder.encode([second], 16000)[0], audio.mono(second)[:4], atol=1e-6)


@pytest.mark.parametrize("name, finding", [
    ("fails", "KeyError: 'no such layer'"), ("flat", "row per item"), ("absent", "no function absent"),
    ("FUNCTIONS", "no function FUNCTIONS")])
def test_a_function_that_cannot_serve_is_one_line(functions, name, finding):
    assert finding in message(custom.CustomSound, f"{functions}:{name}", CPU)


@pytest.mark.parametrize("name, finding", [("not_there.py:f", "no such file"),
                                           ("no_module_of_this_name:f", "imported")])
def test_no_such_function_is_one_line(name, finding):
    refused(finding, custom.CustomSound, name, CPU)


def test_an_encoder_that_changes_is_refused(functions):
    encoder = custom.CustomSound(f"{functions}:drifts", CPU)
    encoder.encode(seconds_of(1), 16000)
    refused("when it is encoded later; expected the same", encoder.encode, seconds_of(1), 16000)
    encoder = custom.CustomPictures(f"{functions}:widens", CPU, form="vector")
    refused("the same width", encoder.encode, [picture(0, 224, 224)])
    encoder = custom.CustomPictures(f"{functions}:widens", CPU, form="vector")
    encoder.network.function = lambda frames: frames.mean((1, 2)) + 1
    refused("when it is encoded later", encoder.encode, [picture(0, 224, 224)] * custom.PROBE_EVERY)


# ---------------------------------------------------------------------------------------------------------- the command
def test_command(functions, tmp_path, capsys):
    """All three modalities; the record; another front end is not mixed in; one clip that a function fails on."""
    videos, net = tmp_path / "videos", waveform_net(tmp_path / "sound.onnx")
    videos.mkdir()
    for name in ("a", "b"):
        make_video(videos / f"{name}.mp4", seconds=2)
    (tmp_path / "labels.csv").write_text("file,label\na,the dog\nb,the sea\n")
    command = ["features", str(videos), "--seconds", "2", "--labels", str(tmp_path / "labels.csv"), "--device", "cpu"]
    mine = ["--video-encoder", f"{picture_net(tmp_path / 'map.onnx')}", "--text-encoder", f"{functions}:read"]
    out = ["--out", str(tmp_path / "out"), "--audio-encoder", str(net)]
    assert prepare.main([*command, *out, *mine]) == 0
    assert read_zip(tmp_path / "out" / "audio" / "zip" / "a.zip").shape == (2, 6)
    assert read_zip(tmp_path / "out" / "video" / "zip" / "b.zip").shape == (2, 7, 7, 3)
    assert read_zip(tmp_path / "out" / "text" / "zip" / "b.zip").tolist() == [[3, 0], [3, 1]]
    assert TextFeatures(tmp_path / "out" / "text" / "prompts.h5")["the dog"][1].tolist() == [3, 0]
    record = json.loads((tmp_path / "out" / "features.json").read_text())["settings"]
    assert record["audio"]["network"] == "onnx" and record["text"]["network"] == "function"
    assert record["video"]["front_end"]["mean"] == [0.5, 0.4, 0.3] and len(record["video"]["sha256"]) == 64
    refused("front_end", prepare.main, [*command, *out, *mine, "--front-end", "audio.mean=0.5"])
    with pytest.raises(InputError, match="--audio-encoder logmel"):
        prepare.main([*command, "--out", str(tmp_path / "other"), "--audio-encoder", "logmel", *mine, "--front-end",
                      "audio.rate=16000"])
    for flag in ("audio.rate", "rate=3", "sound.rate=3"):
        refused("MODALITY.KEY=VALUE", prepare.main, [*command, *out, *mine, "--front-end", flag])
    capsys.readouterr()
    make_video(videos / "b.mp4", seconds=2, audio="silence")
    assert prepare.main([*command, "--out", str(tmp_path / "loud"), "--modality", "audio", "--audio-encoder",
                         f"{functions}:fails_on_loud"]) == 1
    loud, silent = (tmp_path / "loud" / "report.csv").read_text().splitlines()[1:]
    assert loud.startswith("a,error") and "too loud" in loud and silent.startswith("b,ok")


@pytest.mark.parametrize("form", ["map", "vector"])
def test_features_of_a_video_from_python(functions, tmp_path, form):
    """As `embed` takes them, a map or a vector as the encoder was pretrained on."""
    sizes = {"audio": [6], "video": [7, 7, 3] if form == "map" else [3]}
    config = DCID.Config.for_data(sizes, seconds=2, code_dim=16, num_codes=16)
    encoder = Encoder(FrozenEncoder(DCID(config).encoder, DCID))
    make_video(tmp_path / "clip.mp4", seconds=2)
    found = encoder.features_of(tmp_path / "clip.mp4", audio=waveform_net(tmp_path / "net.onnx"),
                                video=f"{functions}:see_map", front_end={"video": {"output_layout": "NHWC"}})
    assert {name: x.shape for name, x in found.items()} == {name: (1, 2, *size) for name, size in sizes.items()}
    assert encoder.embed("video", found["video"]).indices.shape[:2] == (1, 2)
    with pytest.raises(InputError, match="unknown key 'rates'"):
        encoder.features_of(tmp_path / "clip.mp4", audio=lambda waves: waves, front_end={"audio": {"rates": 8000}})


# ---------------------------------------------------------------------------------------------- types of transformers
@pytest.mark.parametrize("kind, model_type", [("audio", "pe_audio"), ("audio", "clap"), ("vision", "vit"),
                                              ("vision", "sam"), ("text", "t5"), ("text", "gpt2")])
def test_model_types(kind, model_type):
    """A sample; benchmarks/hub_types.py goes over every type of the installed transformers."""
    if model_type not in hub_types.types_of(kind):
        pytest.skip(f"this transformers has no {model_type}")
    width, reason = hub_types.attempt(model_type, kind)
    assert not reason and width > 1
