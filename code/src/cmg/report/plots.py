"""Pictures of predictions: clips, timelines, confusion, transfer by class, retrieval, code usage.

Each function draws the arrays of one predictions file (`Task.pictured` in cmg/downstream/task.py).
"""

from itertools import combinations
from textwrap import fill, shorten

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.patches import Patch
from scipy.special import softmax

from cmg.data.labels import clip_class
from cmg.downstream.open_set import Scores
from cmg.models.config import in_order
from cmg.report.style import (
    GRAY,
    MISSED,
    PALE,
    RIGHT,
    WIDEST,
    WRONG,
    colors_of,
    ink_on,
    legend_below,
    mixed_color,
    new_figure,
    save,
    set_title,
    styled,
)
from cmg.results.rows import tested_on

MIN_SHARE = 0.1              # minimum share of a code's balanced usage for a modality to count as using it
TIMELINES = 6                # clips
STRIPS = 6                   # classes per clip
EXAMPLES = 3                 # heads
MANY = 28                    # with more classes, labels and cells are small


def title_of(arrays):
    """Title: task, modalities, dataset, and the checkpoint unless `pictures.draw_predictions` has removed it."""
    return (f"{arrays['task']}: head trained on {arrays['source']}, tested on {arrays['target']} "
            f"({', '.join(filter(None, [tested_on(arrays), arrays['checkpoint']]))})")


def feature_picture(axis, features, rows=1):
    """Draw the features of a clip: vectors (T, F) as a spectrogram, maps (T, H, W, C) as their mean over the channels,
    one tile per second in `rows` rows."""
    if features.ndim == 2:
        axis.imshow(features.T, origin="lower", aspect="auto", cmap="magma", interpolation="nearest")
    else:
        energy = np.pad(features.mean(-1), ((0, -len(features) % rows), (0, 0), (0, 0)), constant_values=np.nan)
        tiles = np.pad(energy, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)        # a gap between seconds
        strips = [np.concatenate(list(strip), 1) for strip in np.split(tiles, rows)]
        axis.imshow(np.concatenate(strips)[:-1, :-1], aspect="auto" if rows == 1 else "equal", cmap="gray",
                    interpolation="nearest")
    _hide_ticks(axis)


