"""Build the device and the encoders from the command's options; contradictory options are reported in one line."""

import hashlib
import io
from pathlib import Path

import av
import numpy as np
import torch

from cmg.extract import audio, custom, front_ends, video, weights
from cmg.extract.encoders import LogMelSound, PatchPictures, StillPictures, VGG19Pictures, VGGishSound
from cmg.extract.media import Media, Unreadable, rgb
from cmg.extract.output import write_whole
from cmg.utils.errors import InputError

PCA_VIDEOS, PCA_FRAMES = 64, 10     # videos, and frames per video, that PCA filters are fitted to


def find_device(name):
    """The torch device named by --device; by default a GPU if there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise InputError(f"--device {name}: no such device; expected cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs; omit --device or pass "
                         "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False     # the published features are float32 throughout
    return device


def front_ends_of(opts):
    """Values of --front-end: modality -> key -> value.

    Raises:
        InputError: the modality's encoder has its own front end.
    """
    front_end = front_ends.read_flags(opts.front_end)
    for modality in front_end:
        name = getattr(opts, f"{modality}_encoder")
        if not custom.is_custom(name):
            raise InputError(f"--front-end {modality}.{next(iter(front_end[modality]))}: only for an ONNX file or a "
                             f"function; --{modality}-encoder {name} has its own front end; omit it")
    return front_end


def sound_encoder(opts, device):
    """The encoder named by --audio-encoder; None if audio is not extracted."""
    if opts.modality == "video":
        return None
    front = audio.FrontEnd(opts.audio_route, opts.framing, opts.resampler)
    if opts.uint8 and not opts.pca:
        raise InputError("--uint8: quantizes the output of --pca; pass --pca FILE as well")
    if opts.audio_encoder == "vggish":
        if not opts.vggish:
            raise InputError(f"--vggish: no file given; expected {weights.FILES['vggish']}; or use --audio-encoder "
                             "logmel, which needs none, or --modality video")
        return VGGishSound(weights.read(opts.vggish, "vggish", opts.vggish_kind), front, device, opts.pre_relu,
                           weights.read_pca(opts.pca) if opts.pca else None, opts.uint8)
    if opts.pre_relu or opts.pca:
        raise InputError(f"--pre-relu and --pca: only for vggish, not for --audio-encoder {opts.audio_encoder}; omit "
                         "them")
    if opts.audio_encoder == "logmel":
        return LogMelSound(front)
    if (opts.audio_route, opts.framing) != ("native", "second"):
        raise InputError("--audio-route and --framing: only for vggish and logmel; other encoders get each second at "
                         "its native rate; omit them")
    if custom.is_custom(opts.audio_encoder):
        return custom.CustomSound(opts.audio_encoder, device, front_ends_of(opts).get("audio"), opts.resampler)
    from cmg.extract.hub import HubSound
    return HubSound(opts.audio_encoder, device, opts.resampler)


def picture_encoder(opts, device, clips):
    """The encoder named by --video-encoder; None if video is not extracted."""
    if opts.modality == "audio":
        return None
    if opts.preset == "avsbench":
        return StillPictures()
    if opts.video_encoder in ("vgg19", "patches") and opts.video_form != "map":
        raise InputError(f"--video-form vector: not for {opts.video_encoder}, which always gives maps; omit it")
    if opts.video_encoder == "vgg19":
        if not opts.vgg19:
            raise InputError(f"--vgg19: no file given; expected {weights.FILES['vgg19']}; or use --video-encoder "
                             "patches, which needs none, or --modality audio")
        return VGG19Pictures(weights.read(opts.vgg19, "vgg19", opts.vgg19_kind), device)
    if opts.video_encoder == "patches":
        if opts.patch_channels > video.CELL ** 2 * 3:
            raise InputError(f"--patch-channels {opts.patch_channels}: expected at most {video.CELL ** 2 * 3}")
        if opts.patch_filters == "random":
            return PatchPictures(video.random_filters(opts.patch_channels))
        filters = pca_filters(opts.out, clips, opts.patch_channels)
        return PatchPictures(filters, f"pca {hashlib.sha256(filters.tobytes()).hexdigest()[:12]}")
    if custom.is_custom(opts.video_encoder):
        return custom.CustomPictures(opts.video_encoder, device, front_ends_of(opts).get("video"),
                                           opts.video_form)
    from cmg.extract.hub import HubPictures
    return HubPictures(opts.video_encoder, device, opts.video_form)


def pca_filters(folder, clips, channels):
    """Filters fitted to the first seconds of videos evenly spaced by id; saved in the folder for later runs.

    Raises:
        InputError: no frame can be read.
    """
    path = Path(folder) / f"patch_filters_{channels}.npy"
    if path.exists():
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not the filters of an earlier run ({str(error)[:80]}); expected a NumPy array; "
                             "choose another --out, or delete the file if no feature was written yet") from error
    names = list(clips)
    frames = []
    for name in names[::-(-len(names) // PCA_VIDEOS)]:
        try:
            media = Media(clips[name])
            if media.facts.frame_rate:
                step = max(1, round(media.facts.frame_rate))
                frames += [video.resize(rgb(frame)) for frame, first, end in media.timeline(step * PCA_FRAMES)
                           if -(-first // step) * step < end]           # one per second
        except (Unreadable, av.error.FFmpegError):
            continue                                        # shown in the report later
    if not frames:
        raise InputError("--patch-filters pca: no frame of these videos can be read; check the files, or use "
                         "--patch-filters random")
    filters = video.pca_filters(frames, channels)
    buffer = io.BytesIO()
    np.save(buffer, filters)
    write_whole(path, buffer.getvalue())
    return filters
