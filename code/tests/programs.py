"""Small calls of every program, which write or read every kind of file that ours know, for the table of test_disk.py.

A call is a function of (tools, folder): it works in `folder`, which may be made beforehand by a function in `BEFORE`.
`tools` holds what calls share: see `Tools`. A call that is repeated goes on with what it finds.
"""

import gzip
import io
import json
import pickle
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import demo_scenes
import h5py
import numpy as np
import torch
import train as avs_train_script
import training

import evaluate
import parity_features
import prepare
import tiny
import toc
from avs_test import test as avs_test_script
from cmg.checkpoints import checkpoint
from cmg.data import archive, origins
from cmg.data.layout import DATA_PATHS
from cmg.data.sets.ave import CATEGORIES
from cmg.data.text_backends import find_vocabulary
from cmg.demos import dialled, spoken_sources
from cmg.downstream import resume, run
from cmg.extract import hub, weights
from cmg.extract.build import pca_filters
from cmg.prepare import pack as packing
from cmg.programs import ablation as ablation_program
from cmg.report import export, page, pictures
from cmg.systems.dcid import DCID
from cmg.training.run_logger import RunLogger, restored_log
from configs.opts import LOCAL
from kill_resume import narrowed
from made_videos import make_video

OFFLINE = ["--audio-encoder", "logmel", "--video-encoder", "patches", "--seconds", "2", "--workers", "1"]   # in here
NETWORK = ["--visual_backbone", "small", "--tpavi_stages", "2", "3", "--tpavi_va_flag", "--image_size", "32",
           "--num_workers", "0", "--gpu", "cpu"]


@dataclass
class Tools:
    """What calls share.

    Attributes:
        folder: of the files below.
        data: a demo tree, not to be written in.
    """

    folder: Path
    data: Path

    @property
    def model(self):
        """A checkpoint of random weights, of audio and video."""
        return self._made("model.pt", lambda path: _save(path, DCID.Config.for_data(
            ("audio", "video"), video_dim=32, num_codes=12, code_dim=16, feed_forward=32, num_layers=1)))

    @property
    def words(self):
        """A checkpoint of random weights, of audio and text."""
        return self._made("words.pt", lambda path: _save(path, DCID.Config.for_data(
            ("audio", "text"), num_codes=12, code_dim=16, text_hidden=8, feed_forward=16, num_layers=1, num_heads=2)))

    @property
    def videos(self):
        """A folder of two clips."""
        return self._made("videos", lambda path: [path.mkdir(), *(
            make_video(path / f"clip{k}.mp4", seconds=2, audio="tone", size=(64, 48)) for k in range(2))])

    @property
    def measured(self):
        """The folder of an evaluation."""
        return self._made("measured", lambda path: evaluated(self, path))

    @property
    def scenes(self):
        """A data root of scenes."""
        return self._made("scenes", lambda path: [_words(self, path), scenes(self, path)])

    @property
    def trained(self):
        """A folder of training runs of segmentation."""
        return self._made("trained", lambda path: avs_train(self, path))

    def _made(self, name, make):
        path = self.folder / name
        if not path.exists():
            make(path)
        return path


def _save(path, config):
    torch.manual_seed(0)
    checkpoint.save(path, checkpoint.pack(DCID(config), None, {}, 0, 0, {}))


def _words(tools, folder):
    (folder / DATA_PATHS["vggsound.text"]).parent.mkdir(parents=True)
    shutil.copy(tools.data / DATA_PATHS["vggsound.text"], folder / DATA_PATHS["vggsound.text"])


# ------------------------------------------------------------------------------------------------------------- calls
def pretraining(tools, folder):
    with narrowed():
        return tiny.train(tools.data, folder, "--n_epoch", 1, "--batch_size", 40, "--save_every_steps", 1, "--log",
                          "tensorboard", "--resume", "auto")


def evaluated(tools, folder):
    with mock.patch.object(run, "Progress", partial(resume.Progress, seconds=0)):       # kept after every epoch
        evaluate.main([str(tools.model), "--data_root", str(tools.data), "--snapshot_pref", str(folder), "--n_epoch",
                       "2", "--seeds", "0", "--gpu", "cpu", "--tasks", "ave", "--no_control", "--no_text",
                       "--in_memory"])


def pack(tools, folder):
    with mock.patch.object(packing, "BATCH", 20):
        prepare.main(["pack", "vggsound.audio", "--data_root", str(tools.data), "--out", str(folder / "pack.h5")])


def avs_train(tools, folder):
    with mock.patch.object(training, "SECONDS", 0):                                     # kept after every step
        avs_train_script.main([
            "--checkpoint", str(tools.words), "--data_root", str(tools.scenes), "--log_dir", str(folder), "--direction",
            "at", *NETWORK, "--channels", "8", "--max_epoches", "1", "--resume", "auto"])


