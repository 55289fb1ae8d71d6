"""The table of tasks, used by arguments, `evaluate.py`, `prepare.py check`, tables, pictures and the ablation.

A new task consists of its dataset (cmg/data/sets/<name>.py), its script (<name>.py, <name>.sh) and one entry in
`TASKS`. The entry `custom` for the user's own data gets its files and directions from the command line
(`TaskEntry.of`). Heads and metrics, which need PyTorch, are referenced by kind (cmg/downstream/methods.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmg.data.clips import Clips
from cmg.data.csv import read_header
from cmg.data.manifest import CUSTOM, Manifest
from cmg.data.sets.ave import AVE
from cmg.data.sets.ave import SPLITS as AVE_SPLITS
from cmg.data.sets.ave_avvp import AVEShared, AVVPShared
from cmg.data.sets.avvp import AVVP
from cmg.data.sets.custom import Custom
from cmg.data.sets.ucf51 import UCF51
from cmg.data.sets.ucf_vggsound import UCFVGGSound
from cmg.data.sets.vggsound import VGGSound
from cmg.downstream.settings import OpenSetSettings
from cmg.models.config import in_order
from cmg.utils.errors import InputError

if TYPE_CHECKING:
    from cmg.downstream.methods import Method
    from cmg.downstream.task import Task

PACKAGE = "the CMG data package (github.com/haihuangcode/CMG)"
# Rows of the paper's tables that are shown below ours: NeurIPS 2023, best epoch on the evaluation set, released
# protocol.
UNI_CODE_AVT = "published: Uni-Code, AVT 40K (Table 3)"
SAME_AVT = "published: same modality, AVT 40K (Table 3)"
UNI_CODE_AV = "published: Uni-Code, AV 40K (Table 1)"
BASELINE_AV = "published: baseline, AV 40K (Table 1)"
PAIRED = ("video", "audio", "text")     # the order of the papers' pairs


@dataclass(frozen=True)
class Split:
    """Clips opened by one call of a loader; a run and `prepare.py check` make the same call."""

    title: str              # in reports
    roles: tuple[str, ...]            # any of "train", "val", "test"
    load: Callable[..., Clips]      # (on_bad_clip=..., in_memory=..., seconds=..., padding=...) -> cmg.data.clips.Clips


@dataclass(frozen=True)
class TaskEntry:
    """Everything the project knows about a task.

    `required` names the files that a run opens; the data counts as present if the first exists. `optional` ones may be
    missing. A loader gets them by their short names: "ave.audio" is "audio" in the task `ave`, "ave_audio" elsewhere.
    """

    name: str                       # for --tasks, result lines and the script
    label: str                      # in tables
    about: str                      # description with reference to the papers
    family: str                     # prefix of the names of its own files
    required: tuple[str, ...]       # dotted names of cmg.data.layout.DATA_PATHS
    source: str                     # where to get the files
    directions: dict[str, tuple[str, str]]      # --dataset_name -> (labeled modality, tested modality)
    epochs: int                     # of the heads, as published
    kind: str                       # key of METHODS (cmg/downstream/methods.py)
    best_by: str                    # metric that chooses the best epoch
    parts: Callable[..., list[Split]]       # (short name -> Path, modalities, protocol) -> list of Part
    optional: tuple[str, ...] = ()
    prompts: str | None = None      # file of the class prompts' word vectors; None: no direction with text
    modalities: tuple[str, ...] = ("video", "audio")        # of directions, in evaluate.py's order
    always: tuple = ()              # modalities that every direction reads, even if not named by it
    column: str | None = None       # metric in the papers' main table (NeurIPS 2023, Table 3); None: no column
    published: dict[str, tuple[float, ...]] = field(default_factory=dict) # row -> values by direction
    settings: type[Any] | None = None       # dataclass of arguments of this task, passed to its class

    def of(self, manifest: Path | None, kinds: Mapping[str, str | None]) -> "TaskEntry":
        """This entry; for the user's own data, with its files and modalities and all directions between them.

        Args:
            manifest: Path of --manifest, or None.
            kinds: modality -> kind of --features, None for any kind that audio, video and text may have.
        """
        if self.family != CUSTOM or not manifest:
            return self
        try:
            has_times = "onset" in read_header(manifest)
        except InputError:                      # code that reads all of it reports what is wrong
            has_times = False
        modalities = in_order([m for m, kind in kinds.items() if not has_times or m != "text" and kind != "tokens"],
                              PAIRED)           # words have no time axis
        return replace(
            self, required=(f"{CUSTOM}.manifest", *(f"{CUSTOM}.{m}" for m in modalities)), modalities=modalities,
            prompts=f"{CUSTOM}.text" if "text" in modalities else None, parts=partial(own_parts, kinds=kinds),
            directions={f"{source}->{target}": (source, target) for source, target in permutations(modalities, 2)})

    def needed(self) -> tuple[str, ...]:
        """Files that the script's own directions require."""
        always_text = all("text" in direction for direction in self.directions.values())
        return (*self.required, self.prompts) if self.prompts and always_text else self.required

    def all_names(self) -> tuple[str, ...]:
        """Every file that a run may open."""
        return (*self.required, *self.optional, *((self.prompts,) if self.prompts else ()))

    @property
    def features(self) -> tuple[str, ...]:
        """Last parts of the dotted names of a modality's features."""
        return tuple(dict.fromkeys((*self.modalities, *self.always, *PAIRED)))

    def names_of(self, modalities: Sequence[str]) -> list[str]:
        """Those of `all_names` that directions with these modalities depend on."""
        used = {*modalities, *self.always}
        return [name for name in self.all_names() if name.split(".")[1] in used
                or name.split(".")[1] not in self.features]

    def paths(self, path_of: Callable[[str], Path]) -> dict[str, Path]:
        """Short name -> Path, as expected by loaders; `path_of`: dotted name -> Path."""
        return {name.removeprefix(f"{self.family}.").replace(".", "_"): path_of(name) for name in self.all_names()}

    @property
    def method(self) -> "Method":
        """How heads are trained and evaluated."""
        from cmg.downstream.methods import METHODS  # here, because the command line does not import PyTorch
        return METHODS[self.kind]

    def open(self, path_of: Callable[[str], Path], modalities: Sequence[str], protocol: str, settings: Any = None,
             **reading: Any) -> "Task":
        """The task with its data read; `reading`: keyword arguments of the loaders (cmg/data/clips.py)."""
        roles: dict[str, dict[str, Clips]] = {"train": {}, "val": {}, "test": {}}
        for part in self.parts(self.paths(path_of), modalities, protocol):
            clips = part.load(**reading)
            for role in part.roles:
                roles[role] |= dict.fromkeys(clips.modalities, clips)
        more = {"settings": settings or self.settings()} if self.settings else {}
        return self.method.task(self.name, self.method.head, self.best_by, **roles, **more)

    def usable(self, path_of: Callable[[str], Path]) -> tuple[str, ...]:
        """Modalities available for directions with the present data; text needs the prompts' word vectors."""
        return tuple(m for m in self.modalities if m != "text" or self.prompts and path_of(self.prompts).exists())


