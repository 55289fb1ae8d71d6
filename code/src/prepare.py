"""Get real data ready: check it, extract features, encode prompts, write lists and packs."""

from cmg.programs import prepare
from cmg.utils.errors import run
from configs.opts import LOCAL


def main(argv=None):
    return prepare.main(argv, LOCAL)


if __name__ == "__main__":
    run(main)