def report(tools, folder):
    page.write([folder], folder / "report.html", drawn=[folder / "ave.png"])


def table_pictures(tools, folder):
    from cmg.results import rows as results
    pictures.draw_tables(results.read(folder / "results.jsonl"), folder / "figs")


def exported(tools, folder):
    export.export(tools.model, folder / "out", [tools.measured / "results.jsonl"])


def channels(tools, folder):
    toc.main([str(tools.model), "--choose_channel", "8", "--toc_max_num", "2", "--toc_min_num", "2",
              "--snapshot_pref", str(folder / "toc")])


def text(tools, folder):
    prepare.main(["text", "--dataset", "ave", "--backend", "hashing", "--data_root", str(tools.data), "--out",
                  str(folder / "text" / "prompts.h5")])


def vocabulary(tools, folder):
    prepare.main(["vocabulary", "--vocab", str(folder / "vocab.txt"), "--prompts", str(folder / "prompts.csv"), "--out",
                  str(folder / "out" / "cnt.pkl")])


def lists(tools, folder):
    prepare.main(["lists", "--data_root", str(folder)])


def own_example(tools, folder):
    prepare.main(["new", str(folder / "own")])


def ave_arrays(tools, folder):
    return prepare.main(["features", str(tools.videos), "--out", str(folder / "out"), *OFFLINE, "--format", "ave",
                         "--order", str(folder / "Annotations.txt")])


def avsbench(tools, folder):
    return prepare.main(["features", str(tools.videos), "--out", str(folder / "out"), "--preset", "avsbench",
                         "--audio-encoder", "logmel", "--labels", str(folder / "s4.csv")])


def labeled(tools, folder):
    return prepare.main(["features", str(tools.videos), "--out", str(folder / "out"), *OFFLINE, "--labels",
                         str(folder / "labels.csv"), "--text-encoder", "hashing"])


def scenes(tools, folder):
    demo_scenes.build(folder, DATA_PATHS, clips={"train": 2, "val": 1, "test": 1}, progress=False)


def demo(tools, folder):
    # the parts without a clip of their own but one: they write every kind of file
    with mock.patch.object(dialled, "PARTS", {name: dialled.PARTS[name] for name in DEMO_PARTS}):
        dialled.build(folder / "data", DATA_PATHS, clips=80, progress=False)


DEMO_PARTS = ("vggsound", "ave", "avvp", "ave_avvp", "ucf_vggsound", "ucf51", "captions")


def avs_test(tools, folder):
    avs_test_script.main(["--checkpoint", str(tools.words), "--data_root", str(tools.scenes), "--log_dir",
                          str(folder / "tests"), "--train_log_dir", str(tools.trained), "--figure_dir",
                          str(folder / "figs"), "--num_workers", "0", "--gpu", "cpu", "--direction", "at",
                          "--save_pred_mask", "--results", str(folder / "results.jsonl")])


def ablation(tools, folder):
    with mock.patch.object(ablation_program, "pretrain"), mock.patch.object(ablation_program, "evaluate"), \
            mock.patch.object(ablation_program, "show", lambda *_: "a table"):
        ablation_program.main(["--study", "2", "--snapshot_pref", str(folder), "--data_root", str(tools.data)], LOCAL)


def recordings(tools, folder):
    from cmg.demos import spoken_sources as sources
    with mock.patch.object(sources, "urlopen", lambda address, timeout: io.BytesIO(address.encode())):
        sources.fetch(folder / "recordings")


def check(tools, folder):
    return max(prepare.main(["check", "--dataset", name, "--data_root", str(folder)])
               for name in ("vggsound_AVT", "ave", "avvp"))


def check_own(tools, folder):
    return prepare.main(["check", "--dataset", "custom", "--manifest", str(folder / "clips.csv"), "--features",
                         f"audio={folder / 'audio'}", "--features", f"video={folder / 'video.h5'}"])


def scenes_again(tools, folder):
    scenes(tools, folder)


def demo_again(tools, folder):
    dialled.build(tools.data, DATA_PATHS, clips=80, progress=False)


def discarded(tools, folder):
    # a run that goes on from before the second line of its figures
    with restored_log():
        RunLogger(folder, {}, {"folder": str(folder), "bytes": 7, "step": 0}).close()


