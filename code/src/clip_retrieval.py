"""Retrieve clips by captions and captions by clips, without a head (ACL 2025 Findings)."""

from cmg.cli import local_paths
from cmg.programs.entry import clip_retrieval
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    clip_retrieval(argv, LOCAL)


if __name__ == "__main__":
    run(main)
