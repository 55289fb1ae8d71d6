"""The package `cmg`: what it leaves alone, that its figures are the scripts', its errors, the notebook."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import ave
import cmg
import prepare
from cmg.results import rows as results
from conftest import ROOT, refused
from kill_resume import narrowed
from tiny import checkpoints, train

CODE = ROOT / "code"


@pytest.fixture(scope="module")
def file(demo_data, small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    assert train(demo_data, folder) == 0
    return folder / "checkpoints" / checkpoints(folder)[-1]


@pytest.fixture(scope="module")
def encoder(file):
    return cmg.load(file)


@pytest.fixture(scope="module")
def ave_clips(demo_data):
    """modality -> (features, classes) of AVE's training and test clips."""
    task = cmg.open_task("ave", demo_data, ("audio", "video", "text"))
    return {(role, m): (part.load(m), cmg.clip_class(part.labels), part.labels)
            for role, parts in (("train", task.train), ("test", task.test)) for m, part in parts.items()}


def run(program, folder, *arguments):
    """Output of a Python program in a process of its own, with `folder` first on its path."""
    done = subprocess.run([sys.executable, *program, *map(str, arguments)], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# ---------------------------------------------------------------------------------------------------------- the package
def test_no_name_of_another_program_is_taken(tmp_path):
    """A user's own model.py and package evaluate go on working, and "go to definition" ends in the file that runs."""
    (tmp_path / "model.py").write_text("mine = 'model'")
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "__init__.py").write_text("mine = 'evaluate'")
    (tmp_path / "user.py").write_text(f"""
import inspect, pickle, sys
path, hooks = list(sys.path), list(sys.meta_path)
import cmg
import model, evaluate
from cmg.downstream import tasks
from cmg.programs import evaluate as ours
assert sys.path == path and [type(hook) for hook in sys.meta_path] == [type(hook) for hook in hooks]
assert model.mine == "model" and evaluate.mine == "evaluate" and ours is not evaluate
sources = {str(CODE / "src")!r}
files = {{name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}}
assert not [name for name, file in files.items() if file.startswith(sources) and name.split(".")[0] != "cmg"]
assert inspect.getsourcefile(inspect.unwrap(cmg.load)) == sources + "/cmg/api/encoder.py"
assert cmg.InputError is sys.modules["cmg.utils.errors"].InputError
assert pickle.loads(pickle.dumps(cmg.Codes)) is cmg.Codes           # classes are found again by their own name
print("fine")
""")
    assert run(["user.py"], tmp_path) == "fine\n"


