"""Your own clips (code/docs/your-data.md), zero-shot across modalities: their class, or events in each second."""

from cmg.cli import local_paths
from cmg.programs.entry import downstream
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    downstream("custom", argv, LOCAL)


if __name__ == "__main__":
    run(main)
