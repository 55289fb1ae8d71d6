"""UCF-101 video and VGGSound audio (NeurIPS 2023, Table 3): across modalities and datasets, one class per clip."""

from cmg.cli import local_paths
from cmg.programs.entry import downstream
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    downstream("ucf_vggsound", argv, LOCAL)


if __name__ == "__main__":
    run(main)
