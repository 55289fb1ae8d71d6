"""Pictures with few and with very many classes: no text over another, none cut off, colors that all can tell apart."""

import re
import warnings
from itertools import permutations
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from cmg.downstream.task import sample
from cmg.downstream.tasks import TASKS
from cmg.models.config import MODALITIES
from cmg.report import architecture, page, pictures, plots, style, tables
from colour_vision import MATRICES, nearest
from conftest import ROOT
from test_results import both_ways, row

LONG = "Playing a very long named instrument, outdoors"
SHRINK = 1.0                    # pixels that boxes may overlap: they have no margin
LEAST_LETTERS = 6               # CSS pixels of the smallest letters on a page that is wide enough for its columns


def classes(count):
    return np.array([f"{LONG if number % 7 == 3 else 'Class'} {number}" for number in range(count)])


def predictions(count, clipwise, source="audio", target="video", seed=0):
    """Arrays of a predictions file with `count` classes; the heads guess."""
    draw = np.random.default_rng(seed)
    clips = 2 * count
    labels = np.zeros((clips, 10, count + 1), np.uint8)
    for clip in range(clips):
        labels[clip, 2:6, clip % count] = 1
        if not clipwise:
            labels[clip, 4:9, (clip * 3) % count] = 1
    labels[..., -1] = ~labels[..., :-1].any(-1)
    shape = (clips, count) if clipwise else (clips, 10, count + 1)
    return {"task": "ave", "dataset": "AVE test", "checkpoint": "DCID-model-5.pt", "source": source, "target": target,
            "best_by": "accuracy", "classes": classes(count), "labels": labels, "clipwise": clipwise,
            "cross": draw.normal(size=shape), "same": draw.normal(size=shape) + 3 * (labels.max(1)[:, :-1]
                                                                                     if clipwise else labels),
            "shown": np.arange(8), "ids": np.array([f"-video_id_{n}_{n}000_{n + 10}000" for n in range(clips)]),
            "features": draw.random((8, 10, 7, 7, 4)) if target == "video" else draw.random((8, 10, 128)),
            "cross_curves": draw.random((3, 30)) * 100, "same_curves": draw.random((3, 30)) * 100}


def retrieval(count):
    draw = np.random.default_rng(0)
    return {"task": "retrieval", "checkpoint": "DCID-model-5.pt", "source": "text", "target": "video",
            "dataset": "VGGSound-AVEL", "origin": "Dialled Digits",
            "classes": classes(count), "shown": np.arange(8), "top": draw.integers(0, count, (8, 5)),
            "features": draw.random((8, 10, 7, 7, 4)), "sounds": draw.random((8, 5, 10, 128)),
            "best_by": "r@5", "cross_curves": draw.random((1, 30)), "same_curves": draw.random((1, 30))}


def codes(count):
    draw = np.random.default_rng(0)
    return {"checkpoint": "DCID-model-5.pt", "num_codes": 400} | {
        m: draw.integers(0, 400, (count, 10)) for m in MODALITIES}


def log():
    losses = [f"{m}_{kind}" for kind in ("recon", "commit", "club") for m in MODALITIES] + ["cpc", "cmcm", "total"]
    return [{"epoch": step // 10, "step": step, "losses": {name: 100 * 0.9 ** step + 1e-4 for name in losses},
             "learning_rate": 0.0004 if step < 30 else 0.0002, "clips_per_second": 1234.5,
             "grad_norms": {f"{name}_parameters": 10.0 ** (number - 3) / step for number, name in enumerate(
                 ("Encoder", "Decoder", "CPC", "Text_ar_lstm", *(f"{m.title()}_mi_net" for m in MODALITIES)))},
             "likelihoods": {f"{m}_club": -128.0 * step for m in MODALITIES},
             "metrics": {f"{name}{suffix}": 400 - step for suffix in ("", "_2")
                         for name in ("codes_used", "codes_shared", "code_perplexity")}} for step in range(1, 60)]


def measured(runs=1, directions=8, **changes):
    """Result lines of some runs with long names: values of 100, all controls, three seeds."""
    return [line for number in range(runs) for line in tables.of_run([
        of_seed for seed in range(3) for control in (None, "untrained") for of_seed in both_ways(
            checkpoint=f"/{number}/{LONG}.pt", checkpoint_sha256=str(number), value=100.0, same_modality=99.5,
            control=control, seed=seed, origin="Dialled Digits", **changes)[:2 * directions]], f"{LONG} {number}")]


def own(modalities):
    """Result lines of every direction of the user's own data."""
    return [row(task="custom", dataset="clips.csv test", origin="birds", direction=f"{source}->{target}", value=100.0)
            for source, target in permutations(modalities, 2)]


