"""From real recordings to a cross-modal result: Spoken Digits, pretraining, every downstream task, table and report.

A classifier that was trained on spoken words recognizes handwritten digits for which it never saw a label, and back.
The recordings are downloaded once (17 MB), unless --recordings or the environment (CMG_SPOKEN) names their folder.
"""

import os
from pathlib import Path

from cmg.cli import local_paths
from cmg.demos import spoken_sources
from cmg.programs.walkthrough import arguments, walk
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def build(own, root):
    """Create the data if it does not exist."""
    if own.recordings is None and not root.exists():
        spoken_sources.fetch(root.parent / "recordings")
    from cmg.demos import spoken  # here, because --help needs no data
    spoken.build(root, LOCAL.data_paths, own.recordings or root.parent / "recordings", clips=own.clips)


def main(argv=None):
    parser = arguments("spoken", __doc__, LOCAL)
    named = os.environ.get("CMG_SPOKEN")
    parser.add_argument("--recordings", type=Path, default=Path(named) if named else None,
                        help=f"folder with {', '.join(spoken_sources.SHA256)} (environment: CMG_SPOKEN)")
    parser.add_argument("--clips", type=int, default=2400, help="pretraining clips; the others are proportional")
    walk("spoken", parser, build, argv, LOCAL)


if __name__ == "__main__":
    run(main, survives=True)
