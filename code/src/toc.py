"""Show TOC's selection for a checkpoint's codebooks (arXiv 2403.05168): channels, criterion, similarity of the codes.
"""

from cmg.cli import local_paths
from cmg.programs.entry import toc
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    toc(argv, LOCAL)


if __name__ == "__main__":
    run(main)
