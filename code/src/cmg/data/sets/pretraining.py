"""Datasets for pretraining by --dataset_name, used by `pretrain.py` and `prepare.py check`."""

from cmg.data.manifest import CUSTOM
from cmg.data.sets import ave
from cmg.data.sets.ave import AVE
from cmg.data.sets.custom import Custom
from cmg.data.sets.vggsound import VGGSound

SETS = {                    # --dataset_name -> (list, modalities); the published names, and VT
    "vggsound_AVT": ("vggsound", ("audio", "video", "text")),
    "vggsound": ("vggsound", ("audio", "video")),
    "vggsound_AT": ("vggsound", ("audio", "text")),
    "vggsound_VT": ("vggsound", ("video", "text")),
    "vggsound81k": ("vggsound81k", ("audio", "video")),
    "vggsound179k": ("vggsound179k", ("audio", "video")),
    "ave": ("ave", ("audio", "video")),
    # the lists of CoDAAR's program, 40,801 and 87,323 clips, for every set of modalities
    **{f"vggsound_{letters}_{size}": (source, modalities)
       for size, source in (("40k", "vggsound"), ("90k", "vggsound90k"))
       for letters, modalities in (("AVT", ("audio", "video", "text")), ("AV", ("audio", "video")),
                                   ("AT", ("audio", "text")), ("VT", ("video", "text")))},
}
SOURCE = "the CMG data package (github.com/haihuangcode/CMG), folder vggsound40k; see data/README.md"


def modalities_of(name, own=()):
    """Modalities of a pretraining set; `own` are those of the user's data."""
    return tuple(own) if name == CUSTOM else SETS[name][1]


def splits_of(name):
    """Default splits for pretraining."""
    return ["train"] if name == CUSTOM else ["train", "test", "val"]


def path_names(name, own=()):
    """Dotted names of the paths that a pretraining set needs; `own` are the modalities of the user's data."""
    if name == CUSTOM:
        return [f"{CUSTOM}.{short}" for short in ("manifest", *own)]
    source, modalities = SETS[name]
    if source == "ave":
        return [f"ave.{key}" for key in ("label", *modalities, *ave.SPLITS)]
    return [f"{source}.csv", *(f"vggsound.{m}" for m in modalities)]


def open_clips(name, path_of, splits, own=(), **reading):
    """Open a pretraining set.

    Args:
        name: a key of SETS, or CUSTOM.
        path_of: dotted name -> Path.
        splits: splits of a VGGSound list or of the user's; AVE always uses all.
        own: modality -> kind in the user's data, None for any kind that audio, video and text may have.
        reading: on_bad_clip, in_memory, seconds and padding (cmg/data/clips.py).
    """
    paths = {dotted.split(".")[1]: path_of(dotted) for dotted in path_names(name, own)}
    if name == CUSTOM:
        return Custom(paths, tuple(own), splits, kinds=own, **reading)
    source, modalities = SETS[name]
    if source == "ave":
        return AVE(paths | {"categories": path_of("ave.categories")}, modalities, ave.SPLITS, **reading)
    return VGGSound(paths, modalities, splits, **reading)
