"""Golden numbers of the downstream heads and figures: folder -> checks, merged into parity.py."""

import torch

from cmg.data.labels import clip_class
from cmg.downstream import metrics
from cmg.models.heads import ClipHead, ExpLog, SegmentHead
from golden_io import FORWARD, Check, det, load, relative_error


def _filled(head, section):
    """The head with its weights drawn by the golden rule (`explog` is no part of the published head)."""
    head = head.double()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if not name.startswith("explog."):
                parameter.copy_(det(f"{section}.{name}", tuple(parameter.shape)))
    return head


def check_heads(folder):
    """Clip and segment heads, ExpLog, precision and recall, clip classes and accuracy against `parts`."""
    arrays, facts = load(folder, "parts")
    arrays = {name: torch.from_numpy(value) for name, value in arrays.items()}
    width, classes = arrays["head_input"].shape[-1], arrays["clip_logits"].shape[-1]
    clip = _filled(ClipHead(width, classes), "clip_head")
    outputs = arrays["segment_logits"].shape[-1]
    segment = _filled(SegmentHead(width, outputs - 1), "segment_head")
    scores = metrics.segment_scores(arrays["metric_logits"][None], arrays["metric_labels"][None])
    targets = clip_class(arrays["clip_labels"])
    shapes = {name: list(tensor.shape) for name, tensor in clip.state_dict().items()}
    checks = {
        "clip head": relative_error(clip(arrays["head_input"]), arrays["clip_logits"]),
        "clip head, names and shapes": 0.0 if shapes == facts["head_manifest"] else float("inf"),
        "segment head": relative_error(segment(arrays["head_input"]).flatten(0, 1), arrays["segment_logits"]),
        "explog loss": relative_error(ExpLog(outputs)(arrays["metric_logits"], arrays["metric_labels"]),
                                      facts["explog_loss"]),
        "precision": relative_error(scores["precision"] / 100, facts["precision"]),
        "recall": relative_error(scores["recall"] / 100, facts["recall"]),
        "clip targets": 0.0 if targets.tolist() == facts["clip_targets"] else float("inf"),
        "clip accuracy": relative_error(metrics.accuracy(arrays["clip_scores"], targets),
                                        facts["clip_accuracy_percent"]),
    }
    return [Check("parts", group, error, FORWARD) for group, error in checks.items()]


CHECKS = {"parts": check_heads}
