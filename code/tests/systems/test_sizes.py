"""Features of any kind and size, and modalities besides the published three: training, files, resume, programs."""

import json
import re

import numpy as np
import other_features
import pandas as pd
import pytest
import torch

import custom
import prepare
from cmg.checkpoints import __main__ as checkpoints_program
from cmg.checkpoints import checkpoint, hub
from cmg.cli import parse_pretrain
from cmg.data.archive import read_zip
from cmg.data.clips import Clips
from cmg.data.features import open_features
from cmg.data.layout import DATA_PATHS
from cmg.downstream import encode
from cmg.models.config import Config, MapWidths, check_name, in_order
from cmg.prepare.pack import pack
from cmg.programs import pretrain
from cmg.report import page
from cmg.report import pictures as figures
from cmg.report.export import export
from cmg.results import rows as results
from cmg.systems.base import FrozenEncoder
from cmg.systems.dcid import DCID
from cmg.systems.registry import SYSTEMS
from cmg.systems.state_dicts import rules
from cmg.utils.errors import InputError
from configs.opts import LOCAL
from conftest import message
from data_trees import write_zips
from kill_resume import compare
from tiny import assert_goes_on_bit_exactly, command, run_once, step_for

SHAPES = {"audio": (9,), "video": (6, 5, 4), "text": (10, 7), "depth": (5, 8, 3), "eeg": (11,), "caption": (10, 6)}
SETS = [("audio", "eeg"), ("video", "depth"), ("audio", "video", "depth"), ("audio", "video", "text", "eeg"),
        ("audio", "video", "text", "depth", "eeg"), ("audio", "video", "text", "caption", "eeg")]
TINY = {"num_codes": 24, "code_dim": 16, "feed_forward": 24, "text_hidden": 8}


def trainer_of(name, shapes, seconds=10, **settings):
    system = SYSTEMS[name]
    torch.manual_seed(0)
    return step_for(system(system.Config.for_data(shapes, seconds=seconds, **TINY)).train(), **settings)


def batch_of(shapes, clips, seconds=10):
    return {m: torch.randn(clips, *(shape if len(shape) == 2 else (seconds, *shape))) for m, shape in shapes.items()}


# ------------------------------------------------------------------------------------------- training of all systems
@pytest.mark.parametrize("modalities, seconds, bf16", [(SETS[1], 4, True), (SETS[5], 14, False)])
@pytest.mark.parametrize("name", SYSTEMS)
def test_two_to_five_modalities_train_and_resume(name, modalities, seconds, bf16, tmp_path):
    """Steps of six clips and of one, then through a file: it goes on bit-exactly, and its encoder gives codes."""
    shapes = {m: SHAPES[m] for m in modalities}
    trainer = trainer_of(name, shapes, seconds, bf16=bf16)
    before = {n: p.detach().clone() for n, p in trainer.system.named_parameters()}
    epoch = 3 if name == "h_dcid" else 0                # its second level trains from then on
    for clips in (6, 6, 1):
        report = trainer.step(batch_of(shapes, clips, seconds), epoch)
        assert all(torch.isfinite(value) for value in report.losses.values())
    unread = {f"{at}.{parameter}" for at, module in trainer.system.named_modules()
              for parameter in getattr(module, "unread", ())}
    still = [n for n, p in trainer.system.named_parameters() if torch.equal(p, before[n]) and n not in unread]
    assert name == "micu" or not still                  # of MICU, CPC and CLUB rest
    for suffix in trainer.system.codebooks:
        assert {f"{m}_perplexity{suffix}" for m in modalities} <= report.metrics.keys()

    checkpoint.save(tmp_path / "c.pt", checkpoint.pack(trainer.system, trainer.optimizers, {}, epoch, 3, {}))
    loaded = checkpoint.open_file(tmp_path / "c.pt")
    assert loaded.complete and loaded.system.config == trainer.system.config
    encoder = checkpoint.load_encoder(tmp_path / "c.pt")
    for m, x in batch_of(shapes, 1, seconds).items():
        codes = encoder.embed(m, x)
        assert codes.indices.shape[:2] == x.shape[:2] and torch.isfinite(codes.vectors).all()
    if not bf16:
        assert_goes_on_bit_exactly(trainer, loaded, batch_of(shapes, 5, seconds), epoch)