def ave_parts(paths, modalities, protocol):
    """Heads are trained on the train split and tested on the test split; the released script tests on its TRAINING
    clips, in the other modality."""
    if protocol == "released":
        return [Split("train", ("train", "test"), partial(AVE, paths, modalities, "train"))]
    return [Split(split, (split,), partial(AVE, paths, modalities, split)) for split in AVE_SPLITS]


def avvp_parts(paths, modalities, protocol):
    """As published, a head is trained on one modality's annotated clips and tested on the other's, which are mostly the
    same videos."""
    return [Split(m, ("train", "test"), partial(AVVP, paths, m)) for m in ("audio", "video") if m in modalities]


def ave_avvp_parts(paths, modalities, protocol):
    """Clips of the shared classes: AVE's for training, AVVP's for testing."""
    return [Split(f"{side} {m}", (role,), partial(loader, paths, m))
            for side, role, loader in (("AVE", "train", AVEShared), ("AVVP", "test", AVVPShared))
            for m in ("audio", "video") if m in modalities]


def ucf_vggsound_parts(paths, modalities, protocol):
    """The clips of each side are used to train its head and to test that of the other side; prompts are those of the
    UCF clips' classes."""
    sides = [("audio",)] if "audio" in modalities else []
    if {"video", "text"} & set(modalities):
        sides.append(("video", "text") if "text" in modalities else ("video",))
    return [Split(side[0], ("train", "test"), partial(UCFVGGSound, paths, side)) for side in sides]


