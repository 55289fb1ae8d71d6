"""AVE to AVVP (NeurIPS 2023, Table 3): a head is trained on AVE in one modality and tested on AVVP in the other."""

from cmg.cli import local_paths
from cmg.programs.entry import downstream
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    downstream("ave_avvp", argv, LOCAL)


if __name__ == "__main__":
    run(main)
