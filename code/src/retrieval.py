"""X-to-audio retrieval (NeurIPS 2023, Table 5): trained on video->audio, tested on text->audio (V2T), and the reverse.

The result's direction names the two kinds of queries: "video->text" is V2T. Below it stands retrieval without training:
cosine similarity of mean codes for every ordered pair of the encoder's modalities (task retrieval_free).
"""

from configs.opts import parse_downstream
from dataset.vggsound import VGGSound
from engine.transfer import retrieval, run_task
from errors import run


def build(opts):
    """VGGSound-AVEL: trained on the train part of the list, tested on the test part, sounds from the same clips."""
    modalities = tuple(m for m in run_task.MODALITIES if m == "audio" or m in run_task.wanted(opts))
    return {split: VGGSound(opts.paths("vggsound"), modalities, (split,), **opts.reading)
            for split in ("train", "val", "test")}


def main(argv=None):
    run_task.run(build, parse_downstream("retrieval", argv), retrieval.evaluate)


if __name__ == "__main__":
    run(main)
