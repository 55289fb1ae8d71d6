"""Retrieve clips by captions and captions by clips, without a head (ACL 2025 Findings)."""

from cmg.programs import clip_retrieval
from cmg.utils.errors import run
from configs.opts import LOCAL


def main(argv=None):
    clip_retrieval.main(argv, LOCAL)


if __name__ == "__main__":
    run(main)
