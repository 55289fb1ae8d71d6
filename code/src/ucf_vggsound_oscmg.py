"""UCF-101 video and VGGSound audio with unknown classes in the test part, zero-shot across modalities (ICCV 2025): HOS, AUROC, accuracy."""

from downstream import run_script
from errors import run


def main(argv=None):
    run_script("ucf_vggsound_oscmg", argv)


if __name__ == "__main__":
    run(main)
