"""One or more checkpoints on every cross-modal task that the data allows: the papers' main table (Table 3)."""

from cmg.programs import evaluate
from cmg.utils.errors import run
from configs.opts import LOCAL


def main(argv=None):
    evaluate.main(argv, LOCAL)


if __name__ == "__main__":
    run(main)
