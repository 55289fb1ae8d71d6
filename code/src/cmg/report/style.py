"""How pictures look: colours of the modalities, figures without frames, files written whole."""

from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from cmg.models.config import in_order
from cmg.utils.files import atomic_output

# Told apart with any kind of colour vision (tests/test_pictures.py); the first three and WRONG are Okabe and Ito's.
COLOUR = {"audio": "#E69F00", "video": "#0072B2", "text": "#009E73"}
MIXED = {("audio", "video"): "#CC79A7", ("audio", "text"): "#F0E442", ("video", "text"): "#56B4E9",
         ("audio", "video", "text"): "#333333"}
OTHERS = ("#7B3294", "#8C510A", "#A50026", "#01665E", "#4D4D4D")    # of modalities that are not published, by name
DPI = 130                       # of the files
GREY, PALE = "#888888", "#E4E4E4"
RIGHT, WRONG, MISSED = "#009E73", "#D55E00", "#FDD0A2"
SAME, UNTRAINED = "#F0A0D0", "#D55E00"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.labelsize": 9,
         "xtick.labelsize": 8, "ytick.labelsize": 8, "figure.titlesize": 12, "font.family": "DejaVu Sans",
         "legend.fontsize": 8, "text.parse_math": False}     # a class may have a $ in its name
styled = mpl.rc_context(STYLE)          # of every function that draws; what else is drawn in the process stays as it is


def colours_of(modalities):
    """modality -> its colour, those of a picture in their fixed order."""
    others = [m for m in in_order(modalities) if m not in COLOUR]
    return {m: COLOUR[m] for m in modalities if m in COLOUR} | dict(zip(others, cycle(OTHERS)))


def mixed_colour(group, modalities):
    """Colour of what some of the modalities of a picture have in common; where none was chosen, their mean."""
    colours = colours_of(modalities)
    if len(group) == 1 or group in MIXED:
        return MIXED.get(group) or colours[group[0]]
    if group == tuple(modalities):
        return MIXED["audio", "video", "text"]
    parts = [mpl.colors.to_rgb(colours[m]) for m in group]
    return mpl.colors.to_hex([sum(channel) / len(group) for channel in zip(*parts)])


def new_figure(rows, columns, size, **options):
    """A figure and its axes, always as a 2-d array. Without pyplot: a notebook goes on showing its own."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def ink_on(colour):
    """Black or white, whichever is read more easily on a colour."""
    red, green, blue = mpl.colors.to_rgb(colour)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "black"


def save(figure, path, dpi=DPI):
    """Write a PNG whole or not at all; returns the path."""
    with atomic_output(path, remedy="choose another folder") as file:
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return Path(path)
