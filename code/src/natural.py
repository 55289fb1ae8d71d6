"""From field recordings and photographs to a cross-modal result: clips, features, pretraining, tasks, table and report.

A classifier that was trained on sounds recognizes photographs for which it never saw a label, and back. Recordings and
photographs come from --sources (index.csv, sounds, photos), or are downloaded once; their terms are printed. --features
names a folder of clips whose features are ready (clips.csv, sources.csv, audio.h5, video.h5, prompts.h5); see
cmg/demos/natural.py. Without encoders of pictures and words, stand-ins are used that need no download, and photographs
are then hard to tell apart: --video-encoder and --text-encoder name better ones.
"""

import os
from pathlib import Path

from cmg.cli import local_paths
from cmg.programs.walkthrough import arguments, walk
from cmg.utils.errors import run
from cmg.utils.settings import positive

LOCAL = local_paths(__file__)
CLIPS = 3120


def build(own, root):
    """The data, where it is not there yet."""
    from cmg.demos import natural, natural_clips, natural_sources  # here, because --help needs no data
    features = own.features
    if features is None:
        sources = own.sources or root.parent / "natural_sources"
        if own.sources is None:
            natural_sources.fetch(sources)
        encoders = natural_clips.Encoders(own.audio_encoder, own.video_encoder, own.text_encoder, tuple(own.front_end))
        features = natural_clips.make(root.parent / "natural_clips", sources, encoders, own.clips)
    natural.build(root, LOCAL.data_paths, features)


def main(argv=None):
    parser = arguments("natural", __doc__, LOCAL)
    for name, files in (("sources", "recordings and photographs"), ("features", "clips with features")):
        named = os.environ.get(f"CMG_NATURAL_{name.upper()}")
        parser.add_argument(f"--{name}", type=Path, default=Path(named) if named else None,
                            help=f"folder of {files} (environment: CMG_NATURAL_{name.upper()})")
    parser.add_argument("--clips", type=positive, default=CLIPS,
                        help="pretraining clips that are made of sources; the others are proportionate")
    parser.add_argument("--audio-encoder", default="logmel", help="of the sounds, as for prepare.py features")
    parser.add_argument("--video-encoder", default="patches", help="of the photographs, as for prepare.py features")
    parser.add_argument("--text-encoder", default="hashing", help="of the sentences, as for prepare.py features")
    parser.add_argument("--front-end", action="append", default=[], metavar="MODALITY.KEY=VALUE",
                        help="of an encoder that is an ONNX file or a function; repeated")
    walk("natural", parser, build, argv, LOCAL)


if __name__ == "__main__":
    run(main, survives=True)