@pytest.mark.parametrize("modalities", SETS, ids=" ".join)
def test_every_pair_is_predicted_and_every_term_is_there(modalities):
    shapes = {m: SHAPES[m] for m in modalities}
    report = trainer_of("dcid", shapes).step(batch_of(shapes, 4), 0)
    assert sum(name.startswith("cpc_accuracy") for name in report.metrics) == len(modalities) ** 2
    assert {f"{m}_{kind}" for m in modalities for kind in ("recon", "commit", "club")} <= report.losses.keys()
    assert {f"{m}_club" for m in modalities} == report.likelihoods.keys()


def test_the_order_of_modalities_is_fixed():
    """Of a config, whatever order the data is in; published modalities draw as without the others."""
    mixed = Config.for_data({m: SHAPES[m] for m in ("eeg", "text", "depth", "audio")})
    assert mixed.modalities == ("audio", "text", "depth", "eeg") == in_order({"eeg", "depth", "text", "audio"})
    system = DCID(Config.for_data(SHAPES, **TINY))
    assert system.objectives[0].club_order == ("video", "text", "audio", "caption", "depth", "eeg")
    assert list(system.auxiliary.values())[:3] == [f"optimizer_{m}_mi_net" for m in ("video", "text", "audio")]
    assert SYSTEMS["codaar"].file(mixed.modalities, 5) == "CoDAAR-model-ATDepthEeg-5.pt"


def test_the_share_of_own_features_in_codaar_follows_the_published_ones():
    """0.75 and 0.25 of two modalities, 0.6 and 0.2 of three, and so on: the own counts as three others."""
    for modalities in (SETS[0], SETS[2], SETS[4]):
        trainer = trainer_of("codaar", {m: SHAPES[m] for m in modalities})
        table, number = trainer.system.encoder.table, len(modalities)
        z = {m: torch.full((1, 1, 16), float(m == modalities[0])) for m in modalities}
        table.ema_weight.zero_()
        table.update_ema(z, {m: torch.zeros(1, 1, dtype=torch.int64) for m in modalities}, modalities)
        moved = dict(zip(table.segments, table.split(table.ema_weight)))
        for m in modalities:
            share = (3 if m == modalities[0] else 1) / (number + 2)
            assert torch.allclose(moved[m][0] / 0.01, torch.full((16,), share))


# --------------------------------------------------------------------------------------------------- names and files
def sections_of(system, shapes):
    config = SYSTEMS[system].Config.for_data(shapes, **TINY)
    return {(t.section, t.key) for t in rules.layout(SYSTEMS[system], config)}, rules.meta(
        SYSTEMS[system], config)


def test_names_follow_the_published_pattern():
    names, system = sections_of("dcid", {"audio": (5, 5, 3), "video": (8,), "depth": (6, 6, 4), "caption": (10, 6)})
    encoder = {key for section, key in names if section == rules.ENCODER}
    assert {"Audio_encoder.conv_stack.0.weight", "audio_semantic_encoder.se_layer.0.weight",
            "Video_encoder.video_linear.weight", "Depth_encoder.conv_stack.0.weight",
            "depth_self_att.affine_matrix.weight", "Caption_encoder.caption_linear.weight"} <= encoder
    assert not any(key.startswith(("Video_encoder.conv", "video_semantic")) for key in encoder)
    assert {"Depth_mi_net_parameters", "Caption_ar_lstm_parameters"} <= {section for section, _ in names}
    assert not rules.own_names(system)


@pytest.mark.parametrize("name", SYSTEMS)
def test_vectors_have_no_convolutions_and_every_tensor_has_one_name(name):
    for shapes in ({"audio": (1024,), "video": (768,)}, {m: SHAPES[m] for m in SETS[4]}, SHAPES):
        names, system = sections_of(name, shapes)
        convolved = {m for m in shapes for n, module in system.named_modules()
                     if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) and f".{m}" in n}
        assert convolved == {m for m, shape in shapes.items() if len(shape) == 3}
        ours = [n for t in rules.layout(type(system), system.config) for n in t.ours]
        assert sorted(ours + rules.own_names(system)) == sorted(system.state_dict())
        assert len(names) == len(rules.layout(type(system), system.config))
        assert all(n.startswith("jigsaw.") for n in rules.own_names(system))


