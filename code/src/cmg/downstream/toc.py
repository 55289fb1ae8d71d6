"""Which code channels the heads of a run see: all of them, or those that TOC keeps (arXiv 2403.05168)."""

from dataclasses import dataclass

from cmg.models.toc import TERMS, Selection
from cmg.utils.errors import InputError
from cmg.utils.settings import setting

OFF = ""                            # name of the variant without TOC
FIXED = (196, 1, 0)                 # --toc_preset fixed: one setting for every task


@dataclass(frozen=True)
class TocRatios:
    """TOC's numbers but for the first."""

    toc_max_num: int = setting(1, "TOC: parts of the kept channels that are best; the ratio to --toc_min_num counts")
    toc_min_num: int = setting(0, "TOC: parts that are worst; with 3 and 1, of 128 channels the best 96, the worst 32")
    toc_terms: str = setting("both", "TOC: terms of the criterion; one alone is an ablation", choices=TERMS)


@dataclass(frozen=True)
class TocSettings(TocRatios):
    """What a downstream call asks of TOC."""

    choose_channel: tuple = setting(None, "TOC: code channels kept of each codebook (off if absent); several counts "
                                    "are a sweep", type=int, nargs="+", metavar="S")
    toc_preset: tuple = setting(None, "TOC: off; fixed 196 of 256 channels; released, the published numbers of each "
                                "task and direction (the published scripts also set --n_epoch 50 for ave, 100 "
                                "elsewhere, this flag does not; directions without any are skipped); several give a "
                                "row each (default: off)", nargs="+",
                                choices=("off", "fixed", "released"))


@dataclass(frozen=True)
class Variant:
    """One choice of channels for a whole task; its result lines carry the name."""

    name: str               # OFF, "TOC 196,1,0", "TOC released"
    choices: dict           # (source, target) -> cmg.models.toc.Selection, or None for all channels


def variants(settings, task, directions, code_dim, released):
    """What --choose_channel and --toc_preset ask for, in the order of presets, then of channel counts.

    The preset "released" covers the directions that the published scripts have; where it covers none it is skipped,
    unless nothing else is asked for.

    Args:
        settings: TocSettings.
        task: name of the task.
        directions: (source, target) modalities to run.
        code_dim: channels of a codebook.
        released: `TOC_RELEASED` of the system; terms of the criterion in it win over `settings`.

    Returns:
        list of Variant, never empty; without any option the one of TOC off.

    Raises:
        InputError: a setting that the codebooks cannot give, or no published setting.
    """
    found = []
    for preset in settings.toc_preset or ([] if settings.choose_channel else ["off"]):
        if preset == "off":
            found.append(Variant(OFF, dict.fromkeys(directions)))
        elif preset == "fixed":
            found.append(_uniform(directions, Selection(*FIXED, settings.toc_terms)))
        else:
            known = released.get(task, {})
            covered = {d: Selection(*known[d][:3], *(known[d][3:] or (settings.toc_terms,)))
                       for d in directions if d in known}
            if covered:
                found.append(Variant("TOC released" + _terms(settings.toc_terms), covered))
    found += [_uniform(directions, selection_of(settings, count)) for count in settings.choose_channel or ()]
    if not found:
        pairs = ", ".join("->".join(direction) for direction in directions)
        raise InputError(f"--toc_preset released: there is no published setting for {task} with {pairs}; "
                         "leave this task out, or use --toc_preset fixed or --choose_channel")
    for variant in found:
        for choice in filter(None, variant.choices.values()):
            choice.counts(code_dim)
    return list({variant.name: variant for variant in found}.values())


def selection_of(shares, count):
    """`count` channels; `shares`: anything with the fields of `TocRatios`."""
    return Selection(count, shares.toc_max_num, shares.toc_min_num, shares.toc_terms)


def title(choice):
    """Name of the variant in which one Selection, or None for all channels, serves every direction."""
    if choice is None:
        return OFF
    numbers = choice.choose_channel, choice.toc_max_num, choice.toc_min_num
    return f"TOC {','.join(map(str, numbers))}{_terms(choice.terms)}"


def _uniform(directions, choice):
    return Variant(title(choice), dict.fromkeys(directions, choice))


def _terms(terms):
    return "" if terms == "both" else f" {terms} only"
