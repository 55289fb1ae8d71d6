"""From nothing to a cross-modal result: demo data, pretraining, every downstream task, table, pictures and report.

A classifier that was trained on telephone tones recognises handwritten digits for which it never saw a label.
"""

from cmg.cli import local_paths
from cmg.demos import dialled
from cmg.programs.walkthrough import arguments, walk
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    walk("demo", arguments("demo", __doc__, LOCAL), lambda own, root: dialled.build(root, LOCAL.data_paths), argv, LOCAL)


if __name__ == "__main__":
    run(main, survives=True)