def readers(tools, folder):
    archive.read_counts(folder / "cnt.pkl")
    archive.read_npy(folder / "clip.npy")
    find_vocabulary(folder)
    origins.describe(tools.data / DATA_PATHS["ave.text"], "text")
    pictures.read_predictions(folder / "kept.npz")
    hub._hash_of_weights(folder)
    pca_filters(folder, {}, 4)
    spoken_sources._unpacked(folder / spoken_sources.IMAGES)
    weights._digests(folder / "vgg19.pth")
    weights._state(folder / "vgg19.pth", "vgg19")
    weights._state(folder / "vgg19.h5", "vgg19")
    weights.read_pca(folder / "pca.npz")


# ---------------------------------------------------------------------------------------------------- what they need
def _readers(tools, folder):
    (folder / "cnt.pkl").write_bytes(pickle.dumps({0: 0, 1: 1}))
    np.save(folder / "clip.npy", np.zeros((3, 4), np.float32))
    np.save(folder / "patch_filters_4.npy", np.zeros((3, 4), np.float32))
    np.savez(folder / "kept.npz", x=np.zeros(9))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"[UNK]": 0}}}))
    (folder / "model.bin").write_bytes(bytes(99))
    (folder / spoken_sources.IMAGES).write_bytes(gzip.compress(np.random.default_rng(0).bytes(999), mtime=0))
    torch.save(parity_features.vgg19("vgg19_8").state_dict(), folder / "vgg19.pth")
    with h5py.File(folder / "vgg19.h5", "w") as file:
        for layer in weights.VGG19_KERAS.values():
            file[f"{layer}/kernel"], file[f"{layer}/bias"] = np.zeros((3, 3, 1, 8), np.float32), np.zeros(8, np.float32)
    np.savez(folder / "pca.npz", pca_eigen_vectors=np.eye(3), pca_means=np.zeros(3))


def _discarded(tools, folder):
    (folder / "metrics.jsonl").write_text("{\"a\":1}\n{\"b\":2}\n"[1:])


def _scenes(tools, folder):
    _words(tools, folder)
    scenes(tools, folder)


def _measured(tools, folder):
    shutil.copytree(tools.measured, folder, dirs_exist_ok=True)
    from PIL import Image
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "ave.png")


def _sentences(tools, folder):
    (folder / "prompts.csv").write_text("label,prompt\ndog,a dog barks\n")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in ("[PAD]", "[UNK]", "a", "dog", "barks")))


def _annotations(tools, folder):
    (folder / DATA_PATHS["ave.annotations"]).parent.mkdir(parents=True)
    (folder / DATA_PATHS["ave.annotations"]).write_text("".join(
        f"{CATEGORIES[k]}&video{k}&good&0&{k + 1}\n" for k in range(4)))


def _order(tools, folder):
    (folder / "Annotations.txt").write_text("".join(f"Bark&clip{k}&good&0&2\n" for k in (1, 0, 1)))


def _s4(tools, folder):
    (folder / "s4.csv").write_text("name,start,category,split\nclip0,0,dog,train\nclip1,0,cat,test\n")


def _labels(tools, folder):
    (folder / "labels.csv").write_text("file,label,split\nclip0.mp4,dog,train\nclip1.mp4,cat,test\n")


def _own(tools, folder):
    rng = np.random.default_rng(0)
    rows = ["id,split,label"]
    (folder / "audio").mkdir()
    with h5py.File(folder / "video.h5", "w") as file:
        for k in range(6):
            rows.append(f"clip{k},{('train', 'test')[k // 3]},{('dog', 'cat')[k % 2]}")
            np.save(folder / "audio" / f"clip{k}.npy", np.abs(rng.standard_normal((10, 20))).astype(np.float32))
            file[f"clip{k}"] = np.abs(rng.standard_normal((10, 5, 5, 200))).astype(np.float32)
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")


def _demo_copy(tools, folder):
    for part in tools.data.iterdir():
        (folder / part.name).symlink_to(part)


BEFORE = {report: _measured, table_pictures: _measured, ablation: _measured, vocabulary: _sentences,
          lists: _annotations, ave_arrays: _order, avsbench: _s4, labeled: _labels, check_own: _own, scenes: _words,
          scenes_again: _scenes, discarded: _discarded, readers: _readers, check: _demo_copy}
PARTLY = (check, check_own, ave_arrays, avsbench, labeled)     # exit code 1 and a report: the other clips go on
LONG = (pretraining, evaluated, avs_train, pack, labeled)      # runs that hold a lock and go on where they stopped
CALLS = (readers, check_own, check, text, vocabulary, lists, own_example, recordings, discarded, scenes, scenes_again,
         exported, table_pictures, report, channels, ablation, pack, labeled, avsbench, ave_arrays, demo, demo_again,
         evaluated, avs_train, avs_test, pretraining)       # quick ones first: a function meets its fault in one call
