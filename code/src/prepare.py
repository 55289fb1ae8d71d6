"""Prepare real data: check it, extract features, encode prompts, write lists and packs."""

from cmg.cli import local_paths
from cmg.programs import prepare
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    return prepare.main(argv, LOCAL)


if __name__ == "__main__":
    run(main)
