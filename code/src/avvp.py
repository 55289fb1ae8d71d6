"""AVVP event localisation, zero-shot across modalities (NeurIPS 2023, Table 1): events second by second.

As published, a head learns from one modality's annotated clips and is tested on the other's: mostly the same videos.
"""

from configs.opts import parse_downstream
from dataset.avvp import AVVP
from engine.transfer import run_task
from errors import run
from model.heads import SegmentHead


def build(opts):
    """The clips of each modality are what its head is trained on and what the other modality's head is tested on."""
    parts = run_task.by_modality([AVVP(opts.paths("avvp"), modality, **opts.reading)
                                    for modality in run_task.wanted(opts, "audio", "video")])
    return run_task.Task("avvp", SegmentHead, "precision", train=parts, test=parts)


def main(argv=None):
    run_task.run(build, parse_downstream("avvp", argv))


if __name__ == "__main__":
    run(main)
