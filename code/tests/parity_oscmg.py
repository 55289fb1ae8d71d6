"""Open-set figures against the golden numbers: thresholds, rates, AUROC, closed-set accuracy, the fixed threshold."""

import math

import torch

from cmg.downstream.open_set import Rates, Scores, fixed_threshold
from golden_io import FORWARD, load
from parity_dcid import Worst


def tensor(values):
    """Numbers as float64; None, what does not exist, as NaN."""
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)


def defined(ours, theirs):
    """Both with what does not exist as -1: it must be missing on the same places."""
    return torch.nan_to_num(ours.double(), -1.0), torch.nan_to_num(tensor(theirs), -1.0)


def check_oscmg(folder):
    """Every case, epoch by epoch."""
    arrays, facts = load(folder, "oscmg")
    worst = Worst("oscmg")
    for case, golden in facts.items():
        if f"{case}_logits" not in arrays:
            continue
        logits = torch.from_numpy(arrays[f"{case}_logits"])
        logits = logits if logits.ndim == 3 else logits.unsqueeze(0)                            # (epoch, N, n)
        scores = Scores.of(logits, torch.from_numpy(arrays[f"{case}_classes"]))
        thresholds = scores.thresholds()
        rates = scores.rates(thresholds)
        for epoch, theirs in enumerate(golden["epochs"]):
            worst.add("thresholds", thresholds[epoch], theirs["thresholds"], FORWARD)
            sure = [k for k in range(len(theirs["thresholds"])) if k not in theirs["rounding_sensitive"]]
            for name in ("os", "unk", "hos"):
                worst.add("OS*, UNK, HOS", *defined(getattr(rates, name)[epoch][sure],
                                                    [theirs[name][k] for k in sure]), FORWARD)
            worst.add("AUROC", *defined(scores.auroc()[epoch:epoch + 1], [theirs["auroc"]]), FORWARD)
            worst.add("closed-set accuracy", *defined(scores.closed_accuracy()[epoch:epoch + 1],
                                                      [theirs["closed_accuracy"]]), FORWARD)
        best = rates.best()
        last = Rates(best.os, best.unk, best.hos).best()
        wanted = golden["best"] or dict.fromkeys(("os", "unk", "hos"))
        for name in ("os", "unk", "hos") if golden["best"] else ("hos",):
            worst.add("the reported triple", *defined(getattr(last, name).reshape(1), [wanted[name]]), FORWARD)
        if golden.get("fixed_threshold"):
            fixed = golden["fixed_threshold"]
            threshold = fixed_threshold(torch.from_numpy(arrays[f"{case}_train_scores"]))
            worst.add("fixed threshold", threshold, fixed["threshold"], FORWARD)
            found = scores.rates(threshold.expand(len(logits), 1))
            for name in ("os", "unk", "hos"):
                worst.add("fixed threshold: rates", getattr(found, name)[fixed["epoch"], 0], fixed[name], FORWARD)
    return worst.checks()


CHECKS = {"oscmg": check_oscmg}
