"""AVVP event localisation, zero-shot across modalities (NeurIPS 2023, Table 1): events second by second.

As published, a head learns from one modality's annotated clips and is tested on the other's: mostly the same videos.
"""

from downstream import run_script
from errors import run


def main(argv=None):
    run_script("avvp", argv)


if __name__ == "__main__":
    run(main)
