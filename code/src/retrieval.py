"""X-to-audio retrieval (NeurIPS 2023, Table 5): trained on video->audio, tested on text->audio (V2T), and the reverse.

The direction of a result names the two kinds of queries: "video->text" is V2T. The results also include retrieval
without training (task retrieval_free): cosine similarity of mean codes for every ordered pair of the encoder's
modalities, for clips of the same class (mAP, nDCG@10) and for the clip itself (R@k).
"""

from cmg.cli import local_paths
from cmg.programs.entry import downstream
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    downstream("retrieval", argv, LOCAL)


if __name__ == "__main__":
    run(main)