# What files of before `shapes` hold as their config.
OLD = {"system": "dcid", "modalities": ["audio", "video", "text"], "num_codes": 12, "code_dim": 8, "audio_dim": 6,
       "text_dim": 5, "text_hidden": 4, "video_dim": 4, "video_hidden": 7, "video_specific_dim": 16,
       "video_pool_hidden": 9, "squeeze_dim": 1, "attention_dim": 3, "feed_forward": 8, "num_layers": 2, "num_heads": 4,
       "club_hidden": 4, "dropout": 0.1, "spatial_attention": "sum"}


@pytest.mark.parametrize("modalities", [["audio", "video", "text"], ["audio", "text"], ["video", "text"]])
def test_files_of_before_are_read(modalities, tmp_path):
    shapes = {"audio": (6,), "video": (7, 7, 4), "text": (10, 5)}
    config = Config(tuple((m, shapes[m]) for m in modalities),
                    (("video", MapWidths(7, 16, 9, 1, 3)),) if "video" in modalities else (), num_codes=12, code_dim=8,
                    text_hidden=4, feed_forward=8, club_hidden=4)
    system = DCID(config)
    contents = checkpoint.pack(system, None, {}, 0, 1, {}) | {"config": OLD | {"modalities": modalities}}
    checkpoint.save(tmp_path / "old.pt", contents)
    loaded = checkpoint.open_file(tmp_path / "old.pt")
    assert loaded.complete and loaded.system.config == config
    assert all(torch.equal(value, loaded.system.state_dict()[name]) for name, value in system.state_dict().items())
    unknown = contents | {"config": OLD | {"modalities": ["audio", "smell"]}}
    checkpoint.save(tmp_path / "odd.pt", unknown)
    assert "modalities = ['audio', 'smell']" in message(checkpoint.open_file, tmp_path / "odd.pt")


def test_a_config_is_plain_values_and_comes_back():
    config = Config.for_data(SHAPES, **TINY)
    stored = json.loads(json.dumps(config.to_dict()))
    assert Config.from_dict(stored) == config
    for shapes, words in (({"audio": [0], "video": [8]}, "audio: features of shape (0,)"),
                          ({"audio": ["9"]}, "shapes = "), ({"text": [9], "audio": [9]}, "(('text', (9,)), ('audio'"),
                          ({"audio": [9], "video": [6, 4, 2]}, "video: maps of 6 x 4 positions; expected at least 5"),
                          ({"audio": [9, 9]}, "audio: features of shape (9, 9), tokens; expected a vector or a map")):
        with pytest.raises(ValueError, match=re.escape(words)):
            Config.from_dict(stored | {"shapes": shapes})
    with pytest.raises(ValueError, match="map_widths = 3"):
        Config.from_dict(stored | {"map_widths": 3})


def test_names_of_modalities():
    for name in ("depth", "eeg", "point_cloud", "imu2"):
        check_name(name)
    for name in ("v", "va", "Depth", "label", "audiovisual", "keys", "type", "train", "a b", "2nd", "num_codes"):
        assert "choose another" in message(check_name, name)


# ------------------------------------------------------------------------------------------------------ data and fit
def zips_of(folder, shape, ids=("one", "two", "three"), seconds=10, seed=0):
    rng = np.random.default_rng(seed)
    write_zips(folder, {name: rng.random((seconds, *shape), dtype=np.float32) for name in ids})
    return folder


@pytest.mark.parametrize("shape", [(1,), (1024,), (5, 5, 2), (9, 6, 3)])
def test_stores_take_the_shape_of_their_clips(tmp_path, shape):
    """A folder of zips, a pack and AVE's array: all give one shape and the same numbers, for audio too."""
    import h5py
    zips_of(tmp_path / "zip", shape)
    pack(tmp_path / "zip", tmp_path / "pack.h5", "audio", "float32")
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["avadataset"] = np.stack([read_zip(tmp_path / "zip" / f"{name}.zip") for name in ("one", "two", "three")])
    ids = ["one", "two", "three"]
    found = [Clips("set", ("audio",), ids, {"audio": tmp_path / place}, keys=keys)
             for place, keys in (("zip", ids), ("pack.h5", ids), ("rows.h5", list("012")))]
    for data in found:
        assert data.shapes == {"audio": shape} and data[2]["audio"].shape == (10, *shape)
        assert np.array_equal(data[2]["audio"], found[0][2]["audio"])


