"""Encoders of transformers: tiny models with random weights, saved and loaded as any model of the hub is;
data sets of `datasets`, saved in a folder, as the input of an extraction (skipped without the package)."""

import json
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import prepare
from cmg.data.archive import read_zip
from cmg.data.text import TextFeatures
from cmg.extract import hub
from cmg.extract.video import patches
from cmg.utils.errors import InputError
from conftest import message, refused
from made_videos import make_video, picture

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "bark", "##ing", "##s", "is", "the", "sea"]


def tokenizer(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


def make(name, folder):
    """Save a tiny model and its processor."""
    t = transformers
    torch.manual_seed(0)
    if name == "clip":
        text = {**SMALL, "vocab_size": 20, "max_position_embeddings": 20, "bos_token_id": 2, "eos_token_id": 3}
        vision = {**SMALL, "image_size": 32, "patch_size": 8}
        model = t.CLIPModel(t.CLIPConfig(vision_config=vision, text_config=text, projection_dim=12))
        processor = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
        tokenizer(folder)
    elif name == "siglip":
        model = t.SiglipModel(t.SiglipConfig(vision_config={**SMALL, "image_size": 32, "patch_size": 4},
                                             text_config={**SMALL, "vocab_size": 20}))
        processor = t.SiglipImageProcessor(size={"height": 32, "width": 32})
    elif name == "dinov2":
        model = t.Dinov2Model(t.Dinov2Config(**{**SMALL, "image_size": 56, "patch_size": 14}))
        processor = t.BitImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    elif name == "resnet":
        model = t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1]))
        processor = t.ConvNextImageProcessor(size={"shortest_edge": 64})
    elif name == "ast":
        model = t.ASTModel(t.ASTConfig(**SMALL, max_length=100, num_mel_bins=32))
        processor = t.ASTFeatureExtractor(max_length=100, num_mel_bins=32)
    elif name == "wav2vec2":
        model = t.Wav2Vec2Model(t.Wav2Vec2Config(
            **SMALL, conv_dim=(16, 16), conv_stride=(20, 16), conv_kernel=(40, 16), num_feat_extract_layers=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, vocab_size=20))
        processor = t.Wav2Vec2FeatureExtractor()
    elif name == "whisper":
        model = t.WhisperModel(t.WhisperConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=20, pad_token_id=1, bos_token_id=2, eos_token_id=3,
            decoder_start_token_id=2, max_source_positions=150, num_mel_bins=16))
        processor = t.WhisperFeatureExtractor(feature_size=16, chunk_length=3)
    else:
        width = {"bert": 16, "bert768": 768}[name]
        config = {**SMALL, "hidden_size": width, "num_attention_heads": 2}
        model, processor = t.BertModel(t.BertConfig(**config, vocab_size=len(WORDS))), None
        tokenizer(folder)
    model.save_pretrained(folder)
    if processor:
        processor.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder of tiny models by name, made when asked for: name -> (folder, model)."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def get(name):
        if name not in made:
            made[name] = root / name, make(name, root / name)
        return made[name]
    return get


@pytest.mark.parametrize("name, width", [("clip", 12), ("siglip", 16), ("dinov2", 16), ("resnet", 16)])
def test_pictures(models, name, width):
    folder, model = models(name)
    frames = [picture(k) for k in range(3)]
    encoder = hub.HubPictures(folder, CPU, "vector")
    vectors = encoder.encode([encoder.prepare(frame) for frame in frames])
    pixels = torch.from_numpy(np.stack([encoder.prepare(frame) for frame in frames]))
    with torch.no_grad():
        if name in ("clip", "siglip"):
            theirs = model.get_image_features(pixel_values=pixels)
            theirs = getattr(theirs, "pooler_output", theirs)
        else:
            theirs = model(pixel_values=pixels).pooler_output.flatten(1)
    assert vectors.shape == (3, width) and encoder.record()["width"] == width
    np.testing.assert_allclose(vectors, theirs, rtol=1e-5, atol=1e-6)
    encoder = hub.HubPictures(folder, CPU, "map")
    maps = encoder.encode([encoder.prepare(frame) for frame in frames])
    assert maps.shape == (3, 7, 7, 16) and np.isfinite(maps).all() and not np.allclose(maps[0], maps[1])


def test_map_follows_the_picture(models):
    """A map's rows are the picture's: brighten one corner's patch and that corner of the first layer's input moves."""
    folder, model = models("siglip")
    encoder = hub.HubPictures(folder, CPU, "map")
    grid = torch.arange(64.0).view(1, 64, 1).expand(1, 64, 16)           # tokens of an 8 x 8 grid, by number

    class Tower(torch.nn.Module):
        config = model.vision_model.config

        def forward(self, pixel_values):
            return type("Output", (), {"last_hidden_state": grid})()

    encoder.tower = Tower()
    result = encoder.encode([np.zeros((3, 32, 32), np.float32)])[0, ..., 0]
    assert (np.diff(result, axis=1) > 0).all() and (np.diff(result, axis=0) > 7).all()