def ave_oscmg_parts(paths, modalities, protocol):
    """AVE's own splits, as published for this task."""
    return ave_parts(paths, modalities, "default")


def ucf_oscmg_parts(paths, modalities, protocol):
    """UCF-101 clips with sound; heads are tested on all of them, including the training clips in the other modality."""
    return [Split(m, ("train", "test"), partial(UCF51, paths, (m,))) for m in ("audio", "video") if m in modalities]


def retrieval_parts(paths, modalities, protocol):
    """VGGSound-AVEL: trained on the train part of the list and tested on the test part, with audio from the same
    clips."""
    modalities = ("audio", *(m for m in modalities if m != "audio"))
    return [Split(split, (split,), partial(VGGSound, paths, modalities, (split,)))
            for split in ("train", "val", "test")]


def own_parts(paths, modalities, protocol, kinds=None):
    """The manifest's splits: heads are trained on train and tested on test; val, if present, chooses the epoch."""
    has_val = Manifest(paths["manifest"]).ids(("val",))
    return [Split(split, (split,), partial(Custom, paths, modalities, (split,), True, kinds=kinds))
            for split in ("train", *(("val",) if has_val else ()), "test")]


OPEN_SET: dict[str, Any] = {"kind": "open set", "best_by": "hos", "settings": OpenSetSettings}
ENTRIES = (
    TaskEntry(
        "ave", "AVE", "AVE event classification, one class per clip (NeurIPS 2023, Table 1)", "ave",
        ("ave.label", "ave.audio", "ave.video", "ave.train", "ave.val", "ave.test"), optional=("ave.categories",),
        source="AVE_Dataset features of github.com/YapengTian/AVE-ECCV18, folder AVE; lists: prepare.py lists",
        directions={"ave_va": ("video", "audio"), "ave_av": ("audio", "video")},
        modalities=("video", "audio", "text"), prompts="ave.text",
        epochs=30, kind="clips", best_by="accuracy", parts=ave_parts, column="accuracy",
        published={UNI_CODE_AVT: (54.1, 55.0), SAME_AVT: (64.8, 65.8), UNI_CODE_AV: (47.7, 52.3),
                   BASELINE_AV: (5.5, 5.4)}),
    TaskEntry(
        "avvp", "AVVP", "AVVP event localization, second by second (NeurIPS 2023, Table 1)", "avvp",
        ("avvp.audio_csv", "avvp.visual_csv", "avvp.categories", "avvp.audio", "avvp.video"),
        source=f"{PACKAGE}, folder AVVP; lists from github.com/YapengTian/AVVP-ECCV20 by prepare.py lists",
        directions={"avvp_va": ("video", "audio"), "avvp_av": ("audio", "video")},
        epochs=50, kind="seconds", best_by="precision", parts=avvp_parts, column="precision",
        published={UNI_CODE_AVT: (63.4, 71.0), SAME_AVT: (71.0, 72.9), UNI_CODE_AV: (64.0, 65.6),
                   BASELINE_AV: (6.9, 8.7)}),
    TaskEntry(
        "ave_avvp", "AVE>AVVP", "trained on AVE, tested on AVVP (NeurIPS 2023, Table 3)", "ave_avvp",
        ("ave_avvp.audio_csv", "ave_avvp.visual_csv", "ave_avvp.categories", "ave_avvp.label", "ave_avvp.order",
         "ave.audio", "ave.video", "avvp.audio", "avvp.video"),
        source=f"{PACKAGE}, folder AVE_AVVP; or prepare.py lists from AVE's and AVVP's annotations",
        directions={"ave_avvp_va": ("video", "audio"), "ave_avvp_av": ("audio", "video")},
        epochs=50, kind="seconds", best_by="f1", parts=ave_avvp_parts, column="f1",
        published={UNI_CODE_AVT: (53.0, 52.4)}),
    TaskEntry(
        "ucf_vggsound", "UCF/VGG", "UCF-101 video and VGGSound audio, one class per clip (NeurIPS 2023, Table 3)",
        "ucf_vggsound",
        ("ucf_vggsound.ucf_csv", "ucf_vggsound.vggsound_csv", "ucf_vggsound.ucf_categories",
         "ucf_vggsound.vggsound_categories", "ucf_vggsound.audio", "ucf_vggsound.video"),
        source=f"{PACKAGE}, folder UCF101; VGGSound audio from vggsound40k",
        directions={"ucfv_vgga": ("video", "audio"), "vgga_ucfv": ("audio", "video")},
        modalities=("video", "audio", "text"), prompts="ucf_vggsound.text",
        epochs=30, kind="clips", best_by="accuracy", parts=ucf_vggsound_parts, column="accuracy",
        published={UNI_CODE_AVT: (67.1, 60.6), SAME_AVT: (80.0, 85.4)}),
    TaskEntry(
        "retrieval", "retrieval", "X-to-audio retrieval (NeurIPS 2023, Table 5)", "vggsound",
        ("vggsound.csv", "vggsound.audio", "vggsound.video"), prompts="vggsound.text",
        source=f"{PACKAGE}, folder vggsound40k",
        directions={"V2T": ("video", "text"), "T2V": ("text", "video")}, modalities=("video", "text"),
        always=("audio",),
        epochs=30, kind="retrieval", best_by="r@5", parts=retrieval_parts),
    TaskEntry(
        "ave_oscmg", "AVE open", "AVE with unknown classes in the test part (ICCV 2025)", "ave",
        ("ave.label", "ave.audio", "ave.video", "ave.train", "ave.val", "ave.test"), optional=("ave.categories",),
        source="AVE_Dataset features of github.com/YapengTian/AVE-ECCV18, folder AVE; lists: prepare.py lists",
        directions={"ave_va": ("video", "audio"), "ave_av": ("audio", "video")}, parts=ave_oscmg_parts, epochs=25,
        **OPEN_SET),
    TaskEntry(
        "ucf_oscmg", "UCF51 open", "UCF-101 clips with sound, with unknown classes in the test part (ICCV 2025)",
        "ucf51", ("ucf51.csv", "ucf51.categories", "ucf51.audio", "ucf51.video"),
        source="UCF-101 features, folder UCF101; lists: prepare.py lists",
        directions={"ucf_va": ("video", "audio"), "ucf_av": ("audio", "video")}, parts=ucf_oscmg_parts, epochs=16,
        **OPEN_SET),
    TaskEntry(
        "ucf_vggsound_oscmg", "UCF/VGG open", "UCF-101 video and VGGSound audio, with unknown classes in the test part "
        "(ICCV 2025)", "ucf_vggsound",
        ("ucf_vggsound.ucf_csv", "ucf_vggsound.vggsound_csv", "ucf_vggsound.ucf_categories",
         "ucf_vggsound.vggsound_categories", "ucf_vggsound.audio", "ucf_vggsound.video"),
        source=f"{PACKAGE}, folder UCF101; VGGSound audio from vggsound40k",
        directions={"ucfv_vgga": ("video", "audio"), "vgga_ucfv": ("audio", "video")}, parts=ucf_vggsound_parts,
        epochs=25, **OPEN_SET),
    TaskEntry(
        CUSTOM, "own", "Your own clips: their class, or events second by second if the manifest has onsets", CUSTOM,
        (f"{CUSTOM}.manifest",), source="your own files, as described in code/docs/your-data.md", directions={},
        modalities=(), epochs=30, kind="own", best_by="accuracy", parts=own_parts),
)
TASKS = {entry.name: entry for entry in ENTRIES}
