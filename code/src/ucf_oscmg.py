"""Open-set UCF-101 clips with audio: a head that knows some of the classes, zero-shot across modalities (ICCV 2025)."""

from cmg.cli import local_paths
from cmg.programs.entry import downstream
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    downstream("ucf_oscmg", argv, LOCAL)


if __name__ == "__main__":
    run(main)
