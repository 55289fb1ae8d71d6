"""AVE event classification, zero-shot across modalities (NeurIPS 2023, Table 1): one class per clip."""

from cmg.cli import local_paths
from cmg.programs.entry import downstream
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    downstream("ave", argv, LOCAL)


if __name__ == "__main__":
    run(main)