@pytest.mark.parametrize("name", ["ast", "wav2vec2", "whisper"])
def test_sound(models, name):
    folder, model = models(name)
    encoder = hub.HubSound(folder, CPU)
    seconds = [(3000 * np.random.default_rng(k).standard_normal((16000, 2))).astype(np.int16) for k in range(4)]
    rows = encoder.encode(seconds + [seconds[0][:9000]], 16000)
    assert rows.shape == (4, 16) and np.isfinite(rows).all() and encoder.record()["type"] in (
        "audio-spectrogram-transformer", "wav2vec2", "whisper")
    alone = np.concatenate([encoder.encode([second], 16000) for second in seconds])     # each second is heard alone
    np.testing.assert_allclose(rows, alone, rtol=1e-4, atol=1e-5)
    heard, plain, held = [], encoder.pooled, []
    encoder.pooled = lambda inputs: held.append(len(heard)) or plain(inputs)
    encoder.encode((heard.append(k) or seconds[0] for k in range(18)), 16000)           # not all at once
    assert held == [16, 18]


def test_padding_of_a_model_takes_no_part_in_the_mean(models):
    folder, _ = models("whisper")                           # hears 3 s, of which one is there
    encoder = hub.HubSound(folder, CPU)

    class Output:
        last_hidden_state = torch.cat([torch.ones(1, 50, 4), torch.full((1, 100, 4), 9.0)], 1)

    mask = torch.cat([torch.ones(1, 100), torch.zeros(1, 200)], 1)
    encoder.tower = lambda **inputs: Output()
    assert encoder.pooled({"attention_mask": mask}).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_words(models, name):
    folder, model = models(name)
    (words, vectors), (more, _) = hub.HubText(folder, CPU).encode(["A dog is barking", "the sea"])
    assert words == ["a", "dog", "is", "barking"] and more == ["the", "sea"] and vectors.shape == (4, 16)
    if name == "bert":
        ids = torch.tensor([[2, 5, 6, 10, 7, 8, 3]])
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0]
        np.testing.assert_allclose(vectors[3], states[4:6].mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(vectors[0], states[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind, name", [(hub.HubPictures, "bert"), (hub.HubSound, "clip"), (hub.HubText, "ast"),
                                        (hub.HubPictures, "absent")])
def test_no_such_model_is_one_line(models, tmp_path, kind, name):
    folder = tmp_path / "absent" if name == "absent" else models(name)[0]
    refused("model", kind, folder, CPU)


def test_command_with_models_of_a_folder(models, tmp_path):
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "a.mp4", seconds=2)
    (tmp_path / "labels.csv").write_text("file,label\na,the dog\n")
    command = ["features", str(tmp_path / "videos"), "--seconds", "2", "--labels", str(tmp_path / "labels.csv")]
    for text, out in (("bert", "small"), ("bert768", "published")):
        assert prepare.main([*command, "--out", str(tmp_path / out), "--audio-encoder", str(models("wav2vec2")[0]),
                             "--video-encoder", str(models("clip")[0]), "--video-form", "vector",
                             "--text-encoder", str(models(text)[0])]) == 0
        folder = tmp_path / out
        assert read_zip(folder / "audio" / "zip" / "a.zip").shape == (2, 16)
        assert read_zip(folder / "video" / "zip" / "a.zip").shape == (2, 12)
        record = json.loads((folder / "features.json").read_text())["settings"]
        assert record["audio"]["type"] == "wav2vec2" and record["video"]["form"] == "vector"
        assert len(record["text"]["revision"]) == 64 and record["video"]["width"] == 12
    assert read_zip(tmp_path / "small" / "text" / "zip" / "a.zip").shape == (2, 16)
    for out, width in (("small", 16), ("published", 768)):
        words = TextFeatures(tmp_path / out / "text" / "prompts.h5")["the dog"]
        assert words.shape == (10, width)
        np.testing.assert_allclose(words[:2], read_zip(tmp_path / out / "text" / "zip" / "a.zip"), atol=1e-5)


def wav_bytes(path, seconds=2.0, rate=16000):
    make_video(path, seconds=seconds, video=False, audio_rate=rate, layout="mono", audio_codec="pcm_s16le")
    return path.read_bytes()


def png_bytes(path, k):
    Image.fromarray(picture(k)).save(path)
    return path.read_bytes()


@pytest.fixture
def data_set(tmp_path):
    """A function that saves a data set as `datasets` does: columns and their features -> folder."""
    datasets = pytest.importorskip("datasets")

    def save_splits(**splits):
        kinds = {name: getattr(datasets, kind)() if isinstance(kind, str) else datasets.ClassLabel(names=kind)
                 for name, kind in splits.pop("features").items()}
        text = datasets.Value("string")
        stored = {"bytes": datasets.Value("binary"), "path": text}         # cast afterwards: encoding needs torchcodec
        made = {}
        for split, rows in splits.items():
            features = {name: kinds.get(name, text) if not isinstance(value, dict) else stored
                        for name, value in rows[0].items()}
            made[split] = datasets.Dataset.from_list(rows, features=datasets.Features(features)).cast(
                datasets.Features({name: kinds.get(name, text) for name in features}))
        folder = tmp_path / "saved"
        (datasets.DatasetDict(made) if list(made) != ["all"] else made["all"]).save_to_disk(folder)
        return folder
    return save_splits