def test_clips_of_two_shapes_are_named(tmp_path):
    zips_of(tmp_path, (9,), ("one", "two"))
    for shape, said in (((8,), "(10, 8)"), ((9, 6, 2), "(10, 9, 6, 2)")):
        zips_of(tmp_path, shape, ("three",))
        data = Clips("set", ("audio",), ["one", "two", "three"], {"audio": tmp_path})
        text = message(data.__getitem__, 2)
        assert "three.zip" in text and f"shape {said}; expected (seconds, 9), as in clip one" in text
    assert Clips("set", ("audio",), ["one", "three"], {"audio": tmp_path}, on_bad_clip="skip").ids == ["one"]


def test_tokens_alone_are_refused():
    with pytest.raises(InputError, match="text, touch: all are tokens; expected at least one modality with features"):
        Config.for_data({"text": (10, 9), "touch": (12, 9)})


def test_maps_that_are_too_small_are_refused(tmp_path):
    zips_of(tmp_path, (7, 4, 3))
    text = message(Clips, "set", ("video",), ["one"], {"video": tmp_path})
    assert str(tmp_path) in text and "maps of 7 x 4 positions; expected at least 5 x 5" in text
    assert "a first axis of one clip" in message(Config.for_data, {"audio": (1, 10, 128)})
    assert "video: maps of 4 x 7 positions" in message(Config.for_data, {"audio": (3,), "video": (4, 7, 9)})


def test_kinds_that_are_declared_are_held_to(tmp_path):
    zips_of(tmp_path / "map", (5, 5, 2))
    zips_of(tmp_path / "tokens", (7,), seconds=12)
    text = message(Clips, "set", ("depth",), ["one"], {"depth": tmp_path / "map"}, kinds={"depth": "vector"})
    assert "shape (10, 5, 5, 2); expected (seconds, any)" in text
    for kind, shape in ((None, (10, 7)), ("tokens", (12, 7))):          # tokens are not cut to the seconds
        data = Clips("set", ("words",), ["one"], {"words": tmp_path / "tokens"}, kinds={"words": kind})
        assert data[0]["words"].shape == shape
    assert open_features(tmp_path / "map", "depth").read("one").shape == (10, 5, 5, 2)


def test_what_does_not_fit_names_both_sides(tmp_path):
    shapes = {"audio": (9,), "video": (6, 5, 4), "text": (10, 7)}
    system = trainer_of("dcid", shapes).system
    checkpoint.save(tmp_path / "c.pt", checkpoint.pack(system, None, {}, 0, 1, {}))
    opts = parse_pretrain(["--gpu", "cpu"], LOCAL)
    for other, words in (({"audio": (8,)}, "expects audio as vectors of 9, but the data has audio as vectors of 8"),
                         ({"audio": (6, 5, 4)}, "audio as vectors of 9, but the data has audio as maps of 6 x 5 x 4"),
                         ({"video": (7, 7, 4)}, "maps of 6 x 5 x 4, but the data has video as maps of 7 x 7 x 4"),
                         ({"text": (10, 8)}, "text as tokens of 7, but the data has text as tokens of 8")):
        assert words in message(pretrain.open_system, opts, tmp_path / "c.pt", shapes | other)
    frozen = FrozenEncoder(system.encoder, DCID)

    class Data:
        name = "mine"

        def __getitem__(self, i):
            return {"audio": np.zeros((10, 8)), "video": np.zeros((10, 6, 5, 4)), "text": np.zeros((3, 7))}
    assert "expects audio as vectors of 9, but mine has audio as vectors of 8" in message(
        encode.check_fit, frozen, Data(), "audio", "c.pt")
    for m in ("video", "text"):                         # any number of tokens can be read
        encode.check_fit(frozen, Data(), m, "c.pt")


