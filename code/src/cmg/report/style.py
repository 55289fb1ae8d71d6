"""Style of all pictures: colors of the modalities, creation of figures, and saving."""

import logging
import re
import warnings
from contextlib import contextmanager
from functools import lru_cache, wraps
from itertools import cycle
from pathlib import Path

from cmg.models.config import in_order
from cmg.utils.files import atomic_output

# Distinguishable with any color vision (test_pictures.py); the first three and WRONG are from Okabe and Ito.
COLOR = {"audio": "#E69F00", "video": "#0072B2", "text": "#009E73"}
MIXED = {("audio", "video"): "#CC79A7", ("audio", "text"): "#F0E442", ("video", "text"): "#56B4E9",
         ("audio", "video", "text"): "#333333"}
OTHERS = ("#7B3294", "#8C510A", "#A50026", "#01665E", "#4D4D4D")    # of other modalities
DPI = 130                       # of the files
WIDEST = 12.0                   # inches, the width of the page
LEGEND_SHARE = 0.3              # of a figure's height, for a legend
LONGEST = 60                    # letters of a name in a legend
GRAY, PALE = "#888888", "#E4E4E4"
RIGHT, WRONG, MISSED = "#009E73", "#D55E00", "#FDD0A2"
SAME, UNTRAINED = "#F0A0D0", "#D55E00"
EAST_ASIAN = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Micro Hei",
              "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans", "Malgun Gothic",
              "Arial Unicode MS")
GLYPH = "Glyph .* missing from font"
log = logging.getLogger(__name__)
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.labelsize": 9,
         "xtick.labelsize": 8, "ytick.labelsize": 8, "figure.titlesize": 12,
         "legend.fontsize": 8, "text.parse_math": False}     # class names may contain a $


def styled(function):
    """Decorator for all drawing functions; does not affect other figures."""
    @wraps(function)
    def drawing(*args, **kwargs):
        import matplotlib as mpl  # imported here and below because it takes half a second
        with mpl.rc_context(STYLE | {"font.family": _fonts()}), _missing_letters():
            return function(*args, **kwargs)
    return drawing


@lru_cache
def _fonts():
    """The font of all pictures, then those installed that have the letters of names in Chinese, Japanese or Korean."""
    from matplotlib.font_manager import fontManager
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in EAST_ASIAN if name in installed)]


@contextmanager
def _missing_letters():
    """Replace Matplotlib's warnings of letters that no font has, one for each time a text is measured, by one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", GLYPH)
        yield
    for warning in caught:
        glyph = re.match(GLYPH, str(warning.message))
        if glyph:
            _tell_missing()
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@lru_cache
def _tell_missing():
    log.warning("warning: letters of some names are boxes in pictures: no font of this machine has them; install one, "
                "such as Noto Sans CJK")


def colors_of(modalities):
    """modality -> color, for the modalities of a picture."""
    others = [m for m in in_order(modalities) if m not in COLOR]
    return {m: COLOR[m] for m in modalities if m in COLOR} | dict(zip(others, cycle(OTHERS)))


def mixed_color(group, modalities):
    """Color of a group of modalities among all those of a picture; the mean of their colors if none is defined."""
    colors = colors_of(modalities)
    if len(group) == 1 or group in MIXED:
        return MIXED.get(group) or colors[group[0]]
    if group == tuple(modalities):
        return MIXED["audio", "video", "text"]
    from matplotlib.colors import to_hex, to_rgb
    parts = [to_rgb(colors[m]) for m in group]
    return to_hex([sum(channel) / len(group) for channel in zip(*parts)])


def new_figure(rows, columns, size, **options):
    """(figure, axes), axes as a 2-d array. It is not registered with pyplot, so notebooks do not show it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def set_title(figure, text, fontsize=10):
    """Title of a figure, on as many lines as its width needs."""
    figure.suptitle(text, fontsize=fontsize, wrap=True)


def legend_below(figure, handles, labels, most=4):
    """Add a legend below the axes of a figure, in as many columns (at most `most`) as fit. If a long legend takes more
    than a certain share of the height, the figure grows, so that the axes keep their size."""
    labels = [shorten_middle(label, LONGEST) for label in labels]
    for columns in range(min(most, len(labels)), 0, -1):
        legend = figure.legend(handles, labels, frameon=False, ncols=columns, loc="outside lower center")
        extent = legend.get_window_extent(figure.canvas.get_renderer())
        if columns == 1 or extent.width <= figure.bbox.width:
            beyond = extent.height - LEGEND_SHARE * figure.bbox.height
            figure.set_figheight(figure.get_figheight() + max(beyond, 0) / figure.dpi)
            return
        legend.remove()


def shorten_middle(text, most):
    """Shorten a text to at most `most` characters by omitting its middle, since names often differ at the end."""
    return text if len(text) <= most else f"{text[:most // 2 - 1]}…{text[-(most - most // 2):]}"


def ink_on(color):
    """Black or white, whichever is more legible on a color."""
    from matplotlib.colors import to_rgb
    red, green, blue = to_rgb(color)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "black"


def save(figure, path, dpi=DPI):
    """Write a PNG atomically; returns the path."""
    figure.set_dpi(dpi)
    figure.draw_without_rendering()         # layout and ticks affect each other
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    figure.get_layout_engine().execute(figure)      # once: Figure.savefig draws everything twice to do this
    figure.set_layout_engine("none")
    with atomic_output(path, remedy="choose another folder") as file:
        canvas.print_png(file, metadata={"Software": None})
    return Path(path)
