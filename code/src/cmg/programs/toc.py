"""Show TOC's selection for a checkpoint's codebooks (arXiv 2403.05168): channels, criterion, similarity of the codes.

Nothing is trained, because the criterion is a formula of the code vectors. Downstream scripts make the same selection
with the same --choose_channel, --toc_max_num and --toc_min_num.
"""

import time

import torch

from cmg.checkpoints import hub
from cmg.downstream.toc import selection_of
from cmg.models import toc
from cmg.report import style
from cmg.utils.files import atomic_output

NAME = "TOC_before_after{}"             # the published name, followed by _2 for a second codebook


def report(number, codes, choice):
    """Print the selection for one codebook; returns the channels."""
    start = time.perf_counter()
    channels = toc.select(codes, choice)
    milliseconds = 1000 * (time.perf_counter() - start)
    best, worst = choice.counts(codes.shape[1])
    value = toc.criterion(codes, choice.terms)[channels]
    print(f"\ncodebook {number}: {codes.shape[0]} codes, {best} best and {worst} worst of {codes.shape[1]} channels, "
          f"selected in {milliseconds:.2f} ms")
    print(f"mean cosine similarity of two codes: {toc.mean_cosine(codes):.4f} before, "
          f"{toc.mean_cosine(codes[:, channels]):.4f} after")
    print("channel   criterion")
    for channel, of_channel in zip(channels.tolist(), value.tolist()):
        print(f"{channel:7d}  {of_channel:10.3e}")
    return channels


@style.styled
def draw(codes, channels, path):
    """Draw the cosine similarities of all pairs of codes before and after the selection, as PDF and PNG."""
    pairs = [toc.cosines(codes).numpy(), toc.cosines(codes[:, channels]).numpy()]
    lowest = min(float(p.min()) for p in pairs)
    ticks = range(0, len(codes), 100 if len(codes) >= 200 else 20)
    figure, axes = style.new_figure(1, 2, size=(20, 8))
    for axis, similarity, title in zip(axes[0], pairs, ("Before TOC Select", "After TOC Select")):
        image = axis.imshow(similarity, cmap="viridis", vmin=lowest, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=18)
        axis.set(xticks=ticks, yticks=ticks)
    figure.colorbar(image, ax=axes, label="cosine similarity of two codes", pad=0.01)
    for suffix in (".pdf", ".png"):
        with atomic_output(path.with_suffix(suffix), remedy="choose another folder with --snapshot_pref") as file:
            figure.savefig(file, format=suffix[1:], dpi=80)


def main(opts):
    """Print and draw the selection for each codebook of `opts.checkpoint`."""
    choice = selection_of(opts, opts.choose_channel)
    encoder = hub.load_encoder(opts.checkpoint, dtype=torch.float64)
    for codes in encoder.codebooks:             # check the selection before anything is drawn
        choice.counts(codes.shape[1])
    print(f"{encoder.system.label}, {', '.join(encoder.config.modalities)}")
    for number, codes in enumerate(encoder.codebooks, 1):
        channels = report(number, codes, choice)
        path = opts.snapshot_pref / (NAME.format("" if number == 1 else f"_{number}") + ".pdf")
        draw(codes, channels, path)
        print(f"drawn: {path} and .png")
