"""Which code channels the heads of a run see: all of them, or those that TOC keeps (h_dcid_toc.md B2, B3)."""

from dataclasses import dataclass

from errors import InputError
from model.toc import Selection

OFF = ""                            # name of the variant without TOC
FIXED = (196, 1, 0)                 # --toc_preset fixed: one setting for every task
PRESETS = ("off", "fixed", "released")

# choose_channel, toc_max_num, toc_min_num of the published scripts. They differ from task to task without a rule: they
# were chosen on the evaluation data. H-DCID's avvp_av is trained in the other direction by mistake there.
VIDEO_AUDIO, AUDIO_VIDEO = ("video", "audio"), ("audio", "video")
RELEASED = {
    "dcid": {
        "ave": {VIDEO_AUDIO: (224, 1, 1), AUDIO_VIDEO: (224, 1, 1)},
        "avvp": {VIDEO_AUDIO: (128, 3, 1), AUDIO_VIDEO: (128, 3, 1)},
        "ave_avvp": {VIDEO_AUDIO: (224, 1, 0), AUDIO_VIDEO: (196, 1, 0)},
        "ucf_vggsound": {VIDEO_AUDIO: (128, 1, 0), AUDIO_VIDEO: (224, 1, 0)},
    },
    "h_dcid": {
        "ave": {VIDEO_AUDIO: (128, 1, 0), AUDIO_VIDEO: (196, 1, 0)},
        "avvp": {VIDEO_AUDIO: (224, 1, 0), AUDIO_VIDEO: (128, 1, 0)},
        "ave_avvp": {VIDEO_AUDIO: (196, 1, 1), AUDIO_VIDEO: (224, 3, 1)},
        "ucf_vggsound": {VIDEO_AUDIO: (196, 1, 0), AUDIO_VIDEO: (224, 1, 1)},
    },
}


@dataclass(frozen=True)
class Variant:
    """One choice of channels for a whole task; its rows carry the name."""

    name: str               # OFF, "TOC 196,1,0", "TOC released"
    selections: dict        # (source, target) -> Selection, or None for all channels


def variants(opts, task, config):
    """What --choose_channel and --toc_preset ask for, in the order of presets, then of channel counts.

    The preset "released" covers the directions that the published scripts have; where it covers none it is left out,
    unless nothing else is asked for.

    Args:
        opts: directions and the TOC options of configs/opts.py.
        task: name of the task.
        config: model/config.py, of the encoder.

    Returns:
        list of Variant, never empty; without any option the one of TOC off.

    Raises:
        InputError: a setting that the codebooks cannot give, or no published setting.
    """
    found = []
    for preset in opts.toc_preset or ([] if opts.choose_channel else ["off"]):
        if preset == "off":
            found.append(Variant(OFF, dict.fromkeys(opts.directions)))
        elif preset == "fixed":
            found.append(_uniform(opts, Selection(*FIXED, opts.toc_terms)))
        else:
            known = RELEASED[config.system].get(task, {})
            covered = {d: Selection(*known[d], opts.toc_terms) for d in opts.directions if d in known}
            if covered:
                found.append(Variant("TOC released" + _terms(opts.toc_terms), covered))
    found += [_uniform(opts, selection_of(opts, count)) for count in opts.choose_channel or ()]
    if not found:
        pairs = ", ".join("->".join(direction) for direction in opts.directions)
        raise InputError(f"--toc_preset released: there is no published setting for {task} with {pairs}; "
                         "leave this task out, or use --toc_preset fixed or --choose_channel")
    for variant in found:
        for selection in filter(None, variant.selections.values()):
            selection.counts(config.code_dim)
    return list({variant.name: variant for variant in found}.values())


def check(opts, config):
    """InputError where --choose_channel asks for what the codebooks of an encoder cannot give; needs no data."""
    for count in opts.choose_channel or ():
        selection_of(opts, count).counts(config.code_dim)


def selection_of(opts, count):
    """`count` channels by the options of configs.opts.toc_arguments."""
    return Selection(count, opts.toc_max_num, opts.toc_min_num, opts.toc_terms)


def title(selection):
    """Name of the variant in which one Selection, or None for all channels, serves every direction."""
    if selection is None:
        return OFF
    numbers = selection.choose_channel, selection.toc_max_num, selection.toc_min_num
    return f"TOC {','.join(map(str, numbers))}{_terms(selection.terms)}"


def _uniform(opts, selection):
    return Variant(title(selection), dict.fromkeys(opts.directions, selection))


def _terms(terms):
    return "" if terms == "both" else f" {terms} only"
