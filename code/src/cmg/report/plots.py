"""Pictures of predictions: clips, timelines, confusion, transfer by class, retrieval, use of the codes.

Each function takes the arrays of one predictions file (cmg/downstream/task.py, `Task.pictured`) and
writes one picture.
"""

from itertools import combinations
from textwrap import shorten

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.patches import Patch
from scipy.special import softmax

from cmg.data.labels import clip_class
from cmg.downstream.open_set import Scores
from cmg.models.config import in_order
from cmg.report.style import (
    GREY,
    MISSED,
    PALE,
    RIGHT,
    WRONG,
    colours_of,
    ink_on,
    mixed_colour,
    new_figure,
    save,
    styled,
)

LEAST_SHARE = 0.1            # a modality uses a code if at least this share of the code's (balanced) use is its own
TIMELINES = 6
STRIPS = 6                   # classes of a clip that are shown second by second
MANY = 28                    # classes from which on labels and cells are small


def title_of(arrays):
    """One line that says what was trained on what, and by whom."""
    return (f"{arrays['task']}: head trained on {arrays['source']}, tested on {arrays['target']} "
            f"({arrays['dataset']}, {arrays['checkpoint']})")


def feature_picture(axis, features, rows=1):
    """Draw what the encoder receives: vectors (T, F) as a spectrogram, maps (T, H, W, C) as mean energy of each place,
    one tile per second in so many rows."""
    if features.ndim == 2:
        axis.imshow(features.T, origin="lower", aspect="auto", cmap="magma", interpolation="nearest")
    else:
        energy = np.pad(features.mean(-1), ((0, -len(features) % rows), (0, 0), (0, 0)), constant_values=np.nan)
        tiles = np.pad(energy, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)        # a gap between two seconds
        strips = [np.concatenate(list(strip), 1) for strip in np.split(tiles, rows)]
        axis.imshow(np.concatenate(strips)[:-1, :-1], aspect="auto" if rows == 1 else "equal", cmap="gray",
                    interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


@styled
def draw_clips(arrays, path):
    """A row of test clips: what the encoder received, and what a head that never saw this modality says about it."""
    shown, classes, features = arrays["shown"], [str(name) for name in arrays["classes"]], arrays["features"]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = new_figure(2 * rows, columns, size=(3.3 * columns, 2.5 * rows),
                              gridspec_kw={"height_ratios": [1.0, 1.1] * rows})
    targets = clip_class(arrays["labels"]).numpy()
    for spot, (clip, x) in enumerate(zip(shown, features)):
        top, bottom = axes[2 * (spot // columns), spot % columns], axes[2 * (spot // columns) + 1, spot % columns]
        feature_picture(top, x, rows=2 if arrays["clipwise"] else 1)
        if arrays["clipwise"]:
            _class_bars(bottom, softmax(arrays["cross"][clip], -1), int(targets[clip]), classes)
            top.set_title(f"is “{shorten(classes[targets[clip]], 26)}”", fontsize=9)
        else:
            _second_strips(bottom, arrays["labels"][clip], arrays["cross"][clip] > 0, classes)
            top.set_title(str(arrays["ids"][clip]), fontsize=8)
    for axis in axes[-2:, len(shown) - columns * (rows - 1):].flat:
        axis.axis("off")
    figure.suptitle(title_of(arrays), fontsize=10)
    return save(figure, path)


def _class_bars(axis, chances, target, classes):
    """The three likeliest classes, and the right one if it is not among them."""
    best = list(np.argsort(-chances, kind="stable")[:3])
    best += [target] if target not in best else []
    y = np.arange(len(best))
    axis.barh(y, chances[best], color=[RIGHT if k == target else (WRONG if k == best[0] else PALE) for k in best])
    for spot, k in zip(y, best):
        axis.text(0.02, spot, shorten(classes[k], 24), va="center", fontsize=8)
    axis.set_xlim(0, 1)
    axis.set_ylim(3.5, -0.5)
    axis.set_yticks([])
    axis.set_xticks([0, 1], ["0", "1"], fontsize=7)


def _grid(labels, predicted):
    """Cells (T, C): 0 nothing, 1 hit, 2 missed, 3 false alarm."""
    return np.select([predicted & labels, labels, predicted], [1, 2, 3], 0)


CELL_COLOURS = ListedColormap(["#FFFFFF", RIGHT, MISSED, WRONG])
CELL_LEGEND = [Patch(color=RIGHT, label="hit"), Patch(color=MISSED, label="missed"),
               Patch(color=WRONG, label="false alarm")]


def _second_strips(axis, labels, predicted, classes):
    """Classes that are labelled or predicted somewhere in a clip, second by second."""
    labels, names = labels > 0, [*classes, "(background)"]
    seconds = 1000 * labels.sum(0) + predicted.sum(0)           # labelled classes first, then those said most often
    rows = np.argsort(-seconds, kind="stable")[:max(1, min(STRIPS, np.count_nonzero(seconds)))]
    if not seconds.any():
        rows = np.array([len(names) - 1])
    rows.sort()
    left = np.count_nonzero(seconds) - len(rows)
    if left > 0:
        axis.text(1, 1.01, f"and {left} more", transform=axis.transAxes, ha="right", va="bottom", fontsize=7)
    axis.imshow(_grid(labels, predicted)[:, rows].T, cmap=CELL_COLOURS, vmin=0, vmax=3, aspect="auto")
    axis.set_yticks(range(len(rows)), [shorten(names[k], 20) for k in rows], fontsize=8)
    seconds = len(labels)
    axis.set_xticks(np.arange(seconds), np.arange(seconds), fontsize=7)
    axis.set_xticks(np.arange(seconds + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color=PALE, linewidth=0.8)
    axis.tick_params(which="both", length=0)


@styled
def draw_timelines(arrays, path):
    """Clips with several events, from best to worst by hits: label, prediction, hit in every second and class.

    The clips are picked evenly from the ranking of those with at least two different events, so that failures show.
    """
    labels, predicted = arrays["labels"] > 0, arrays["cross"] > 0
    events = labels[..., :-1].any(1).sum(-1)
    several = np.flatnonzero(events >= min(2, events.max()))
    hits = (labels & predicted).sum((1, 2))
    f1 = 2 * hits / np.maximum(labels.sum((1, 2)) + predicted.sum((1, 2)), 1)
    ranked = several[np.argsort(-f1[several], kind="stable")]
    picked = ranked[np.linspace(0, len(ranked) - 1, min(TIMELINES, len(ranked))).round().astype(int)]
    columns = min(2, len(picked))
    rows = -(-len(picked) // columns)
    figure, axes = new_figure(rows, columns, size=(5.6 * columns, 1.9 * rows + 0.7))
    for axis, clip in zip(axes.flat, picked):
        _second_strips(axis, arrays["labels"][clip], predicted[clip], [str(name) for name in arrays["classes"]])
        axis.set_title(f"{arrays['ids'][clip]}   F1 {100 * f1[clip]:.0f} %", fontsize=9)
    for axis in axes.flat[len(picked):]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("second")
    figure.legend(handles=CELL_LEGEND, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{title_of(arrays)}\nclips with several events, evenly from best to worst", fontsize=10)
    return save(figure, path)


@styled
def draw_confusion(arrays, path):
    """Confusion of clip classes, rows normalised: the same-modality head and the cross-modal one side by side."""
    # Here, because it takes a second at the start of every script.
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
    classes, targets = [str(name) for name in arrays["classes"]], clip_class(arrays["labels"]).numpy()
    count = len(classes)
    size = max(3.2, (0.32 if count <= MANY else 0.125) * count)
    figure, axes = new_figure(1, 2, size=(2 * size + 2.2, size + 1.2))
    shades = LinearSegmentedColormap.from_list("right", ["#FFFFFF", colours_of([arrays["target"]])[arrays["target"]]])
    for axis, role, source in ((axes[0, 0], "same", arrays["target"]), (axes[0, 1], "cross", arrays["source"])):
        said = arrays[role].argmax(-1)
        percent = 100 * confusion_matrix(targets, said, labels=range(count), normalize="true")
        shown = ConfusionMatrixDisplay(percent, display_labels=[shorten(name, 18) for name in classes])
        shown.plot(ax=axis, cmap=shades, include_values=count <= 16, values_format=".0f", colorbar=False,
                   xticks_rotation="vertical", im_kw={"vmin": 0, "vmax": 100}, text_kw={"fontsize": 7})
        axis.tick_params(labelsize=8 if count <= MANY else 6)
        for text in () if shown.text_ is None else shown.text_.flat:
            text.set_visible(float(text.get_text()) >= 5)
        right = 100 * (said == targets).mean()
        axis.set(xlabel="predicted", ylabel="", title=f"trained on {source}: {right:.1f} % right")
    axes[0, 1].set_yticklabels([])
    axes[0, 0].set_ylabel(f"class of the {arrays['target']} clip")
    figure.suptitle(f"{arrays['task']}, tested on {arrays['target']} (cells: percent of the row)", fontsize=10)
    return save(figure, path)


def class_metrics(arrays, role):
    """Figure of each class in percent: recall of clips, or F1 of seconds; NaN for classes that do not occur."""
    if arrays["clipwise"]:
        targets = clip_class(arrays["labels"]).numpy()
        right = arrays[role].argmax(-1) == targets
        return np.array([100 * right[targets == k].mean() if (targets == k).any() else np.nan
                         for k in range(len(arrays["classes"]))])
    labels, predicted = arrays["labels"] > 0, arrays[role] > 0
    total = (labels.sum((0, 1)) + predicted.sum((0, 1))).astype(float)
    f1 = 200 * (labels & predicted).sum((0, 1)) / np.maximum(total, 1)
    return np.where(labels.any((0, 1)), f1, np.nan)


@styled
def draw_classes(arrays, path):
    """Transfer by class: the same-modality head against the cross-modal one, classes in order of what is lost."""
    same, cross = class_metrics(arrays, "same"), class_metrics(arrays, "cross")
    names = [str(name) for name in arrays["classes"]] + ([] if arrays["clipwise"] else ["(background)"])
    order = [k for k in np.argsort(same - cross, kind="stable") if not np.isnan(same[k])]
    y = np.arange(len(order))
    figure, axes = new_figure(1, 1, size=(6.4, (0.27 if len(order) <= MANY else 0.15) * len(order) + 1.6))
    axis = axes[0, 0]
    axis.tick_params("y", labelsize=8 if len(order) <= MANY else 6.5)
    axis.margins(y=0.6 / len(order))
    axis.hlines(y, same[order], cross[order], color=PALE, linewidth=3, zorder=1)
    axis.scatter(same[order], y, color=GREY, s=34, label=f"trained on {arrays['target']} (same modality)", zorder=2)
    axis.scatter(cross[order], y, color=colours_of([arrays["source"]])[arrays["source"]], s=34, zorder=3,
                 label=f"trained on {arrays['source']}")
    axis.set_yticks(y, [shorten(names[k], 30) for k in order])
    axis.invert_yaxis()
    axis.set_xlim(-3, 103)
    axis.set_xlabel("clips recognised, percent" if arrays["clipwise"] else "F1 of seconds, percent")
    axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.suptitle(f"{arrays['task']}, tested on {arrays['target']}: transfer by class", fontsize=10)
    return save(figure, path)


@styled
def draw_open_set(arrays, path):
    """Confidence of known and unknown clips, and what each threshold gives (ICCV 2025, OS*, UNK, HOS)."""
    scores = Scores.of(torch.from_numpy(arrays["cross"]), clip_class(arrays["labels"]))
    confidence, unknown = scores.confidence.numpy(), scores.unknown.numpy()
    right = scores.right.numpy()
    figure, axes = new_figure(1, 2, size=(9.6, 3.8))
    axis, bins = axes[0, 0], np.linspace(confidence.min(), confidence.max() + 1e-9, 31)
    for mask, colour, label in ((right, RIGHT, "known, right class"), (~right & ~unknown, MISSED, "known, wrong class"),
                                (unknown, WRONG, "unknown")):
        axis.hist(confidence[mask], bins, color=colour, alpha=0.6, label=f"{label} ({mask.sum()})")
    axis.set_xlabel("largest probability of a clip")
    axis.set_ylabel("clips")
    axis.set_title(f"AUROC {100 * float(scores.auroc()):.1f} %")
    axis.legend(frameon=False)
    axis = axes[0, 1]
    fine = torch.linspace(float(confidence.min()), float(confidence.max()), 200, dtype=torch.float64)
    rates = scores.rates(fine)
    for name, colour, label in (("os", RIGHT, "OS* (known, right)"), ("unk", WRONG, "UNK (unknown, rejected)"),
                                ("hos", "black", "HOS")):
        axis.plot(fine, 100 * getattr(rates, name), color=colour, label=label)
    steps = scores.thresholds()
    axis.plot(steps, 100 * scores.rates(steps).hos, "o", color="black", markersize=4, label="the ten thresholds")
    axis.set_xlabel("threshold")
    axis.set_ylabel("percent")
    axis.set_ylim(0, 102)
    axis.legend(frameon=False)
    figure.suptitle(f"{title_of(arrays)}, {arrays['known']} of {len(arrays['classes'])} classes known", fontsize=10)
    return save(figure, path)


@styled
def draw_retrieval(arrays, path):
    """Queries and the sounds found first: green frame where the class is right, a star at the clip's own sound."""
    shown, top, classes = arrays["shown"], arrays["top"], arrays["classes"]
    figure, axes = new_figure(len(shown), top.shape[1] + 1, size=(2.0 + 1.75 * top.shape[1], 0.95 * len(shown) + 0.8),
                              gridspec_kw={"width_ratios": [2.0] + [1.0] * top.shape[1]})
    for row, (query, found) in enumerate(zip(shown, top)):
        name = shorten(str(classes[query]), 24)
        if arrays["target"] == "text":
            axes[row, 0].text(0.5, 0.5, f"prompt of “{name}”", ha="center", va="center", fontsize=9)
            axes[row, 0].axis("off")
        else:
            feature_picture(axes[row, 0], arrays["features"][row])
            axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for column, candidate in enumerate(found):
            axis = axes[row, column + 1]
            feature_picture(axis, arrays["sounds"][row, column])
            colour = RIGHT if classes[candidate] == classes[query] else WRONG
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color(colour)
                spine.set_linewidth(3)
            star = " ★" if candidate == query else ""
            axis.set_xlabel(shorten(str(classes[candidate]), 16) + star, fontsize=7, labelpad=1)
    axes[0, 0].set_title(f"query ({arrays['target']})")
    for column in range(top.shape[1]):
        axes[0, column + 1].set_title(f"{column + 1}.")
    figure.suptitle(f"Sounds found by {arrays['target']} after training on {arrays['source']} and audio only "
                    f"({arrays['checkpoint']}); ★ the clip's own sound", fontsize=10)
    return save(figure, path)


@styled
def draw_heads(kept, path):
    """The figure that chooses the best epoch, over the heads' epochs: cross-modal, and same-modality dashed."""
    tasks = list(dict.fromkeys(arrays["task"] for arrays in kept))
    colours = colours_of({arrays["target"] for arrays in kept})
    figure, axes = new_figure(1, len(tasks), size=(3.6 * len(tasks) + 0.4, 3.3))
    for axis, task in zip(axes[0], tasks):
        of_task = [arrays for arrays in kept if arrays["task"] == task]
        for arrays in of_task:
            colour = colours[arrays["target"]]
            line = "-" if arrays["source"] != "text" else ":"
            curves = arrays["cross_curves"]
            epochs = np.arange(1, curves.shape[1] + 1)
            axis.fill_between(epochs, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
            axis.plot(epochs, curves.mean(0), line, color=colour, label=f"{arrays['source']} to {arrays['target']}")
            if len(arrays["same_curves"]):
                axis.plot(epochs, arrays["same_curves"].mean(0), color=colour, linestyle="--", linewidth=0.9, alpha=0.7)
        axis.set_title(f"{task}: {of_task[0]['best_by']}")
        axis.set_xlabel("epoch of the head")
        axis.set_ylim(0, None if of_task[0]["best_by"].startswith("r@") else 102)
        axis.legend(frameon=False, fontsize=7)
    axes[0, 0].set_ylabel("percent on the evaluation set")
    figure.suptitle("Heads while they train (dashed: same modality; band: seeds)", fontsize=10)
    return save(figure, path)


def code_users(counts):
    """Which modalities use each code: bool (M, K) from counts (M, K).

    Each modality's counts are divided by its total first, so that a larger set does not outweigh a smaller one; a
    modality is a user where its share of a code is at least LEAST_SHARE.
    """
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return share >= LEAST_SHARE * np.maximum(share.sum(0, keepdims=True), 1e-12)


@styled
def draw_codes(arrays, path):
    """Use of the codes by modality (NeurIPS 2023, Figure 4), one picture per codebook; returns the paths.

    Each square is a code, coloured by the modalities that use it, its area by how often; beside it the share of each
    modality's seconds that fall on codes of all, of some, or of this modality alone.
    """
    modalities = list(in_order([m for m, codes in arrays.items() if isinstance(codes, np.ndarray)]))
    levels = arrays[modalities[0]].reshape(*arrays[modalities[0]].shape[:2], -1).shape[-1]
    written = []
    for level in range(levels):
        counts = np.stack([np.bincount(arrays[m].reshape(*arrays[m].shape[:2], -1)[..., level].ravel(),
                                       minlength=arrays["num_codes"]) for m in modalities])
        name = path if levels == 1 else path.with_name(f"{path.stem}-level{level + 1}{path.suffix}")
        task = name.stem.removeprefix("codes-")
        title = f"Who uses which code: {task}, test clips ({arrays['checkpoint']})"
        written.append(save(codebook_figure(counts, modalities, title), name))
    return written


@styled
def codebook_figure(counts, modalities, title):
    """Figure of one codebook's use.

    Args:
        counts: (M, K) how often each modality's seconds take each code.
        modalities: names (M), in their fixed order.
        title: of the figure.
    """
    users = code_users(counts)                                                          # (M, K)
    groups = [group for size in range(len(modalities), 0, -1) for group in combinations(modalities, size)]
    colours = {group: mixed_colour(group, modalities) for group in groups}
    member = {group: (users == np.array([[m in group] for m in modalities])).all(0) & (counts.sum(0) > 0)
              for group in groups}
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    codes = counts.shape[1]
    side = int(np.ceil(np.sqrt(codes)))
    figure, axes = new_figure(1, 2, size=(9.6, 4.6), gridspec_kw={"width_ratios": [1.15, 1]})
    grid, bars = axes[0]
    weight = np.sqrt(share.mean(0) / max(share.mean(0).max(), 1e-12))
    y, x = np.divmod(np.arange(codes), side)
    unit = (230 / side) ** 2
    grid.scatter(x, y, s=0.12 * unit, marker="s", color=PALE, linewidths=0)
    for group in groups:
        picked = member[group]
        grid.scatter(x[picked], y[picked], s=unit * np.maximum(weight[picked], 0.3), marker="s", color=colours[group],
                     linewidths=0)
    grid.set_xlim(-0.7, side - 0.3)
    grid.set_ylim(side - 0.3, -0.7)
    grid.set_aspect("equal")
    grid.axis("off")
    unused = int((counts.sum(0) == 0).sum())
    grid.set_title(f"{codes - unused} of {codes} codes used; area: how often")
    grid.legend(handles=[Patch(color=colours[group], label=f"{' + '.join(group)}: {member[group].sum()}")
                         for group in groups] + [Patch(color=PALE, label=f"unused: {unused}")],
                frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    left = np.zeros(len(modalities))
    for group in groups:
        length = 100 * share[:, member[group]].sum(1)
        bars.barh(range(len(modalities)), length, left=left, color=colours[group])
        for spot, (start, size) in enumerate(zip(left, length)):
            if size >= 6:
                bars.text(start + size / 2, spot, f"{size:.0f}", ha="center", va="center", fontsize=9,
                          color=ink_on(colours[group]))
        left += length
    bars.set_yticks(range(len(modalities)), modalities)
    bars.invert_yaxis()
    bars.set_xlim(0, 100)
    bars.set_xlabel("percent of the modality's seconds")
    common = 100 * share[:, member[groups[0]]].sum(1).mean()
    bars.set_title(f"{common:.0f} % of seconds fall on codes used by all")
    figure.suptitle(title, fontsize=11)
    return figure