# ------------------------------------------------------------------------------------- one content, maps and vectors
def paired(kinds, clips, generator):
    """Clips of four classes, the class in every modality: modality -> features, and the classes (clips,)."""
    classes = torch.randint(4, (clips,), generator=generator)
    features = {}
    for number, (m, kind) in enumerate(kinds.items()):
        center = torch.randn(4, 12, generator=torch.Generator().manual_seed(number))
        x = center[classes].unsqueeze(1) + 0.3 * torch.randn(clips, 10, 12, generator=generator)
        features[m] = x if kind == "vector" else x[:, :, None, None].expand(-1, -1, 6, 5, -1) / 30  # pooling sums
    return features, classes


def test_the_same_content_crosses_as_maps_and_as_vectors():
    """Codes that one modality's clips of a class take name the class of every other's clips; a guess has 25 %."""
    kinds, generator = {"audio": "vector", "video": "map", "depth": "map"}, torch.Generator().manual_seed(0)
    features, _ = paired(kinds, 4, generator)
    torch.manual_seed(0)
    system = DCID(Config.for_data({m: tuple(x.shape[2:]) for m, x in features.items()}, **TINY | {"num_codes": 16}))
    trainer = step_for(system.train(), lr=4e-3, without=("club",))
    for _ in range(80):
        trainer.step(paired(kinds, 16, generator)[0], 0)
    frozen = FrozenEncoder(system.encoder, DCID)
    features, classes = paired(kinds, 100, generator)
    codes = {m: torch.nn.functional.one_hot(frozen.embed(m, x).indices, 16).sum(1) for m, x in features.items()}
    for source in kinds:
        votes = torch.stack([codes[source][classes == k].sum(0) for k in range(4)]).float()           # (4, 16)
        for target in kinds:
            said = (codes[target].float() @ (votes / votes.sum(0).clamp_min(1)).T).argmax(1)
            assert (said == classes).float().mean() > 0.6, (source, target)


# ---------------------------------------------------------------------------------------------- the programs, a tree
EXTRA = {"depth": (6, 5, 4), "eeg": (12,)}


@pytest.fixture(scope="module")
def five(demo_data, tmp_path_factory):
    """Arguments for clips of one's own with audio, video, text, depth and eeg: the demo's with two more folders, a
    manifest of which every fourth clip is a test clip."""
    folder = tmp_path_factory.mktemp("five")
    place = {name: demo_data / DATA_PATHS[f"vggsound.{name}"] for name in ("csv", "audio", "video", "text")}
    listed = pd.read_csv(place["csv"])
    manifest = pd.DataFrame({"id": listed["video_id"], "label": listed["category"],
                             "split": ["test" if n % 4 == 3 else "train" for n in range(len(listed))]})
    manifest.to_csv(folder / "clips.csv", index=False)
    own = ["--manifest", str(folder / "clips.csv"), "--modality", "eeg=vector", "--modality", "depth=map"]
    for m in ("audio", "video", "text"):
        own += ["--features", f"{m}={place[m]}"]
    for number, (m, shape) in enumerate(EXTRA.items()):
        own += ["--features", f"{m}={zips_of(folder / m, shape, list(manifest['id']), seed=number)}"]
    return own


