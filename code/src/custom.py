"""Your own clips (code/docs/your-data.md), zero-shot across modalities: their class, or events second by second."""

from downstream import run_script
from errors import run


def main(argv=None):
    run_script("custom", argv)


if __name__ == "__main__":
    run(main)
