"""Open-set UCF-101 video and VGGSound audio: the head knows some of the classes, zero-shot (ICCV 2025)."""

from cmg.cli import local_paths
from cmg.programs.entry import downstream
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    downstream("ucf_vggsound_oscmg", argv, LOCAL)


if __name__ == "__main__":
    run(main)