@pytest.mark.parametrize("system", ["dcid", "codaar"])
@pytest.mark.usefixtures("small_model")
def test_the_programs_take_five_modalities(five, system, demo_data, tmp_path, capsys):
    """Pretraining, its resume and evaluation, heads, pictures, report, export: names and numbers of all five."""
    modalities = ("audio", "video", "text", "depth", "eeg")
    name = SYSTEMS[system].file(modalities, 0)
    own = ("--system", system, "--n_epoch", "1", "--dataset_name", "custom", *five)

    def pretraining(folder, *more):
        return run_once(command(demo_data, tmp_path / folder, *own, *more))
    assert pretraining("whole") == 0
    assert pretraining("parts", "--max_steps", "4") == 0 and pretraining("parts", "--resume", "auto") == 0
    found = compare(tmp_path / "whole", tmp_path / "parts", name)       # a run that ends may warn, and says so once
    assert [place for place in found if not place.startswith((".run.saved", ".run.health.warned"))] == []
    file = tmp_path / "whole" / "checkpoints" / name
    assert pretraining("whole", "--evaluate", "--resume", str(file)) == 0
    checkpoints_program.main([str(file)])
    assert "depth map 6 x 5 x 4, eeg vector 12" in capsys.readouterr().out
    if system == "codaar":          # the rest is the same for all systems
        return

    heads = ["--gpu", "cpu", "--in_memory", "--n_epoch", "2", "--seeds", "0", "--snapshot_pref",
             str(tmp_path / "whole" / "heads"), "--results", str(tmp_path / "whole" / "heads" / "results.jsonl")]
    for source, target in (("depth", "eeg"), ("eeg", "audio")):
        custom.main([*heads, *five, "--checkpoint", str(file), "--source", source, "--target", target])
    rows = results.read(tmp_path / "whole" / "heads" / "results.jsonl")
    assert {row["direction"] for row in rows} == {"depth->eeg", "eeg->audio"}
    assert all(row["modalities"] == list(modalities) for row in rows)
    pictures = figures.draw_predictions(tmp_path / "whole" / "heads" / "predictions", tmp_path / "figs", "")
    assert {path.name.split("-")[0] for path in pictures} >= {"codes", "classes", "clips", "confusion"}
    page.write([tmp_path / "whole"], tmp_path / "report.html", drawn=pictures)
    assert "depth->eeg" in (tmp_path / "report.html").read_text().replace("&gt;", ">").replace("→", "->")

    export(file, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "depth: one feature map per second, `(B, T, 6, 5, 4)`" in card and "eeg: one vector per second" in card
    here, there = hub.load_encoder(tmp_path / "out"), checkpoint.load_encoder(file)
    for m, shape in EXTRA.items():
        x = torch.randn(2, 10, *shape)
        assert torch.equal(here.embed(m, x).indices, there.embed(m, x).indices)


@pytest.mark.usefixtures("small_model")
def test_ave_of_wide_vectors_trains(demo_data, tmp_path):
    """AVE's arrays with 1024 numbers of audio and 768 of video a second, projections of the demo's."""
    other_features.build(demo_data, tmp_path / "data")
    assert run_once(command(tmp_path / "data", tmp_path, "--dataset_name", "ave", "--max_steps", "3")) == 0
    system = checkpoint.open_file(tmp_path / "checkpoints" / "DCID-model-0.pt").system
    assert dict(system.config.shapes) == {"audio": (1024,), "video": (768,)}
    assert not any(isinstance(module, torch.nn.Conv2d) for module in system.modules())


def test_check_says_what_every_modality_is(five, capsys):
    prepare.main(["check", "--dataset", "custom", *five])
    out = capsys.readouterr().out
    assert "(audio 128, video 7 x 7 x 32, text 10 x 768, depth 6 x 5 x 4, eeg 12)" in out
    assert "PROBLEM" not in out


def test_a_kind_that_the_features_are_not(five):
    opts = parse_pretrain(["--gpu", "cpu", "--dataset_name", "custom",
                           *("depth=vector" if x == "depth=map" else x for x in five)], LOCAL)
    assert opts.modality == {"depth": "vector", "eeg": "vector"}
    assert "shape (10, 6, 5, 4); expected (seconds, any)" in message(pretrain.open_data, opts)


def test_arguments_for_modalities(capsys):
    files = ["--dataset_name", "custom", "--manifest", "c.csv", "--features", "audio=a", "--features", "depth=d"]
    for wrong, words in ((["depth"], "is not NAME=KIND"), (["depth=cube"], "is not NAME=KIND"),
                         (["audio=map"], "whose kinds are known"), (["keys=map"], "choose another"),
                         (["depth=map", "depth=vector"], "given twice"), ([], "declare another with --modality depth="),
                         (["depth=map", "eeg=map"], "--modality eeg: no features are given for it")):
        with pytest.raises(SystemExit) as end:
            parse_pretrain(["--gpu", "cpu", *files, *(x for one in wrong for x in ("--modality", one))], LOCAL)
        error = capsys.readouterr().err
        assert end.value.code == 2 and words in error and error.count("\n") == 1
    opts = parse_pretrain(["--gpu", "cpu", *files, "--modality", "depth=map"], LOCAL)
    assert opts.modalities == ("audio", "depth") and opts.modality == {"depth": "map"}