def test_a_loss_belongs_to_the_modality_of_the_longest_name(tmp_path, monkeypatch):
    losses = {f"{m}_{kind}": 1.0 for m in ("audio", "audio_left") for kind in ("recon", "commit")} | {"total": 3.0}
    lines = [{"epoch": 0, "step": step, "losses": losses} for step in (1, 2)]
    monkeypatch.setattr(pictures, "save", lambda figure, path: figure)
    drawn = pictures.draw_losses(lines, tmp_path / "x.png")
    assert [axis.get_title() for axis in drawn.axes] == ["reconstruction", "commitment", "total"]


DRAWN = {
    "classes": lambda n, path: plots.draw_classes(predictions(n, True), path),
    "classes of seconds": lambda n, path: plots.draw_classes(predictions(n, False), path),
    "confusion": lambda n, path: plots.draw_confusion(predictions(n, True), path),
    "clips": lambda n, path: plots.draw_clips(predictions(n, True), path),
    "clips of sounds": lambda n, path: plots.draw_clips(predictions(n, False, "video", "audio"), path),
    "timelines": lambda n, path: plots.draw_timelines(predictions(n, False), path),
    "examples": lambda n, path: plots.draw_examples(
        [predictions(n, True, source, target) | {"originals": np.random.default_rng(0).random((8, *shape)),
                                                 "sentences": np.array([LONG] * 8)}
         for source, target, shape in (("text", "video", (13, 13)), ("audio", "video", (196, 196)),
                                       ("video", "audio", (128, 150)))], path),
    "heads": lambda n, path: plots.draw_heads(
        [predictions(10, True) | {"task": task} for task in ("ave", "ucf_vggsound", "ucf_vggsound_oscmg")], path),
    "retrieval": lambda n, path: plots.draw_retrieval(retrieval(n), path),
    "codes": lambda n, path: plots.draw_codes(codes(n), path),
    "open set": lambda n, path: plots.draw_open_set(
        predictions(n, True) | {"known": n // 2, "cross": np.random.default_rng(0).normal(size=(2 * n, n // 2))}, path),
    "losses": lambda n, path: pictures.draw_losses(log(), path),
    "sharing": lambda n, path: pictures.draw_sharing(log(), path),
    "optimization": lambda n, path: pictures.draw_optimization(log(), path),
    "one clip": lambda n, path: plots.draw_clips(predictions(n, True) | {"shown": np.arange(1)}, path),
    "all tasks": lambda n, path: plots.draw_heads(
        [predictions(10, True) | {"task": task} for task in TASKS], path),
    "one bar": lambda n, path: pictures.draw_cells(measured(directions=1), path),
    "five runs": lambda n, path: pictures.draw_cells(measured(5), path),
    "sixty runs": lambda n, path: pictures.draw_cells(measured(60, directions=1), path),
    "own data": lambda n, path: pictures.draw_cells(own(("audio", "accelerometer_left_wrist", "video", "text")), path),
    "epochs": lambda n, path: pictures.draw_epochs(
        [line for epoch in range(6) for line in both_ways(checkpoint=f"/a/{epoch}.pt", checkpoint_sha256=str(epoch),
                                                          checkpoint_epoch=epoch, value=100.0)], path),
    "table": lambda n, path: pictures.draw_cells(both_ways(checkpoint="/a/H-DCID-model-5.pt") + both_ways(
        checkpoint="/b/DCID-model-5.pt", checkpoint_sha256="bb"), path)}


@pytest.fixture
def texts(monkeypatch):
    """Every text that is drawn into the file, as (text, box in pixels, whole figure in pixels)."""
    drawn, plain = [], RendererAgg.draw_text

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        if s.strip() and mtext is not None and mtext.get_alpha() != 0:
            drawn.append(SimpleNamespace(text=s, box=mtext.get_window_extent(self), width=self.width,
                                         height=self.height, size=mtext.get_fontsize()))
        return plain(self, gc, x, y, s, prop, angle, ismath, mtext)

    monkeypatch.setattr(RendererAgg, "draw_text", draw_text)
    return drawn


OF_CLASSES = ("classes", "classes of seconds", "confusion", "clips", "clips of sounds", "timelines", "examples",
              "retrieval", "open set")          # of the rest the number of classes changes nothing


@pytest.mark.parametrize("name, count", [(name, count) for name in DRAWN for count in (
    (10, 141) if name in OF_CLASSES else (10,))])
@pytest.mark.filterwarnings("error")            # of a layout that has no room
def test_no_text_lies_over_another_or_is_cut_off(name, count, texts, tmp_path):
    DRAWN[name](count, tmp_path / "picture.png")
    last = {(t.text, *np.round(t.box.extents)): t for t in texts}           # those that are drawn twice
    found = list(last.values())
    assert len(found) > 5
    boxes = np.array([t.box.extents for t in found])
    left, low, right, high = boxes.T
    across = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    along = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    over = np.triu((across > SHRINK) & (along > SHRINK), 1)
    assert not over.any(), [(found[a].text, found[b].text) for a, b in np.argwhere(over)[:5]]
    outside = [t.text for t in found if t.box.x0 < -1 or t.box.y0 < -1 or t.box.x1 > t.width + 1
               or t.box.y1 > t.height + 1]
    assert not outside
    assert found[0].width * found[0].height < 20e6 and max(found[0].width, found[0].height) < 16000     # WebP's limit
    image = page._image(tmp_path / "picture.png")
    width, room = int(re.search(r'width="(\d+)"', image.html)[1]), page.PAGE if image.kind else page.COLUMN
    assert width <= room
    smallest = min(texts, key=lambda t: t.size)
    assert smallest.size * page.CSS_DPI / 72 * width / (found[0].width * page.CSS_DPI / style.DPI) >= LEAST_LETTERS, (
        smallest.text)


def test_shown_clips_are_right_and_wrong_in_proportion_and_of_many_classes():
    truth = np.arange(200) % 10
    for wrong in (0, 3, 20, 60, 100, 199, 200):
        is_right = np.arange(200)[::-1] >= wrong
        shown = sample(truth, is_right, 8)
        assert (~is_right[shown]).sum() == round(8 * wrong / 200) and (np.diff(shown) > 0).all()
        assert len(set(truth[shown])) == 8
    assert sample(np.zeros(3, int), np.array([True, False, True])).tolist() == [0, 1, 2]


def test_the_architecture_is_the_committed_one_and_no_text_is_cut(tmp_path):
    text = architecture.draw(tmp_path).read_text(encoding="utf-8")
    assert (ROOT / "figs" / "readme" / architecture.NAME).read_text(encoding="utf-8") == text
    assert "prefers-color-scheme: dark" in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    root, font, found = ElementTree.fromstring(text), FontProperties(family="DejaVu Sans", weight="bold"), []
    boxes = [[float(rect.get(name)) for name in ("x", "y", "width", "height")] for rect in root.iter()
             if rect.tag.endswith("rect") and rect.get("rx") == "6"]
    for label in root.iter():
        if label.tag.endswith("}text"):
            x, y, is_title = float(label.get("x")), float(label.get("y")), label.get("class") == "title"
            width = TextPath((0, 0), label.text, size=13, prop=font).get_extents().width    # wider than other fonts
            left = x if is_title else x - width / 2
            found.append((left, left + width, y - 12, y + 3))
            inside = [box for box in boxes if box[0] < x < box[0] + box[2] and box[1] < y < box[1] + box[3]]
            assert all(left > box[0] and left + width < box[0] + box[2] for box in inside), label.text
    assert len(found) > 30
    left, right, top, bottom = np.array(found).T
    assert left.min() > 0 and right.max() < architecture.SIZE[0] and bottom.max() < architecture.SIZE[1]
    over = (np.minimum(right[:, None], right) > np.maximum(left[:, None], left)) & (
        np.minimum(bottom[:, None], bottom) > np.maximum(top[:, None], top))
    assert not np.triu(over, 1).any()


@pytest.mark.parametrize("vision", MATRICES)
@pytest.mark.parametrize("colors", [
    [*style.COLOR.values(), *style.MIXED.values(), style.PALE],
    [style.RIGHT, style.WRONG, style.MISSED, "#FFFFFF"],
    [style.SAME, style.UNTRAINED, "black", style.GRAY]])
def test_colors_are_told_apart(colors, vision):
    """Ten units are as far as two shades of a printed color chart; three is what an eye can just tell apart."""
    distance, pair = nearest(colors, vision)
    assert distance > 10, (pair, distance)


def test_letters_that_no_font_has_are_one_line(caplog):
    style._tell_missing.cache_clear()

    @style.styled
    def draw():
        figure, _ = style.new_figure(1, 1, (2, 2))
        style.set_title(figure, "\U0010fff0")
        figure.canvas.draw()
        warnings.warn("another", UserWarning, stacklevel=1)
    for _ in range(2):
        with pytest.warns(UserWarning) as told:
            draw()
        assert [str(one.message) for one in told] == ["another"]
    assert caplog.text.count("letters of some names are boxes in pictures") == 1
