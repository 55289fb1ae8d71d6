"""How pictures look: colours of the modalities, figures without frames, files written whole."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  after the choice of a backend that needs no screen

from atomic_write import output_file  # noqa: E402

COLOUR = {"audio": "#E69F00", "video": "#0072B2", "text": "#009E73"}
MIXED = {("audio", "video"): "#8C6BB1", ("audio", "text"): "#B5B500", ("video", "text"): "#56B4E9",
         ("audio", "video", "text"): "#333333"}
DPI = 130                       # of the files
GREY, PALE = "#888888", "#E4E4E4"
RIGHT, WRONG, MISSED = "#2CA25F", "#DE2D26", "#FDD0A2"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.labelsize": 9,
         "xtick.labelsize": 8, "ytick.labelsize": 8, "figure.titlesize": 12, "font.family": "DejaVu Sans",
         "legend.fontsize": 8, "text.parse_math": False}     # a class may have a $ in its name
mpl.rcParams.update(STYLE)


def new_figure(rows, columns, size, **options):
    """A figure and its axes, always as a 2-d array."""
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def save(figure, path, dpi=DPI):
    """Write a PNG whole or not at all, and forget the figure; returns the path."""
    try:
        with output_file(path, remedy="choose another folder") as file:
            figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    finally:
        plt.close(figure)
    return Path(path)
