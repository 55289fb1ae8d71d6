"""Ablations of pretraining (NeurIPS 2023, Tables 2 and 3, Figure 3): a pretraining run and an evaluation for each
row."""

from cmg.cli import local_paths
from cmg.programs import ablation
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    ablation.main(argv, LOCAL)


if __name__ == "__main__":
    run(main, survives=True)
