"""Arguments of `prepare.py features`. The work is done by `run`, which is imported only when it is needed."""

import argparse
import re
from pathlib import Path

from cmg.extract.audio import FRAMINGS, RESAMPLERS, ROUTES
from cmg.extract.video import CHANNELS, PER_SECOND
from cmg.models.config import seconds_or_auto
from cmg.utils.errors import InputError, absolute, did_you_mean
from cmg.utils.settings import not_negative, positive

BUILT_IN = {"audio": ("vggish", "logmel"), "video": ("vgg19", "patches"), "text": ("hashing",)}     # encoders
PRESETS = {                         # defaults of a dataset's own programs; flags override them
    "avsbench": {"seconds": 5, "audio_route": "nearest", "framing": "continuous", "clock": "time"},
}
SLOWEST, FASTEST = 0.1, 10          # limits on rows per second and on the hop in seconds


def features(opts):
    """Extract the features that all other scripts read from a folder of videos; exit code 1 if a clip failed."""
    from cmg.extract.run import run
    complete(opts)
    opts.out = opts.out or opts.data_root
    _fetch_data_sets(opts)
    return run(opts)


def complete(opts):
    """Fill in the options that the command line leaves to the preset."""
    for name, value in {**{"seconds": 10, "audio_route": "native", "framing": "second", "clock": None},
                        **PRESETS.get(opts.preset, {})}.items():
        if getattr(opts, name) is None:
            setattr(opts, name, value)
    opts.seconds = None if opts.seconds == "auto" else opts.seconds


def _fetch_data_sets(opts):
    """Replace a dataset (`hf:NAME`) with its files, and use its labels if no others are given."""
    if not any(str(path).startswith("hf:") for path in opts.videos):
        if opts.hf_columns:
            raise InputError("--hf-columns: only for a dataset hf:NAME, and none is given; omit it")
        return
    from cmg.extract import hub_data
    if len(opts.videos) > 1:
        raise InputError(f"{opts.videos[0]}: {len(opts.videos)} sources given; expected a dataset hf:NAME alone; "
                         "run the command once per source")
    columns = hub_data.read_columns(opts.hf_columns) if opts.hf_columns else {}
    opts.videos, table = hub_data.fetch(opts.videos[0], opts.out / hub_data.FOLDER, columns, opts.seconds)
    opts.labels = opts.labels or table


def encoder_argument(modality):
    """Argument type of --audio-encoder, --video-encoder or --text-encoder. Rejects a misspelled built-in encoder, which
    would otherwise be looked up on the Hugging Face hub."""
    def check(text):
        hint = did_you_mean(text, BUILT_IN[modality])
        if hint and re.fullmatch(r"[\w-]+", text) and not Path(text).exists():
            raise argparse.ArgumentTypeError(f"'{text}' is not an encoder{hint}")
        return text
    return check


def _per_second(text):
    if positive(text) > PER_SECOND:
        raise argparse.ArgumentTypeError(f"'{text}' is more than {PER_SECOND}")
    return int(text)


def _clock(text):
    """Argument type of --rows-per-second and --hop."""
    if not SLOWEST <= not_negative(text) <= FASTEST:
        raise argparse.ArgumentTypeError(f"'{text}' is not between {SLOWEST} and {FASTEST}")
    return float(text)


def _start(text):
    """Argument type of --start: seconds, or a column of --labels."""
    try:
        float(text)
    except ValueError:
        return text
    return not_negative(text)


def source_argument(text):
    """Argument type of VIDEOS: a path, or a dataset hf:NAME."""
    return Path(text) if text.startswith("hf:") else absolute(text)


def _columns(text):
    return [name.strip() for name in text.split(",")]


def _shard(text):
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is not i/n with 1 <= i <= n")
    return int(number), int(count)


