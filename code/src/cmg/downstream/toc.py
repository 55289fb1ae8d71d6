"""Selections of code channels for heads: all, or those that TOC keeps (arXiv 2403.05168)."""

from dataclasses import dataclass

from cmg.models.toc import Selection
from cmg.utils.errors import InputError

OFF = ""                            # name of the variant without TOC
FIXED = (196, 1, 0)                 # --toc_preset fixed: the same setting for every task


@dataclass(frozen=True)
class Variant:
    """One selection of channels for a whole task; the name is stored in its result lines."""

    name: str               # OFF, "TOC 196,1,0", "TOC released"
    choices: dict           # (source, target) -> cmg.models.toc.Selection, or None for all channels


def variants(settings, task, directions, code_dim, released):
    """The variants from --toc_preset, then those from --choose_channel.

    The preset "released" covers the directions for which the published scripts have a setting. If there are none, it is
    skipped, unless it is the only variant.

    Args:
        settings: TocSettings.
        task: name of the task.
        directions: (source, target) modalities to run.
        code_dim: channels of a codebook.
        released: `TOC_RELEASED` of the system; its terms of the criterion override those of `settings`.

    Returns:
        nonempty list of Variant; without options, only the variant without TOC.

    Raises:
        InputError: a selection does not fit the codebooks, or there is no published setting.
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
                         "omit this task, or use --toc_preset fixed or --choose_channel")
    for variant in found:
        for choice in filter(None, variant.choices.values()):
            choice.counts(code_dim)
    return list({variant.name: variant for variant in found}.values())


def selection_of(ratios, count):
    """Selection of `count` channels; `ratios` has the fields of `TocRatios`."""
    return Selection(count, ratios.toc_max_num, ratios.toc_min_num, ratios.toc_terms)


def variant_name(choice):
    """Name of the variant that uses one Selection, or None for all channels, in every direction."""
    if choice is None:
        return OFF
    numbers = choice.choose_channel, choice.toc_max_num, choice.toc_min_num
    return f"TOC {','.join(map(str, numbers))}{_terms(choice.terms)}"


def _uniform(directions, choice):
    return Variant(variant_name(choice), dict.fromkeys(directions, choice))


def _terms(terms):
    return "" if terms == "both" else f" {terms} only"
