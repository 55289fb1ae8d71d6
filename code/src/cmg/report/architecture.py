"""Draw the architecture diagram of the README: `python -m cmg.report.architecture --out figs/readme`.

DCID (NeurIPS 2023, Figure 2): what pretraining learns from a clip, and how a head transfers from one modality to
another. The picture has its own background, so that it is legible on light and dark pages, and follows the browser's
dark mode.
"""

from html import escape
from pathlib import Path

from cmg.models.config import MODALITIES
from cmg.report.style import COLOR, ink_on
from cmg.utils.errors import Parser, run
from cmg.utils.files import atomic_output

NAME = "architecture.svg"
SIZE = (960, 500)
ROWS = {"audio": 52, "video": 142, "text": 232}     # top of each modality's row
INK = ("#1a1c20", "#e4e6ea")                # on light and dark background, as below
PAPER, SOFT, BOX = ("#ffffff", "#14161a"), ("#5f6570", "#9aa1ad"), ("#eef0f3", "#262a31")
STYLE = """
text { font: 13px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: %(ink)s; text-anchor: middle; }
.title { font-weight: 600; text-anchor: start; } .soft { font-size: 12px; fill: %(soft)s; }
.paper { fill: %(paper)s; } .box { fill: %(box)s; stroke: %(soft)s; }
.line { fill: none; stroke: %(soft)s; stroke-width: 1.5; marker-end: url(#head); }
.loss { fill: none; stroke: %(soft)s; stroke-width: 1.5; stroke-dasharray: 4 3; } .tip { fill: %(soft)s; }
"""


class Drawing:
    """Elements of an SVG, in drawing order."""

    def __init__(self):
        self.parts = []

    def box(self, x, y, width, height, lines, color=None):
        """A box with centered lines of text, filled with `color` or, by default, the color of all boxes."""
        fill = f'style="fill: {color}"' if color else 'class="box"'
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" {fill}/>')
        for number, line in enumerate(lines):
            middle = y + height / 2 + 17 * (number - (len(lines) - 1) / 2) + 4.5
            self.text(x + width / 2, middle, line, color=ink_on(color) if color else None)

    def text(self, x, y, text, kind="", color=None):
        fill = f' style="fill: {color}"' if color else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}"{fill}>{escape(text)}</text>')

    def line(self, *points, kind="line"):
        """A line through points (x, y), with an arrowhead unless it is a "loss"."""
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(f'<path d="M {path}" class="{kind}"/>')

    def svg(self, title):
        shades = {"ink": INK, "paper": PAPER, "soft": SOFT, "box": BOX}
        light, dark = ({name: pair[k] for name, pair in shades.items()} for k in (0, 1))
        width, height = SIZE
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img"><title>{escape(title)}</title>',
            f"<style>{STYLE % light}@media (prefers-color-scheme: dark) {{{STYLE % dark}}}</style>",
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
            '<path d="M 0 0 L 8 4 L 0 8 z" class="tip"/></marker>',
            f'<rect width="{width}" height="{height}" rx="8" class="paper"/>', *self.parts, "</svg>", ""])


def pretraining(drawing):
    """Draw the encoders of each modality, the codebook and the decoders, with losses as dashed lines."""
    drawing.text(20, 28, "1  Pretraining without labels: what all modalities of a clip share becomes codes", "title")
    for modality, top in ROWS.items():
        drawing.box(20, top + 16, 96, 38, [modality], COLOR[modality])
        drawing.box(170, top, 132, 30, ["common encoder"])
        drawing.box(170, top + 44, 132, 30, ["specific encoder"])
        drawing.box(690, top + 8, 94, 58, ["decoder"])
        drawing.box(844, top + 16, 96, 38, [modality], COLOR[modality])
        drawing.line((116, top + 35), (140, top + 35), (140, top + 15), (168, top + 15))
        drawing.line((116, top + 35), (140, top + 35), (140, top + 59), (168, top + 59))
        drawing.line((302, top + 15), (466, top + 15))
        drawing.line((594, top + 15), (640, top + 15), (640, top + 26), (688, top + 26))
        drawing.line((302, top + 59), (326, top + 59))
        drawing.text(356, top + 63, "specific", "soft")
        drawing.text(630, top + 56, "specific", "soft")
        drawing.line((660, top + 52), (688, top + 52))
        drawing.line((784, top + 37), (842, top + 37))
        drawing.line((236, top + 30), (236, top + 44), kind="loss")
        drawing.text(262, top + 41, "CLUB", "soft")
    first, last = min(ROWS.values()), max(ROWS.values())
    drawing.line((424, first + 15), (424, last + 15), kind="loss")
    drawing.text(386, first + 90, "Cross-CPC", "soft")
    drawing.box(468, first - 8, 126, last - first + 46, [])
    drawing.text(531, first + 16, "one codebook")
    for number in range(36):
        row, column = divmod(number, 6)
        color = COLOR[MODALITIES[(number * number + 2 * row) % 3]] if number % 7 in (1, 3) else SOFT[number % 2]
        drawing.parts.append(f'<rect x="{483 + 17 * column}" y="{first + 32 + 17 * row}" width="11" height="11" '
                             f'style="fill: {color}"/>')
    drawing.text(531, first + 158, "vector → code,", "soft")
    drawing.text(531, first + 174, "moved by EMA;", "soft")
    drawing.text(531, first + 190, "CMCM aligns", "soft")
    drawing.text(531, first + 206, "the modalities", "soft")


def transfer(drawing):
    """Draw a head that is trained on the codes of one modality and tested on those of another."""
    top = 372
    drawing.line((20, top - 36), (940, top - 36), kind="loss")
    drawing.text(20, top - 10, "2  Transfer: a head learns from one labeled modality, and is tested on another",
                 "title")
    for modality, row, about in (("audio", top + 6, "labeled clips: training"),
                                 ("video", top + 62, "other clips: test")):
        drawing.box(20, row, 96, 38, [modality], COLOR[modality])
        drawing.line((116, row + 19), (208, row + 19))
        drawing.box(210, row, 190, 38, ["frozen common encoder"])
        drawing.line((400, row + 19), (488, row + 19))
        drawing.text(444, row + 12, "codes", "soft")
        drawing.text(690, row + 12, about, "soft")
        drawing.line((616, row + 19), (782, row + 19))
        drawing.box(784, row, 156, 38, ["class"])
    drawing.box(490, top + 6, 126, 94, ["one head"])


def draw(out):
    """Write the picture into the folder `out`; returns its path."""
    drawing = Drawing()
    pretraining(drawing)
    transfer(drawing)
    path = Path(out) / NAME
    with atomic_output(path, "w", "choose another --out") as file:
        file.write(drawing.svg("Encoders of audio, video and text share one codebook; a head trained on the codes of "
                               "one modality is tested on another"))
    return path


def main(argv=None):
    parser = Parser(prog="python -m cmg.report.architecture", description="Draw the architecture as an SVG.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the picture, for example figs/readme")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    print(draw(parser.parse_args(argv).out))


if __name__ == "__main__":
    run(main)