def _hide_ticks(axis):
    """Remove ticks and frame, but keep title and labels."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


@styled
def draw_clips(arrays, path):
    """Draw test clips: their features, and the predictions of a head that was not trained on this modality."""
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
    set_title(figure, title_of(arrays))
    return save(figure, path)


@styled
def draw_examples(kept, path):
    """Draw test clips as a person recognizes them (pictures and spectrograms), with predictions of heads trained on
    other modalities.

    There is a row for each head: an example of its training data on the left, then test clips of the other modality
    with the most probable class, correct and wrong ones in their true proportion (`cmg.downstream.task.sample`).

    Args:
        kept: arrays of predictions files of one task whose clips have `originals`.
        path: picture to write.
    """
    kept = sorted(kept, key=lambda arrays: (arrays["source"] == "text", arrays["target"] == "audio"))[:EXAMPLES]
    columns = max(len(arrays["shown"]) for arrays in kept)
    figure, axes = new_figure(len(kept), columns + 1, size=(WIDEST, 1.85 * len(kept) + 0.6),
                              gridspec_kw={"width_ratios": [1.5] + [1.0] * columns})
    for row, arrays in zip(axes, kept):
        targets = clip_class(arrays["labels"]).numpy()
        chances = softmax(arrays["cross"], -1)
        right = 100 * (chances.argmax(-1) == targets).mean()
        _example(row[0], arrays["source"], kept, arrays)
        row[0].set_title(f"trained on {arrays['source']}, such as", fontsize=9)
        row[0].set_xlabel(f"tested on {arrays['target']}: {right:.1f} % correct", fontsize=9)
        for axis in row:
            _hide_ticks(axis)
        for axis, number, clip in zip(row[1:], range(columns), arrays["shown"]):
            _original(axis, arrays["originals"][number], arrays["target"])
            said = chances[clip].argmax()
            is_right = said == targets[clip]
            name = shorten(str(arrays["classes"][said]), 18, placeholder="…")
            axis.set_title(f"{'✓' if is_right else '✗'} {name}\n{100 * chances[clip, said]:.0f} %", fontsize=8,
                           color=RIGHT if is_right else WRONG)
            if not is_right:
                axis.set_xlabel(f"is {shorten(str(arrays['classes'][targets[clip]]), 20)}", fontsize=8)
    set_title(figure, f"{tested_on(kept[0])}: the most probable class, and its probability")
    return save(figure, path)


def _example(axis, modality, kept, arrays):
    """Draw an example of a modality: a sentence, or the first original among the predictions."""
    others = [other for other in kept if other["target"] == modality]
    if modality == "text" and "sentences" in arrays:
        axis.text(0.5, 0.5, f"“{fill(shorten(str(arrays['sentences'][0]), 80), 22)}”", ha="center", va="center",
                  fontsize=8)
    elif others:
        _original(axis, others[0]["originals"][0], modality)


def _original(axis, array, modality):
    """Draw a picture, or the spectrogram of a sound."""
    if modality == "audio":
        axis.imshow(array, origin="lower", aspect="auto", cmap="magma")
    else:
        axis.imshow(array, cmap="gray", interpolation="bilinear")


def _class_bars(axis, chances, target, classes):
    """Draw the three most probable classes, and the correct one if it is not among them."""
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


CELL_COLORS = ListedColormap(["#FFFFFF", RIGHT, MISSED, WRONG])
CELL_LEGEND = [Patch(color=RIGHT, label="hit"), Patch(color=MISSED, label="missed"),
               Patch(color=WRONG, label="false alarm")]


def _second_strips(axis, labels, predicted, classes):
    """Draw the classes that are labeled or predicted in a clip, second by second."""
    labels, names = labels > 0, [*classes, "(background)"]
    seconds = 1000 * labels.sum(0) + predicted.sum(0)           # labeled classes first, then those predicted most often
    rows = np.argsort(-seconds, kind="stable")[:max(1, min(STRIPS, np.count_nonzero(seconds)))]
    if not seconds.any():
        rows = np.array([len(names) - 1])
    rows.sort()
    left = np.count_nonzero(seconds) - len(rows)
    if left > 0:
        axis.text(1, 1.01, f"and {left} more", transform=axis.transAxes, ha="right", va="bottom", fontsize=7)
    axis.imshow(_grid(labels, predicted)[:, rows].T, cmap=CELL_COLORS, vmin=0, vmax=3, aspect="auto")
    axis.set_yticks(range(len(rows)), [shorten(names[k], 20) for k in rows], fontsize=8)
    seconds = len(labels)
    axis.set_xticks(np.arange(seconds), np.arange(seconds), fontsize=7)
    axis.set_xticks(np.arange(seconds + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color=PALE, linewidth=0.8)
    axis.tick_params(which="both", length=0)


@styled
def draw_timelines(arrays, path):
    """Draw clips with several events, from best to worst F1: hits, misses and false alarms by second and class.

    The clips are evenly spaced in the ranking of those with at least two events, so that failures are shown as well.
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
    legend_below(figure, CELL_LEGEND, [patch.get_label() for patch in CELL_LEGEND])
    set_title(figure, f"{title_of(arrays)}\nclips with several events, evenly from best to worst")
    return save(figure, path)


