"""AVVP event localization, zero-shot across modalities (NeurIPS 2023, Table 1): events in each second.

As published, a head is trained on the annotated clips of one modality and tested on those of the other, which are
mostly the same videos.
"""

from cmg.cli import local_paths
from cmg.programs.entry import downstream
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    downstream("avvp", argv, LOCAL)


if __name__ == "__main__":
    run(main)
