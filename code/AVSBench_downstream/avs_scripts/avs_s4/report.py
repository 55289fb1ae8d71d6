"""Results of a test: result lines, masks and overlays."""

import numpy as np
from PIL import Image

from cmg.data.sets.avs_s4 import DEVIATION, MEAN, SECONDS
from cmg.report import style
from cmg.utils.files import as_input_error

TINT = np.array([1.0, 0.35, 0.1])       # color of predicted and true masks in the figure


def rows(counted, modalities, protocol, common):
    """Result rows of one network, without selection: every kind of query and both metrics, in percent.

    Args:
        counted: kind of query -> SetMetrics (evaluation.evaluate): "target", "source" (absent if the modalities are
            equal), "zero", "shuffled" and "chance".
        modalities: modalities of the queries in (training, testing).
        protocol: "default" or "released".
        common: entries of all rows.
    """
    source, target = modalities
    measured = {name: metrics.result(protocol) for name, metrics in counted.items()}
    own = measured.get("source", measured["target"])
    kinds = [("target", target, None), ("target" if source == target else "source", source, None),
             ("zero", target, "zero"), ("shuffled", target, "shuffled")]
    result = []
    for name, modality, control in dict.fromkeys(kinds):
        for metric in ("mIoU", "F"):
            result.append({"direction": f"{source}->{modality}", "control": control, "metric": metric,
                           "value": 100 * measured[name][metric], "same_modality": 100 * own[metric],
                           "chance": 100 * measured["chance"][metric], **common})
    return result


def result_lines(tested, modalities, protocol, common):
    """All result rows of a run, given kind ("last", "best", "source") -> (epoch, counted).

    `value_at_validation` is the value of the network chosen by validation with the training modality's queries.
    """
    of_kind = {kind: rows(counted, modalities, protocol, common) for kind, (_, counted) in tested.items()}
    lines = []
    for kind in ("last", "best"):
        for i, row in enumerate(of_kind.get(kind, [])):
            at_validation = of_kind["source"][i]["value"] if "source" in of_kind else None
            lines.append({**row, "selection": kind, "epoch": tested[kind][0], "value_at_validation": at_validation})
    return lines


class Pictures:
    """Pictures of a test: predicted masks as PNG files, and a figure with overlays of evenly spaced clips.

    Args:
        dataset: the test set.
        mask_folder: folder of the predicted masks, <category>/<name>/<name>_<k>.png, 8-bit gray; None for none.
        overlays: number of clips in the figure.
        modality: modality of the tested queries.
        released: number the masks 0..4, as published, instead of 1..5.
    """

    def __init__(self, dataset, mask_folder, overlays, modality, released=False):
        self.dataset, self.mask_folder, self.first = dataset, mask_folder, 0 if released else 1
        self.columns = {"target": f"by {modality}", "shuffled": f"by {modality} of another clip"}
        wanted = np.linspace(0, len(dataset) - 1, max(min(overlays, len(dataset)), 0)).round().astype(int)
        self.wanted, self.shown = set(wanted.tolist()), []

    def add(self, numbers, frames, masks, predicted):
        """Add one batch; see `on_batch` of evaluation.evaluate."""
        found = {name: (predicted[name].sigmoid() > 0.5).cpu().numpy() for name in self.columns}
        truth, middle = masks.cpu().numpy() > 0.5, SECONDS // 2
        for row, i in enumerate(numbers.tolist()):
            if self.mask_folder:
                self.write(i, found["target"][row])
            if i in self.wanted:
                picture = frames[row, middle].cpu().numpy().transpose(1, 2, 0) * DEVIATION + MEAN
                columns = [truth[row, middle], *(found[name][row, middle] for name in self.columns)]
                self.shown.append((i, picture.clip(0, 1), columns))

    def write(self, i, masks):
        """Write the predicted masks (5, S, S) of clip i as PNG files."""
        name = self.dataset.ids[i]
        folder = self.mask_folder / self.dataset.categories[i] / name
        with as_input_error(folder, "choose another --log_dir"):
            folder.mkdir(parents=True, exist_ok=True)
            for k, mask in enumerate(masks, self.first):
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}_{k}.png")

    @style.styled
    def draw(self, path, title):
        """Write the figure, with middle frame, ground truth and predictions of one clip per row."""
        columns = ["frame", "truth", *self.columns.values()]
        size = 1.7 * len(columns), 1.75 * len(self.shown) + 0.6
        figure, axes = style.new_figure(len(self.shown), len(columns), size)
        for line, (i, picture, masks) in zip(axes, self.shown, strict=True):
            line[0].imshow(picture)
            line[0].set_ylabel(self.dataset.categories[i].replace("_", " "), fontsize=8)
            for axis, mask in zip(line[1:], masks, strict=True):
                axis.imshow(np.where(mask[..., None], 0.35 * picture + 0.65 * TINT, 0.45 * picture))
        for axis, name in zip(axes[0], columns, strict=True):
            axis.set_title(name, fontsize=8)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
        figure.suptitle(title, fontsize=9)
        style.save(figure, path, dpi=110)