@styled
def draw_confusion(arrays, path):
    """Draw confusion matrices of clip classes, normalized by row, of the same-modality and the cross-modal head."""
    # imported here because it takes a second
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
    classes, targets = [str(name) for name in arrays["classes"]], clip_class(arrays["labels"]).numpy()
    count = len(classes)
    size = max(3.2, (0.32 if count <= MANY else 0.085) * count)
    rows, columns = (1, 2) if 2 * size + 2.2 <= WIDEST else (2, 1)
    figure, axes = new_figure(rows, columns, size=(columns * size + 2.2, rows * size + rows * 1.2))
    shades = LinearSegmentedColormap.from_list("right", ["#FFFFFF", colors_of([arrays["target"]])[arrays["target"]]])
    for axis, role, source in zip(axes.flat, ("same", "cross"), (arrays["target"], arrays["source"])):
        said = arrays[role].argmax(-1)
        percent = 100 * confusion_matrix(targets, said, labels=range(count), normalize="true")
        shown = ConfusionMatrixDisplay(percent, display_labels=[shorten(name, 18) for name in classes])
        shown.plot(ax=axis, cmap=shades, include_values=count <= 16, values_format=".0f", colorbar=False,
                   xticks_rotation="vertical", im_kw={"vmin": 0, "vmax": 100}, text_kw={"fontsize": 7})
        axis.tick_params(labelsize=8 if count <= MANY else 5.5)
        for text in () if shown.text_ is None else shown.text_.flat:
            text.set_visible(float(text.get_text()) >= 5)
        right = 100 * (said == targets).mean()
        axis.set(xlabel="predicted", ylabel="", title=f"trained on {source}: {right:.1f} % correct")
    for axis in axes[:, 1:].flat:
        axis.set_yticklabels([])
    for axis in axes[:, 0]:
        axis.set_ylabel(f"class of the {arrays['target']} clip")
    set_title(figure, f"{arrays['task']}, tested on {arrays['target']}, {tested_on(arrays)}; cells: percent of the row")
    return save(figure, path)


def class_metrics(arrays, role):
    """Metric of each class in percent: recall of clips, or F1 of seconds; NaN for classes that do not occur."""
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
    """Draw transfer by class: the same-modality and the cross-modal head, classes sorted by their difference."""
    same, cross = class_metrics(arrays, "same"), class_metrics(arrays, "cross")
    names = [str(name) for name in arrays["classes"]] + ([] if arrays["clipwise"] else ["(background)"])
    order = [k for k in np.argsort(same - cross, kind="stable") if not np.isnan(same[k])]
    y = np.arange(len(order))
    figure, axes = new_figure(1, 1, size=(6.4, (0.27 if len(order) <= MANY else 0.15) * len(order) + 1.6))
    axis = axes[0, 0]
    axis.tick_params("y", labelsize=8 if len(order) <= MANY else 6.5)
    axis.margins(y=0.6 / len(order))
    axis.hlines(y, same[order], cross[order], color=PALE, linewidth=3, zorder=1)
    axis.scatter(same[order], y, s=80, facecolors="none", edgecolors=GRAY, linewidths=2, zorder=2,     # a ring: equal
                 label=f"trained on {arrays['target']} (same modality)")                              # values show both
    axis.scatter(cross[order], y, color=colors_of([arrays["source"]])[arrays["source"]], s=34, zorder=3,
                 label=f"trained on {arrays['source']}")
    axis.set_yticks(y, [shorten(names[k], 30) for k in order])
    axis.invert_yaxis()
    axis.set_xlim(-3, 103)
    axis.set_xlabel("recall of clips, percent" if arrays["clipwise"] else "F1 of seconds, percent")
    axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    set_title(figure, f"{arrays['task']}, tested on {arrays['target']}, {tested_on(arrays)}: transfer by class")
    return save(figure, path)


