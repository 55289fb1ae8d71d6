"""UCF-101 video and VGGSound audio (NeurIPS 2023, Table 3): across modalities and data sets, one class per clip."""

from downstream import run_script
from errors import run


def main(argv=None):
    run_script("ucf_vggsound", argv)


if __name__ == "__main__":
    run(main)
