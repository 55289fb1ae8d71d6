"""From nothing to a cross-modal result: demo data, pretraining, every downstream task, table, pictures and report.

A classifier that was trained on telephone tones recognizes handwritten digits for which it never saw a label.
"""

import sys

from cmg.cli import local_paths
from cmg.programs.walkthrough import arguments, walk
from cmg.utils.errors import run

LOCAL = local_paths(__file__)
# Smaller batches of the training clips reach the accuracies of --preset demo in 60 % of its time
# (benchmarks/studies/dialled.md, "A shorter demo"). Flags of the command line replace them.
QUICK = {"--splits": "train", "--batch_size": "48"}


def build(own, root):
    """Create the data if it does not exist."""
    from cmg.demos import dialled  # here, because --help needs no data
    dialled.build(root, LOCAL.data_paths)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    given = {argument.split("=")[0] for argument in argv}
    quick = [part for flag, value in QUICK.items() if flag not in given for part in (flag, value)]
    walk("demo", arguments("demo", __doc__, LOCAL), build, [*quick, *argv], LOCAL)


if __name__ == "__main__":
    run(main, survives=True)
