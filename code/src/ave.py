"""AVE event classification, zero-shot across modalities (NeurIPS 2023, Table 1): one class per clip."""

from downstream import run_script
from errors import run


def main(argv=None):
    run_script("ave", argv)


if __name__ == "__main__":
    run(main)
