"""Steps of `prepare.py check` for each dataset: the files that a run opens, and its loader calls."""

from functools import partial

from cmg.data.csv import read_header, read_table
from cmg.data.manifest import CUSTOM, Manifest
from cmg.data.sets import pretraining
from cmg.data.sets.ave import CATEGORIES
from cmg.data.sets.ave_avvp import SHARED
from cmg.data.sets.custom import is_prompts_file
from cmg.data.sets.vggsound import SPLITS as VGGSOUND_SPLITS
from cmg.downstream.tasks import TASKS
from cmg.models.config import modalities_of
from cmg.prepare import check as checking
from cmg.utils.errors import InputError

AVS = ("avs.csv", "avs.frames", "avs.masks", "avs.audio", "avs.prompts", "avs.text")
AVS_SOURCE = "AVSBench, github.com/OpenNLPLab/AVSBench (on request), folder AVSBench; audio from the CMG data package"
# Class lists whose order defines the labels: family -> function (dotted name -> path) -> pairs of lists.
ORDERS = {
    "ave": lambda path_of: [(path_of("ave.categories"), ("the published labels", list(CATEGORIES)))],
    "ave_avvp": lambda path_of: [(path_of("ave_avvp.categories"), ("the published labels", list(SHARED)))],
    "ucf_vggsound": lambda path_of: [(path_of("ucf_vggsound.ucf_categories"),
                                      path_of("ucf_vggsound.vggsound_categories"))],
}


def of(name, opts):
    """(dotted names of the files that a run needs, where to download them, steps of the check).

    Args:
        name: a pretraining set, a task, or "avs".
        opts: options of `prepare.py check`; `opts.length` is T, which a step sets with --seconds auto.
    """
    path_of = opts.data_path
    if name == "avs":
        return AVS, AVS_SOURCE, checking.avs({dotted.split(".")[1]: path_of(dotted) for dotted in AVS})
    if name in TASKS:
        entry = opts.entry(name)
        modalities = modalities_of([entry.usable(path_of)])
        if name == CUSTOM:
            return entry.required, entry.source, _own_steps(opts, entry, modalities)
        parts = entry.parts(entry.paths(path_of), modalities, "default")
        steps = [checking.clips(part.title, _fitted(opts, part.load), part.roles) for part in parts]
        if entry.family in ORDERS:
            steps.append(checking.class_orders(ORDERS[entry.family](path_of)))
        if "text" in modalities:
            steps.append(checking.text(path_of(entry.prompts), path_of(f"{entry.family}.prompts")))
        elif entry.prompts:
            steps.append(checking.no_text(path_of(entry.prompts)))
        return entry.needed(), entry.source, steps
    needed = pretraining.path_names(name)
    load = partial(pretraining.open_clips, name, path_of, VGGSOUND_SPLITS)
    steps = [checking.vggsound_list(path_of(needed[0]), path_of("vggsound.categories")), *_length_steps(opts, load),
             checking.clips("clips", _fitted(opts, load), partial(_splits_of, path_of(needed[0]), {}))]
    if "vggsound.text" in needed:
        steps.append(checking.text(path_of("vggsound.text"), path_of("vggsound.prompts")))
    return needed, pretraining.SOURCE, steps


def _length_steps(opts, load):
    """With --seconds auto, the step that sets T, `opts.length`, to the length of the longest clip, like pretrain.py."""
    def step(report, title):
        opts.length = load(seconds=None, on_bad_clip="skip").longest()
        report.lines.append(f"{title}: T = {opts.length}, from the longest clip (--seconds auto)")
    return [("length", step)] if opts.seconds == "auto" else []


def _fitted(opts, load):
    """A loader for clips of T seconds, where T may be set after this call."""
    return lambda **reading: load(seconds=opts.length, **reading)


def _splits_of(path, known, clip):
    """Splits of a clip in the VGGSound list at `path`, which is read once into `known`."""
    if not known:
        is_bare = "split" not in read_header(path)
        table = {} if is_bare else read_table(path, ("video_id", "split"))
        known |= {"": ""} | dict(zip(table.get("video_id", ()), table.get("split", ())))
    return (known[clip],) if clip in known else ()


def _own_steps(opts, entry, modalities):
    """Steps for the user's own data: the pretraining data, and the task's splits if there are labels."""
    load = partial(pretraining.open_clips, CUSTOM, opts.data_path, ("train",), opts.own_modalities)
    steps = [("manifest", lambda report, title: checking.manifest(report, opts.manifest, opts.own_modalities)),
             *_length_steps(opts, load), checking.pretraining(tuple(opts.own_modalities), lambda: opts.length)]
    try:
        has_labels = "label" in Manifest(opts.manifest).columns
    except InputError:                      # reported by the first step
        return steps
    steps.append(checking.clips("pretraining", _fitted(opts, load), ("train",)))
    if has_labels:
        steps += [checking.clips(part.title, _fitted(opts, part.load), part.roles)
                  for part in entry.parts(entry.paths(opts.data_path), modalities, "default")]
    if "text" in opts.own and is_prompts_file(opts.own["text"]):
        steps.append(checking.text(opts.own["text"]))
    return steps