def test_a_wheel_holds_the_package_and_nothing_else(tmp_path):
    if not importlib.util.find_spec("setuptools"):
        pytest.skip("no setuptools in this environment to build with")
    shutil.copytree(CODE / "src", tmp_path / "src", ignore=shutil.ignore_patterns("Exps", "__pycache__", "*.egg-info"))
    shutil.copy(CODE / "pyproject.toml", tmp_path)
    run(["-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index", "-w", "out", "."], tmp_path)
    wheel = next((tmp_path / "out").glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cmg"}
    sources = {path.relative_to(CODE / "src").as_posix() for kind in ("py", "html", "js", "csv")
               for path in (CODE / "src" / "cmg").rglob(f"*.{kind}")}
    assert sources <= set(names)
    (tmp_path / "site").mkdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert run(["-c", "import cmg.systems.registry as r; print(r.SYSTEMS['dcid'].label)"], tmp_path / "site"
               ) == "DCID\n"


def test_no_newer_python_is_needed_than_is_declared():
    """Tests run on one Python; vermin knows with which one each part of the language and the library came."""
    least = (CODE / "pyproject.toml").read_text().split('requires-python = ">=')[1].split('"')[0]
    found = subprocess.run([Path(sysconfig.get_path("scripts")) / "vermin", f"-t={least}-", "--no-tips", "--violations",
                            *(str(CODE / name) for name in ("src", "AVSBench_downstream"))],
                           capture_output=True, text=True)
    assert found.returncode == 0 and f"Minimum required versions: {least}" in found.stdout, found.stdout


# -------------------------------------------------------------------------------------------- the same as the scripts
def test_figures_are_those_of_the_task_script(encoder, ave_clips, file, demo_data, tmp_path):
    """`transfer` and `fit_head` give ave.py's accuracies: the same codes, heads, orders and control."""
    ave.main(["--data_root", str(demo_data), "--checkpoint", str(file), "--snapshot_pref", str(tmp_path), "--gpu",
              "cpu", "--n_epoch", "5", "--seeds", "0", "3", "--source", "audio", "--target", "video"])
    rows = [row for row in results.read(tmp_path / "results.jsonl")
            if row["selection"] == "last" and row["metric"] == "accuracy"]
    train, test = ave_clips["train", "audio"][:2], ave_clips["test", "video"][:2]
    found = cmg.transfer(encoder, ("audio", *train), ("video", *test), epochs=5, seeds=(0, 3))
    for name, control in ((found.cross, None), (found.untrained, "untrained")):
        assert name["accuracy"] == pytest.approx([row["value"] for row in rows if row["control"] == control])
    assert found.chance == {"accuracy": rows[0]["chance"]} and found.curves["accuracy"].shape == (2, 5)
    head = cmg.fit_head(encoder, "audio", *train, epochs=5, seed=3)
    assert head.score("video", *test)["accuracy"] == pytest.approx(found.cross["accuracy"][1])
    outputs = np.load(tmp_path / "predictions" / "ave-audio-video.npz")["cross"]            # of the first seed
    head = cmg.fit_head(encoder, "audio", *train, epochs=5, seed=0)
    assert np.allclose(head.predict("video", test[0]), outputs, rtol=1e-4, atol=1e-5)


def test_a_head_for_every_second(encoder, ave_clips):
    x, _, labels = ave_clips["train", "audio"]
    head = cmg.fit_head(encoder, "audio", x, labels, epochs=3)
    assert head.predict("video", ave_clips["test", "video"][0]).shape[1:] == (10, 11)
    assert set(head.score("audio", x, labels)) == {"precision", "recall", "f1"}
    found = cmg.transfer(encoder, ("audio", x, labels), ("video", *ave_clips["test", "video"][::2]), epochs=2)
    assert set(found.cross) == set(found.chance) == {"precision", "recall", "f1"}


def test_retrieval_finds_the_clip_itself(encoder, ave_clips):
    x = ave_clips["test", "audio"][0]
    codes = encoder.embed("audio", x)
    assert codes.vectors.shape == (len(x), 10, encoder.head_dim) and codes.indices.shape == (len(x), 10)
    found = cmg.retrieve(encoder, ("audio", x), ("audio", x), k=3)
    assert found.indices.shape == found.similarity.shape == (len(x), 3)
    assert np.allclose(found.similarity[:, 0], 1, atol=1e-5) and (found.similarity.diff(dim=1) <= 0).all()
    few = cmg.retrieve(encoder, ("audio", x[:2]), ("video", ave_clips["test", "video"][0][:2]), k=99)
    assert few.indices.shape == (2, 2)


def test_features_of_a_video_are_those_of_prepare(encoder, tmp_path):
    """The same arrays as `prepare.py features` writes, and codes of them."""
    from cmg.data.archive import read_zip
    from made_videos import make_video
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "clip.mp4")
    prepare.main(["features", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--audio-encoder", "logmel",
                  "--video-encoder", "patches", "--patch-channels", str(encoder.frozen.config.feature_dim("video"))])
    found = encoder.features_of(tmp_path / "videos" / "clip.mp4", audio="logmel", video="patches")
    for modality, feature in found.items():
        path = next((tmp_path / "out").rglob(f"{modality}/zip/clip.zip"))
        assert np.array_equal(feature[0], read_zip(path))
        assert encoder.embed(modality, feature).indices.shape == (1, 10)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for path in (tmp_path / "broken.mp4", tmp_path / "absent.mp4"):
        refused(path.name, encoder.features_of, path, audio="logmel")
    refused("no such file", encoder.features_of, tmp_path / "videos" / "clip.mp4", audio=tmp_path / "vggish.h5")
    refused("audio, video or both", encoder.features_of, tmp_path / "videos" / "clip.mp4")


def test_pretraining_and_export(demo_data, tmp_path):
    """As pretrain.py, and nothing of its log stays with the caller."""
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()
    with narrowed(), torch.no_grad():
        file = cmg.pretrain(demo_data, tmp_path / "run", n_embeddings=24, batch_size=8, max_steps=2, in_memory=True,
                            gpu="cpu", without=["club", "cpc"])
    assert torch.equal(torch.get_rng_state(), random[0]) and np.random.get_state()[1].tolist() == random[1]
    assert file.parent == tmp_path / "run" and logging.getLogger().handlers == handlers
    assert logging.getLogger().level == level
    assert json.loads((tmp_path / "run" / "run" / "options.json").read_text())["without"] == ["club", "cpc"]
    names = [path.name for path in cmg.export(file, tmp_path / "out")]
    assert names == ["model.safetensors", "README.md", "config.json"]
    assert repr(cmg.load(tmp_path / "out")) == repr(cmg.load(file))
    with narrowed():                                    # of a shorter run in the same folder its own file, not this one
        other = cmg.pretrain(demo_data, tmp_path / "run", n_embeddings=24, batch_size=8, max_steps=1, in_memory=True,
                             gpu="cpu")
    assert other.name == "DCID-model-0-step1.pt" != file.name
    refused("unrecognized arguments: --unknown 3", cmg.pretrain, demo_data, tmp_path / "run", unknown=3)


