"""Numbers that lie: what makes figures worthless although nothing fails. Each is one line with what to do."""

from cmg.data import origins


def other_features(checkpoint, recorded, places):
    """Features of another kind than those that a checkpoint was pretrained on.

    Args:
        checkpoint: its name.
        recorded: modality -> description (cmg/data/origins.py) that the checkpoint keeps; None: it keeps none.
        places: (modality, path) of the data.

    Returns:
        lines, one for each place that does not fit.
    """
    lines = []
    for modality, path in places:
        if recorded is None or modality not in recorded or not path.exists():
            continue
        differ = origins.difference(recorded[modality], origins.describe(path, modality))
        if differ:
            lines.append(f"warning: {checkpoint}: pretrained on {modality} features of {differ[0]}; {path} has "
                         f"features of {differ[1]}: codes and figures mean nothing on another kind of features; make "
                         f"both with one {'--backend and --model' if modality == 'text' else 'encoder'}")
    return lines


def nothing_shared(task, direction, labelled, tested):
    """Line where a head was trained on codes none of which occurs in what it is tested on; None otherwise.

    Args:
        task: its name.
        direction: (labelled modality, tested modality).
        labelled, tested: (U,) or (U, L) numbers of the codes that occur (CodeSet.numbers), without repetition.
    """
    columns = zip(*(numbers.reshape(len(numbers), -1).T.tolist() for numbers in (labelled, tested)))
    apart = [level for level, (ours, theirs) in enumerate(columns) if not set(ours) & set(theirs)]
    if not apart:
        return None
    where = "" if labelled.ndim == 1 else f" of codebook {', '.join(str(level + 1) for level in apart)}"
    return (f"warning: {task} {'->'.join(direction)}: no code{where} of {direction[0]} occurs in {direction[1]}: the "
            "head is tested on codes that it never saw, and transfers no more than these lie near to those that it "
            "knows; pretrain longer or with --recipe shared (docs/defaults.md), and see whether the features of a clip "
            "belong together")


def places_of(modalities, names, place):
    """(modality, path) of those dotted names that are features of some modalities; `place`: dotted name -> Path."""
    return [(name.split(".")[1], place(name)) for name in names if name.split(".")[1] in modalities]
