"""From real recordings to a cross-modal result: Spoken Digits, pretraining, every downstream task, table and report.

A classifier that was trained on spoken words recognises handwritten digits for which it never saw a label, and back.
The recordings are downloaded once (17 MB), unless --recordings or the environment (CMG_SPOKEN) names their folder.
"""

import os
from pathlib import Path

from configs.opts import PLACES
from errors import run
from spoken_data import sources, spoken_tree
from walkthrough import arguments, walk


def build(own, root):
    """The data, where it is not there yet."""
    if own.recordings is None and not root.exists():
        sources.fetch(root.parent / "recordings")
    spoken_tree.build(root, PLACES, own.recordings or root.parent / "recordings", clips=own.clips)


def main(argv=None):
    parser = arguments("spoken", __doc__)
    named = os.environ.get("CMG_SPOKEN")
    parser.add_argument("--recordings", type=Path, default=Path(named) if named else None,
                        help=f"folder with {', '.join(sources.SHA256)} (environment: CMG_SPOKEN)")
    parser.add_argument("--clips", type=int, default=2400, help="pretraining clips; the others are proportionate")
    walk("spoken", parser, build, argv)


if __name__ == "__main__":
    run(main)
