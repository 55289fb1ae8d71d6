"""Pretrain a system: data -> encode -> quantize -> losses -> step, a checkpoint per epoch (NeurIPS 2023, Figure 2)."""

from cmg.programs import pretrain
from cmg.utils.errors import run
from configs.opts import LOCAL


def main(argv=None):
    pretrain.main(argv, LOCAL)


if __name__ == "__main__":
    run(main, several=True)
