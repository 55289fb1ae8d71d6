"""From nothing to a cross-modal result: demo data, pretraining, every downstream task, table, pictures and report.

A classifier that was trained on telephone tones recognizes handwritten digits for which it never saw a label.
"""

from cmg.cli import local_paths
from cmg.programs.walkthrough import arguments, walk
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def build(own, root):
    """The data, where it is not there yet."""
    from cmg.demos import dialled  # here, because --help needs no data
    dialled.build(root, LOCAL.data_paths)


def main(argv=None):
    walk("demo", arguments("demo", __doc__, LOCAL), build, argv, LOCAL)


if __name__ == "__main__":
    run(main, survives=True)
