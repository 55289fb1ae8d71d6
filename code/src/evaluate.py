"""Evaluate one or more checkpoints on every cross-modal task with data: the papers' main table (Table 3)."""

from cmg.cli import local_paths
from cmg.programs.entry import evaluate
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    evaluate(argv, LOCAL)


if __name__ == "__main__":
    run(main)
