"""X-to-audio retrieval (NeurIPS 2023, Table 5): trained on video->audio, tested on text->audio (V2T), and the reverse.

The result's direction names the two kinds of queries: "video->text" is V2T. Below it is retrieval without training:
cosine similarity of mean codes for every ordered pair of the encoder's modalities (task retrieval_free), of clips of
the same class (mAP, nDCG@10) and of the clip itself (R@k).
"""

from cmg.cli import local_paths
from cmg.programs.entry import downstream
from cmg.utils.errors import run

LOCAL = local_paths(__file__)


def main(argv=None):
    downstream("retrieval", argv, LOCAL)


if __name__ == "__main__":
    run(main)
