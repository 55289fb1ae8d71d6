"""Small data packages in the published formats, written by the tests."""

import io
import pickle
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np

from cmg.data.csv import read_table
from cmg.data.text import write_text_features
from cmg.data.text_backends import hashing_sentences

V = 3                                   # video channels; 512 in the published features
CLASSES = ("dog barking", "playing violin", "male speech", "race car")
PROMPTS = {"dog barking": "a dog is barking", "playing violin": "a violin in a hall",
           "male speech": "a man is speaking",
           "race car": "a fast car"}


def zip_bytes(*objects, protocol=4, names=None):
    """A zip with one pickle for each object."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for k, x in enumerate(objects):
            archive.writestr(names[k] if names else f"{k}.pkl", pickle.dumps(x, protocol=protocol))
    return buffer.getvalue()


def write_zips(folder, clips):
    """<id>.zip for each id -> array."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, x in clips.items():
        (folder / f"{name}.zip").write_bytes(zip_bytes(x))


def same_zips(folder, ids, content):
    """<id>.zip with the same bytes for each id."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ids:
        (folder / f"{name}.zip").write_bytes(content)


def features(rng, seconds, width=(128,)):
    """Non-negative float32 features (seconds, *width)."""
    return np.abs(rng.standard_normal((seconds, *width))).astype(np.float32)


def hashed_text(path, prompts):
    """Text features of prompts by the hashing backend."""
    write_text_features(path, prompts, hashing_sentences(list(prompts.values())), "hashing")


def vggsound(root, places, clips=24, seed=0, width=V):
    """VGGSound-AVEL below `root`: list, class list, audio, video, segment labels, text features. Returns the ids."""
    rng = np.random.default_rng(seed)
    ids = [f"v-{k:09d}" for k in range(clips)]
    path = {name.split(".")[1]: root / place for name, place in places.items() if name.startswith("vggsound.")}
    path["csv"].parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{CLASSES[k % 4]},{name},{('train', 'train', 'val', 'test')[k // 4 % 4]}" for k, name in enumerate(ids)]
    path["csv"].write_text("\n".join(["category,video_id,split", *rows]) + "\n")
    path["categories"].write_text("\n".join(CLASSES) + "\n")
    write_zips(path["audio"], {name: features(rng, 8 + k % 4) for k, name in enumerate(ids)})
    write_zips(path["video"], {name: features(rng, 10, (7, 7, width)) for name in ids})
    write_zips(path["label"], {name: np.float32(rng.integers(0, 2, 10)) for name in ids})
    hashed_text(path["text"], PROMPTS)
    return ids


def ave(root, places, annotations, video=V):
    """AVE below `root`, on the real annotations: features of random numbers, labels and orders as published."""
    rng = np.random.default_rng(0)
    path = {name.split(".")[1]: root / place for name, place in places.items() if name.startswith("ave.")}
    path["audio"].parent.mkdir(parents=True, exist_ok=True)
    for kind, width in (("audio", (128,)), ("video", (7, 7, video))):
        with h5py.File(path[kind], "w") as file:
            file["avadataset"] = np.abs(rng.standard_normal((4143, 10, *width)))        # float64, as published
    shutil.copy(annotations / "ave" / "labels_reconstructed.h5", path["label"])
    for split in ("train", "val", "test"):
        shutil.copy(annotations / "ave" / f"{split}_order.h5", path[split])


def avvp(root, places, annotations, prefix="avvp", folder="AVVP"):
    """AVVP (or its shared classes) below `root`, on the released lists: one tiny zip for each name."""
    rng = np.random.default_rng(0)
    place = {name: root / value for name, value in places.items()}
    released = annotations / "released" / folder
    for side, kind in (("audio", "audio"), ("visual", "video")):
        target = place[f"{prefix}.{side}_csv"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(released / f"{folder}_eval_{side}_checked_combined.csv", target)
        names = {name[:11] for name in read_table(target, ("filename",), "\t")["filename"]}
        content = zip_bytes(features(rng, 10, (128,) if kind == "audio" else (7, 7, 2)))
        same_zips(place[f"avvp.{kind}"], names, content)
    shutil.copy(released / f"{folder}_Categories.txt", place[f"{prefix}.categories"])


def paths(root, places, dataset):
    """The places of one dataset below `root`, as `Options.paths` gives them."""
    return {name.split(".")[1]: Path(root) / place for name, place in places.items() if name.startswith(dataset + ".")}


def ucf_vggsound(root, places, annotations):
    """UCF-101 and the VGGSound side below `root`, on the released lists."""
    rng = np.random.default_rng(0)
    place = paths(root, places, "ucf_vggsound")
    released = annotations / "released" / "UCF101"
    place["ucf_csv"].parent.mkdir(parents=True, exist_ok=True)
    for key, name in (("ucf_csv", "ucf2vggsound.csv"), ("vggsound_csv", "vggsound2ucf.csv"),
                      ("ucf_categories", "UCF101sameVGGSound.txt"), ("vggsound_categories", "VGGSoundsameUCF101.txt")):
        shutil.copy(released / name, place[key])
    for table, kind, width in (("ucf_csv", "video", (7, 7, V)), ("vggsound_csv", "audio", (128,))):
        same_zips(place[kind], read_table(place[table], ("video_id",))["video_id"], zip_bytes(features(rng, 7, width)))