@styled
def draw_open_set(arrays, path):
    """Draw the confidence of known and unknown clips, and OS*, UNK and HOS by threshold (ICCV 2025)."""
    scores = Scores.of(torch.from_numpy(arrays["cross"]), clip_class(arrays["labels"]))
    confidence, unknown = scores.confidence.numpy(), scores.unknown.numpy()
    right = scores.right.numpy()
    figure, axes = new_figure(1, 2, size=(9.6, 3.8))
    axis, bins = axes[0, 0], np.linspace(confidence.min(), confidence.max() + 1e-9, 31)
    for mask, color, label in ((right, RIGHT, "known, correct"), (~right & ~unknown, MISSED, "known, wrong"),
                                (unknown, WRONG, "unknown")):
        axis.hist(confidence[mask], bins, color=color, alpha=0.6, label=f"{label} ({mask.sum()})")
    axis.set_xlabel("largest probability of a clip")
    axis.set_ylabel("clips")
    axis.set_title(f"AUROC {100 * float(scores.auroc()):.1f} %")
    axis.legend(frameon=False)
    axis = axes[0, 1]
    fine = torch.linspace(float(confidence.min()), float(confidence.max()), 200, dtype=torch.float64)
    rates = scores.rates(fine)
    for name, color, label in (("os", RIGHT, "OS* (known, correct)"), ("unk", WRONG, "UNK (unknown, rejected)"),
                                ("hos", "black", "HOS")):
        axis.plot(fine, 100 * getattr(rates, name), color=color, label=label)
    steps = scores.thresholds()
    axis.plot(steps, 100 * scores.rates(steps).hos, "o", color="black", markersize=4, label="the ten thresholds")
    axis.set_xlabel("threshold")
    axis.set_ylabel("percent")
    axis.set_ylim(0, 102)
    axis.legend(frameon=False)
    set_title(figure, f"{title_of(arrays)}, {arrays['known']} of {len(arrays['classes'])} classes known")
    return save(figure, path)


@styled
def draw_retrieval(arrays, path):
    """Draw queries and the sounds ranked first, with a green frame for the correct class and a star for the clip's own
    sound."""
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
            color = RIGHT if classes[candidate] == classes[query] else WRONG
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color(color)
                spine.set_linewidth(3)
            star = " ★" if candidate == query else ""
            axis.set_xlabel(shorten(str(classes[candidate]), 16) + star, fontsize=7, labelpad=1)
    axes[0, 0].set_title(f"query ({arrays['target']})")
    for column in range(top.shape[1]):
        axes[0, column + 1].set_title(f"{column + 1}.")
    set_title(figure, f"Sounds found by {arrays['target']} after training on {arrays['source']} and audio only "
              f"({', '.join(filter(None, [tested_on(arrays), arrays['checkpoint']]))}); ★ the clip's own sound")
    return save(figure, path)


@styled
def draw_heads(kept, path):
    """Draw the metric that selects the best epoch over the epochs, for cross-modal heads and, dashed, same-modality
    ones."""
    tasks = list(dict.fromkeys(arrays["task"] for arrays in kept))
    colors = colors_of({arrays["target"] for arrays in kept})
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = new_figure(rows, columns, size=(3.6 * columns + 0.4, 2.9 * rows + 0.4))
    for axis, task in zip(axes.flat, tasks):
        of_task = [arrays for arrays in kept if arrays["task"] == task]
        for arrays in of_task:
            color = colors[arrays["target"]]
            line = "-" if arrays["source"] != "text" else ":"
            curves = arrays["cross_curves"]
            epochs = np.arange(1, curves.shape[1] + 1)
            axis.fill_between(epochs, curves.min(0), curves.max(0), color=color, alpha=0.15, linewidth=0)
            axis.plot(epochs, curves.mean(0), line, color=color, label=f"{arrays['source']} to {arrays['target']}")
            if len(arrays["same_curves"]):
                axis.plot(epochs, arrays["same_curves"].mean(0), color=color, linestyle="--", linewidth=0.9, alpha=0.7)
        axis.set_title(f"{task}: {of_task[0]['best_by']}")
        axis.set_xlabel("epoch of the head")
        axis.set_ylim(0, None if of_task[0]["best_by"].startswith("r@") else 102)
        axis.legend(frameon=False, fontsize=7)
    for axis in axes.flat[len(tasks):]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("percent on the evaluation set")
    origins = " and ".join(dict.fromkeys(filter(None, (arrays.get("origin") for arrays in kept))))
    set_title(figure, f"{origins + ': heads' if origins else 'Heads'} by epoch (dashed: same modality; band: seeds)")
    return save(figure, path)


