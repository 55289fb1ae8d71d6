"""IoU and F against plain loops and cases small enough for the eye."""


import numpy as np
import pytest
import torch
from network import metrics


def plain_f(logits, masks):
    """F of a set of frames, threshold by threshold (the oracle)."""
    probability = torch.from_numpy(logits).sigmoid().numpy()
    thresholds = torch.linspace(0, 1, 255).numpy()
    curves = []
    for p, g in zip(probability, masks, strict=True):
        if not g.any():
            continue
        curve = []
        for t in thresholds:
            chosen = p >= t
            precision, recall = (chosen & g).sum() / (chosen.sum() + 1e-20), (chosen & g).sum() / (g.sum() + 1e-20)
            bottom = 0.3 * precision + recall
            curve.append(1.3 * precision * recall / bottom if bottom > 0 else 0.0)
        curves.append(curve)
    return np.mean(curves, 0).max() if curves else 0.0


@pytest.mark.parametrize("scale", (0.3, 3.0, 60.0))
def test_f_equals_plain_loops(scale):
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal((4, 9, 7)) * scale).astype(np.float32)
    masks = rng.random((4, 9, 7)) > 0.6
    masks[2] = False
    counted = metrics.SetMetrics()
    counted.add(torch.from_numpy(logits), torch.from_numpy(masks).float())
    assert counted.result()["F"] == pytest.approx(plain_f(logits, masks), abs=1e-6)


def test_iou_by_eye():
    logits = torch.tensor([[[1.0, 1.0], [-1.0, 0.0]], [[1.0, -1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    masks = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    assert metrics.frame_iou(logits, masks).tolist() == pytest.approx([1 / 3, 3 / 4, 0.0], abs=1e-6)


def test_whole_set_figures_do_not_depend_on_the_batches():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(11, 8, 8, generator=generator)
    masks = (torch.randn(11, 8, 8, generator=generator) > 0.5).float()
    masks[8:] = 0
    results = {"default": [], "released": []}
    for size in (1, 4, 11):
        counted = metrics.SetMetrics()
        for part in zip(logits.split(size), masks.split(size), strict=True):
            counted.add(*part)
        for protocol, values in results.items():
            values.append(counted.result(protocol))
    one, *others = results["default"]
    assert all(other == pytest.approx(one, abs=1e-9) for other in others)
    assert results["released"][0]["F"] != pytest.approx(results["released"][1]["F"], abs=1e-3)


def test_empty_predictions_and_no_truth_at_all():
    counted = metrics.SetMetrics()
    counted.add(torch.full((2, 4, 4), -5.0), torch.zeros(2, 4, 4))
    assert counted.result() == {"mIoU": pytest.approx(1.0, abs=1e-6), "F": 0.0}
