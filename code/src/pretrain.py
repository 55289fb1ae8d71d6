"""Pretrain a system: data -> encode -> quantize -> losses -> step, a checkpoint per epoch (NeurIPS 2023, Figure 2)."""

from cmg.cli import local_paths
from cmg.programs.entry import pretrain
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    pretrain(argv, LOCAL)


if __name__ == "__main__":
    run(main, several=True, survives=True)