def code_users(counts):
    """Which modalities use each code: bool (M, K) from counts (M, K).

    The counts of each modality are normalized first, so that larger sets do not dominate. A modality uses a code if its
    share is at least MIN_SHARE.
    """
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return share >= MIN_SHARE * np.maximum(share.sum(0, keepdims=True), 1e-12)


@styled
def draw_codes(arrays, path):
    """Draw code usage by modality (NeurIPS 2023, Figure 4), with one picture per codebook; returns the paths.

    Each square is a code, with a color for the modalities that use it and an area for the frequency. Bars show the
    share of each modality's seconds that are assigned to codes of all, of some, or of this modality only.
    """
    modalities = list(in_order([m for m, codes in arrays.items() if isinstance(codes, np.ndarray)]))
    levels = arrays[modalities[0]].reshape(*arrays[modalities[0]].shape[:2], -1).shape[-1]
    written = []
    for level in range(levels):
        counts = np.stack([np.bincount(arrays[m].reshape(*arrays[m].shape[:2], -1)[..., level].ravel(),
                                       minlength=arrays["num_codes"]) for m in modalities])
        name = path if levels == 1 else path.with_name(f"{path.stem}-level{level + 1}{path.suffix}")
        task = name.stem.removeprefix("codes-")
        about = ", ".join(filter(None, [arrays.get("origin"), arrays["checkpoint"]]))
        title = f"Who uses which code: {task}, test clips" + f" ({about})" * bool(about)
        written.append(save(codebook_figure(counts, modalities, title), name))
    return written


@styled
def codebook_figure(counts, modalities, title):
    """Figure of the usage of one codebook.

    Args:
        counts: (M, K) how often each code was assigned to each modality.
        modalities: names (M), in their fixed order.
        title: title of the figure.
    """
    users = code_users(counts)                                                          # (M, K)
    groups = [group for size in range(len(modalities), 0, -1) for group in combinations(modalities, size)]
    colors = {group: mixed_color(group, modalities) for group in groups}
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
        grid.scatter(x[picked], y[picked], s=unit * np.maximum(weight[picked], 0.3), marker="s", color=colors[group],
                     linewidths=0)
    grid.set_xlim(-0.7, side - 0.3)
    grid.set_ylim(side - 0.3, -0.7)
    grid.set_aspect("equal")
    grid.axis("off")
    unused = int((counts.sum(0) == 0).sum())
    grid.set_title(f"{codes - unused} of {codes} codes used; area: how often")
    grid.legend(handles=[Patch(color=colors[group], label=f"{' + '.join(group)}: {member[group].sum()}")
                         for group in groups] + [Patch(color=PALE, label=f"unused: {unused}")],
                frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    left = np.zeros(len(modalities))
    for group in groups:
        length = 100 * share[:, member[group]].sum(1)
        bars.barh(range(len(modalities)), length, left=left, color=colors[group])
        for spot, (start, size) in enumerate(zip(left, length)):
            if size >= 6:
                bars.text(start + size / 2, spot, f"{size:.0f}", ha="center", va="center", fontsize=9,
                          color=ink_on(colors[group]))
        left += length
    bars.set_yticks(range(len(modalities)), modalities)
    bars.invert_yaxis()
    bars.set_xlim(0, 100)
    bars.set_xlabel("percent of the modality's seconds")
    common = 100 * share[:, member[groups[0]]].sum(1).mean()
    bars.set_title(f"{common:.0f} % of seconds have codes used by all")
    set_title(figure, title)
    return figure