# -------------------------------------------------------------------------------------------------------- bad input
@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("state", [
    torch.no_grad, torch.inference_mode, default_dtype, partial(torch.device, "meta"),
    partial(torch.autocast, "cpu", torch.bfloat16)], ids=["no_grad", "inference_mode", "float64", "meta", "autocast"])
def test_what_the_caller_set_in_pytorch_changes_nothing(encoder, ave_clips, state):
    """A notebook that computes no gradients, or elsewhere, or with other numbers, finds the same heads and codes; a
    model that contains the encoder does not turn its dropout on."""
    x, classes, _ = ave_clips["test", "audio"]

    def values():
        head = cmg.fit_head(encoder, "audio", x, classes, epochs=2)
        found = cmg.retrieve(encoder, ("audio", x), ("audio", x))
        return head.losses, head.score("audio", x, classes), found.indices.tolist(), found.similarity.tolist()
    plain = values()
    with state():
        torch.nn.ModuleList([encoder.frozen]).train()
        assert values() == plain


def test_wrong_input_is_a_line(encoder, ave_clips, tmp_path):
    x, classes, labels = ave_clips["test", "audio"]
    bad = np.full_like(x, np.nan)
    for call in (lambda: cmg.open_task("ave"), lambda: encoder.embed_clips("smell", x),
                 lambda: encoder.embed("smell", x), lambda: encoder.embed("audio", x[0]),
                 lambda: encoder.embed("audio", x[..., :5]), lambda: encoder.embed("audio", bad),
                 lambda: encoder.embed("audio", x.astype(int)), lambda: encoder.embed("audio", x[:0]),
                 lambda: cmg.fit_head(encoder, "audio", x, classes[:-1]),
                 lambda: cmg.fit_head(encoder, "audio", x, classes - 1),
                 lambda: cmg.fit_head(encoder, "audio", x, classes.float()),
                 lambda: cmg.fit_head(encoder, "audio", x, labels + 0.5),
                 lambda: cmg.fit_head(encoder, "audio", x, labels[:, :4]),
                 lambda: cmg.fit_head(encoder, "audio", x, classes, num_classes=3),
                 lambda: cmg.fit_head(encoder, "audio", x, classes, epochs=1).score("audio", x, labels),
                 lambda: cmg.transfer(encoder, ("audio", x, classes), ("audio", x, labels)),
                 lambda: cmg.fit_head(encoder, "audio", x, list(map(str, classes.tolist())), epochs=1).score(
                     "audio", x, classes),
                 lambda: cmg.load(encoder.source, device="meta"), lambda: cmg.load(encoder.source, device="cuda:99"),
                 lambda: cmg.open_task("nothing", tmp_path), lambda: cmg.open_task("ave", tmp_path),
                 lambda: cmg.load(tmp_path / "absent.pt"), lambda: cmg.load(tmp_path)):
        with pytest.raises(cmg.InputError) as found:
            call()
        assert "\n" not in str(found.value) and isinstance(found.value, ValueError)


# ----------------------------------------------------------------------------------------------------- the notebook
# Before the first cell: no windows, and networks a hundredth of the demo's size.
PREAMBLE = """
import matplotlib
matplotlib.use("svg")
import sys
sys.path.append({tests!r})
from kill_resume import narrowed
small = narrowed()
small.__enter__()
"""


def test_the_notebook_runs(tmp_path):
    """Every code cell, one after the other, as a user's kernel would run them, with little data and small networks."""
    notebook = json.loads((CODE / "docs" / "tour.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5 and not any(line.startswith(("!", "%")) for cell in cells for line in cell.split("\n"))
    text = "\n\n".join([PREAMBLE.format(tests=str(CODE / "tests")), *cells,
                        'assert matplotlib.get_backend() == "svg"', 'assert matplotlib.rcParams["axes.spines.top"]'])
    for written, small in (("clips=480", "clips=80"), ("n_epoch=8", "n_epoch=1"), ("epochs=100", "epochs=2")):
        assert written in text
        text = text.replace(written, small)
    (tmp_path / "tour.py").write_text(text)
    run(["tour.py"], tmp_path)