def sounds(tmp_path, names, **more):
    data = wav_bytes(tmp_path / "sound.wav")
    return [{"clip": name, "sound": {"bytes": data, "path": f"{name}.wav"}, **{
        key: values[k % len(values)] for key, values in more.items()}} for k, name in enumerate(names)]


def test_a_data_set_of_sounds(data_set, tmp_path, capsys):
    """Two splits, numbered classes, one row without a sound: the same features, lists and report as those of files."""
    rows = sounds(tmp_path, "abcd", kind=[0, 1])
    rows[3]["sound"] = None
    folder = data_set(features={"sound": "Audio", "kind": ["dog", "sea"]}, train=rows,
                      validation=sounds(tmp_path, "xy", kind=[1]))
    command = ["features", f"hf:{folder}", "--seconds", "2", "--modality", "audio", "--audio-encoder", "logmel",
               "--hf-columns", "id=clip,label=kind", "--device", "cpu", "--out"]
    assert prepare.main([*command, str(tmp_path / "out")]) == 0
    assert "skipped 1 rows without audio, video or image" in capsys.readouterr().out
    assert (tmp_path / "out" / "clips.csv").read_text().splitlines() == [
        "id,split,label,prompt", "a,train,dog,dog", "b,train,sea,sea", "c,train,dog,dog", "x,val,sea,sea",
        "y,val,sea,sea"]
    report = (tmp_path / "out" / "report.csv").read_text()
    assert [line.split(",")[:2] for line in report.splitlines()[1:]] == [[name, "ok"] for name in "abcxy"]
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.wav").write_bytes(rows[0]["sound"]["bytes"])
    assert prepare.main(["features", str(files), *command[2:-5], "--out", str(tmp_path / "own")]) == 0
    of_files, of_rows = (read_zip(tmp_path / name / "audio" / "zip" / "a.zip") for name in ("own", "out"))
    np.testing.assert_array_equal(of_files, of_rows)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "hub").glob("*.wav")}
    assert prepare.main([*command, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.csv").read_text() == report
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 5
    assert prepare.main([command[0], f"hf:{folder}/validation", *command[2:], str(tmp_path / "part")]) == 0
    assert len((tmp_path / "part" / "report.csv").read_text().splitlines()) == 3


def test_a_photograph_is_a_still_video_with_the_sound_of_its_row(data_set, tmp_path):
    rows = [{**row, "photo": {"bytes": png_bytes(tmp_path / "p.png", k), "path": None}}
            for k, row in enumerate(sounds(tmp_path, "ab"))]
    rows.append({"clip": "c", "sound": None, "photo": {"bytes": b"no image", "path": "c.png"}})
    folder = data_set(features={"sound": "Audio", "photo": "Image"}, all=rows)
    code = prepare.main(["features", f"hf:{folder}", "--seconds", "2", "--audio-encoder", "logmel", "--video-encoder",
                         "patches", "--hf-columns", "id=clip", "--device", "cpu", "--out", str(tmp_path / "out")])
    lines = [line.split(",") for line in (tmp_path / "out" / "report.csv").read_text().splitlines()[1:]]
    assert code == 1 and [line[:2] for line in lines] == [["a", "ok"], ["b", "ok"], ["c", "unreadable"]]
    assert lines[0][7] == "2"                                               # rows
    made = read_zip(tmp_path / "out" / "video" / "zip" / "b.zip")
    np.testing.assert_allclose(made, np.repeat(patches(picture(1)[None]), 2, 0), atol=1e-6)
    assert (read_zip(tmp_path / "out" / "audio" / "zip" / "a.zip")[:, 64:] > 1).any()


@pytest.mark.parametrize("columns, name, finding", [
    ("id=clips", "", "no column 'clips'"), ("audio=clip", "", "expected Audio"), ("ids=clip", "", "'ids'"),
    ("id", "", "id=clip,label=class"), ("id=same", "", "duplicate id 's'"),
    ("id=clip", "/test", "no split 'test'"), ("id=clip", "_not_there", "cannot be loaded"),
    ("id=clip,label=same,split=clip", "", "split 'a'; expected train")])
def test_a_data_set_that_cannot_serve_is_one_line(data_set, tmp_path, columns, name, finding):
    folder = data_set(features={"sound": "Audio"}, train=sounds(tmp_path, "ab", same=["s"]))
    assert finding in message(prepare.main, ["features", f"hf:{folder}{name}", "--modality", "audio", "--audio-encoder",
                                             "logmel", "--hf-columns", columns, "--out", str(tmp_path / "out")])


def test_columns_of_a_data_set_need_one(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="the package datasets is required"):
        prepare.main(["features", "hf:somebody/sounds", "--audio-encoder", "logmel", "--out", str(tmp_path / "out")])
    make_video(tmp_path / "a.mp4", seconds=1)
    with pytest.raises(InputError, match="--hf-columns: only for a dataset"):
        prepare.main(["features", str(tmp_path), "--audio-encoder", "logmel", "--hf-columns", "id=clip", "--out",
                      str(tmp_path / "out")])
