"""Open-set UCF-101 video and VGGSound audio: the head knows some of the classes, zero-shot (ICCV 2025)."""

from downstream import run_script
from errors import run


def main(argv=None):
    run_script("ucf_vggsound_oscmg", argv)


if __name__ == "__main__":
    run(main)
