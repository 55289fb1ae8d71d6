"""AVE to AVVP (NeurIPS 2023, Table 3): a head learns on AVE in one modality and is tested on AVVP in the other."""

from downstream import run_script
from errors import run


def main(argv=None):
    run_script("ave_avvp", argv)


if __name__ == "__main__":
    run(main)
