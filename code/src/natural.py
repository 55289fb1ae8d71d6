"""From field recordings and photographs to a cross-modal result: clips, features, pretraining, tasks, table and report.

A classifier that was trained on sounds recognizes photographs for which it never saw a label, and back. Recordings and
photographs come from --sources (index.csv, sounds, photos), or are downloaded once; their terms are printed. --features
is a folder of clips with existing features (clips.csv, sources.csv, audio.h5, video.h5, prompts.h5); see
cmg/demos/natural.py. The report shows photographs and sounds of test clips; with --features, only if --sources has the
files listed in sources.csv.

The default encoders need no download, but hardly distinguish photographs: choose better ones with --video-encoder and
--text-encoder.
"""

import os
from pathlib import Path

from cmg.cli import local_paths
from cmg.extract.command import encoder_argument
from cmg.programs.walkthrough import arguments, walk
from cmg.utils.errors import InputError, run
from cmg.utils.settings import positive

LOCAL = local_paths(__file__)
CLIPS = 3120
MAKING = ("clips", "audio_encoder", "video_encoder", "text_encoder", "front_end")       # only for clips from sources


def build(own, root):
    """Create the data if it does not exist."""
    from cmg.demos import natural, natural_clips, natural_sources  # here, because --help needs no data
    features, sources = own.features, own.sources
    given = [name for name in MAKING if getattr(own, name)]
    if features and given:
        raise InputError(f"--{given[0].replace('_', '-')}: only for clips created from --sources, not for the existing "
                         "clips of --features; omit one of them")
    if features is sources is None and (root / natural.MARKER).is_file():
        return
    if features is None:
        sources = sources or root.parent / "natural_sources"
        if own.sources is None:
            natural_sources.fetch(sources)
        encoders = {name.removesuffix("_encoder"): getattr(own, name) for name in given if name != "clips"}
        features = natural_clips.make(root.parent / "natural_clips", sources, natural_clips.Encoders(**encoders),
                                      own.clips or CLIPS)
    natural.build(root, LOCAL.data_paths, features, sources=sources)


def main(argv=None):
    parser = arguments("natural", __doc__, LOCAL)
    for name, files in (("sources", "recordings and photographs"), ("features", "clips with features")):
        named = os.environ.get(f"CMG_NATURAL_{name.upper()}")
        parser.add_argument(f"--{name}", type=Path, default=Path(named) if named else None,
                            help=f"folder of {files} (environment: CMG_NATURAL_{name.upper()})")
    parser.add_argument("--clips", type=positive, default=None, help="pretraining clips to create from sources; the "
                        f"others are proportional (default {CLIPS})")
    for modality, stand_in in (("audio", "logmel"), ("video", "patches"), ("text", "hashing")):
        parser.add_argument(f"--{modality}-encoder", default=None, type=encoder_argument(modality), metavar="NAME",
                            help=f"see prepare.py features (default {stand_in})")
    parser.add_argument("--front-end", action="append", default=None, metavar="MODALITY.KEY=VALUE",
                        help="front-end setting of an ONNX file or function; repeatable")
    walk("natural", parser, build, argv, LOCAL)


if __name__ == "__main__":
    run(main, survives=True)