def add_arguments(parser):
    """Declare the options of the command on an argparse parser."""
    parser.add_argument("videos", type=source_argument, nargs="+", metavar="VIDEOS", help="folders of videos, single "
                        "files, or a dataset with audio, video or images: hf:NAME or hf:NAME/SPLIT, on the Hugging "
                        "Face hub or a folder saved by `datasets`")
    parser.add_argument("--out", type=Path, default=None, help="output folder (default: the data root)")
    group = parser.add_argument_group("features")
    group.add_argument("--modality", choices=("audio", "video", "both"), default="both", help="modalities to extract")
    group.add_argument("--vggish", type=Path, metavar="FILE",
                       help="weights of VGGish: vggish_model.ckpt or vggish-10086976.pth")
    group.add_argument("--vgg19", type=Path, metavar="FILE", help="weights of VGG-19: Keras' h5 and vgg19-d01eb7cb.pth "
                       "give the published features, torchvision's vgg19-dcbb9e9d.pth does not")
    group.add_argument("--vggish-kind", choices=("audioset",), help="kind of a VGGish file with an unknown hash")
    group.add_argument("--vgg19-kind", choices=("caffe", "torchvision"),
                       help="kind of a VGG-19 file with an unknown hash")
    group.add_argument("--audio-encoder", default="vggish", type=encoder_argument("audio"), metavar="NAME",
                       help="vggish; logmel, which needs no download; a transformers model, by folder or name; an "
                       "ONNX file; or your own function, as module:function or file.py:function")
    group.add_argument("--video-encoder", default="vgg19", type=encoder_argument("video"), metavar="NAME",
                       help="vgg19; patches, which needs no download; a transformers model, an ONNX file or a function")
    group.add_argument("--text-encoder", default=None, type=encoder_argument("text"), metavar="NAME",
                       help="also encode the prompts of --labels: hashing, which needs no download; a transformers "
                       "model (bert-base-uncased gives the published format); an ONNX file or a function")
    group.add_argument("--front-end", action="append", metavar="MODALITY.KEY=VALUE",
                       help="front-end setting of an ONNX file or function, such as audio.rate=16000; repeatable. An "
                       "ONNX file's settings may also be in net.json next to net.onnx (code/docs/features.md)")
    group.add_argument("--video-form", choices=("map", "vector"), default="map",
                       help="one 7 x 7 map per second, or one vector (not for vgg19 and patches)")
    group.add_argument("--patch-filters", choices=("random", "pca"), default="random",
                       help="filters of patches: fixed random ones, or the principal components of these videos")
    group.add_argument("--patch-channels", type=positive, default=CHANNELS, help="channels of patches")
    group.add_argument("--preset", choices=tuple(PRESETS), default=None,
                       help="avsbench: 5 seconds, nearest, continuous, clock time; writes the frames and wavs of "
                       "AVSBench-S4 instead of video features")
    group = parser.add_argument_group("seconds")
    group.add_argument("--seconds", type=seconds_or_auto, default=None,
                       help="length of a clip, by default also the rows of its feature (10); auto: the full seconds of "
                       "each clip")
    group.add_argument("--rows-per-second", type=_clock, default=1.0, metavar="R",
                       help="rows of 1/R seconds, for both audio and video; T in other scripts counts rows")
    group.add_argument("--hop", type=_clock, default=None, metavar="SECONDS",
                       help="time between the starts of consecutive rows; rows overlap if it is below 1/R (default: "
                       "1/R)")
    group.add_argument("--start", type=_start, default=0.0, metavar="SECONDS|COLUMN",
                       help="start of a clip within its video, or the column of --labels that gives it")
    group.add_argument("--clock", choices=("tenths", "time"), default=None,
                       help="tenths: divide the frames into equal parts, like AVE; time: use the frame rate, like "
                       "AVSBench (default: tenths for clips within half a second of --seconds, else time)")
    group.add_argument("--frames-per-second", type=_per_second, default=PER_SECOND, metavar="1..16",
                       help="frames averaged per second; fewer than 16 are an approximation")
    group = parser.add_argument_group("audio")
    group.add_argument("--audio-route", choices=ROUTES, default=None,
                       help="native: resample from the file's own rate (AVE; default); nearest: moviepy's nearest "
                       "samples (AVVP, AVSBench)")
    group.add_argument("--framing", choices=FRAMINGS, default=None,
                       help="second: each second separately (AVE; default); continuous: every 0.96 s (AVSBench)")
    group.add_argument("--resampler", choices=tuple(RESAMPLERS), default="r022",
                       help="filter of resampy up to 0.2.2, used for the published features, or since 0.3")
    group.add_argument("--pre-relu", action="store_true", help="VGGish before its last ReLU; not for CMG")
    group.add_argument("--pca", type=Path, metavar="FILE", help="VGGish's PCA, vggish_pca_params.npz; not for CMG")
    group.add_argument("--uint8", action="store_true", help="quantize to VGGish's bytes after --pca; not for CMG")
    group.add_argument("--silence-for-missing", action="store_true",
                       help="give a video without audio the features of silence")
    group = parser.add_argument_group("lists")
    group.add_argument("--id", choices=("stem", "youtube"), default="stem",
                       help="a clip's id: the file name without its suffix, or its first 11 characters")
    group.add_argument("--labels", type=Path, metavar="CSV",
                       help="table with columns file (or video_id) and label (or category), and optionally split, "
                       "prompt, onset, offset; the lists for pretraining and transfer are written from it")
    group.add_argument("--columns", type=_columns, default=None, metavar="NAME,NAME,...",
                       help="column names of --labels if it has no header line, for example id,start,label,split "
                       "(VGGSound's own lists are recognized)")
    group.add_argument("--hf-columns", default=None, metavar="KEY=COLUMN,...",
                       help="columns of a dataset hf:NAME, such as id=clip,label=class,audio=sound (default: chosen by "
                       "type or by these names)")
    group.add_argument("--prompts", type=Path, metavar="CSV", help="columns label, prompt (default: the label itself)")
    group.add_argument("--format", choices=("zip", "ave"), default="zip",
                       help="ave: also write audio_feature.h5 and visual_feature.h5, in the order of --order")
    group.add_argument("--order", type=Path, metavar="FILE", help="AVE's Annotations.txt, for --format ave")
    group.add_argument("--ave-dtype", choices=("float32", "float64"), default="float32",
                       help="data type for --format ave")
    group = parser.add_argument_group("run")
    group.add_argument("--device", dest="device_name", default=None,
                       help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    group.add_argument("--batch", type=positive, default=None,
                       help="frames per forward pass (default: 16 on a GPU; 2 on a CPU, where more use memory without "
                       "saving time)")
    group.add_argument("--workers", type=positive, default=None,
                       help="clips processed in parallel (default: one per CPU core, 8 with a GPU)")
    group.add_argument("--shard", type=_shard, default="1/1", metavar="I/N", help="process the I-th of N parts")
    group.add_argument("--overwrite", action="store_true", help="recompute existing features")
