"""Open-set AVE: a head that knows some of the classes, zero-shot across modalities (ICCV 2025)."""

from downstream import run_script
from errors import run


def main(argv=None):
    run_script("ave_oscmg", argv)


if __name__ == "__main__":
    run(main)
