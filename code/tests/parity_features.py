"""Golden numbers of the published feature extractors: folder -> checks, merged into parity.py.

Inputs and weights follow the rules of golden/README_features.md; sizes, counts and which seconds come from the arrays.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
import torch

from cmg.extract import audio, networks, video
from cmg.extract.clip import Timing, extract
from cmg.extract.encoders import VGG19Pictures, VGGishSound
from cmg.extract.media import Media, rgb
from cmg.extract.weights import Weights
from golden_io import Check, det, load, relative_error

RESAMPLED, LOG_MEL, VGGISH, VGG19 = 1e-9, 5e-6, 1e-5, 2e-5
SEEDS = 200                         # tried for inputs of other golden files


def exact(ours, theirs):
    """0 where two integer arrays are equal, inf elsewhere."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return 0.0 if ours.shape == theirs.shape and (ours == theirs).all() else float("inf")


def difference(ours, theirs):
    """Largest absolute difference: log-mel is a logarithm, its errors are absolute ones."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")


def signal(name, total=None):
    """The signal of a name such as `noise44` by the rules of the README, (int16 (N, channels), rate).

    Args:
        total: its `<signal>_sum`; other golden files may have another seed, which is the one that gives this sum.
    """
    form, khz = re.fullmatch(r"([a-z]+)(\d+)", name).groups()
    rate = {"11": 11025, "22": 22050, "44": 44100}.get(khz, int(khz) * 1000)
    t = np.arange(10 * rate) / rate
    for seed in [11 if form == "noise" else 12, *range(SEEDS)]:
        random = np.random.RandomState(seed)
        if form == "sweep":
            x = 0.5 * np.sin(2 * np.pi * (50 * t + (7800 - 50) / 20 * t ** 2))
        elif form == "noise":
            x = 0.1 * random.standard_normal((len(t), 2)) * (0.2 + 0.8 * t[:, None] / 10) * [1, 0.5]
        else:
            x = 0.01 * random.standard_normal(len(t))
            places = np.arange(100, len(t), rate // 4)
            x[places] += 0.9 * (-1.0) ** np.arange(len(places))
        samples = np.clip(np.rint(32767 * x.reshape(len(t), -1)), -32768, 32767).astype(np.int16)
        if total is None or form == "sweep" or signal_sum(samples) == total:
            break
    return samples, rate


def signal_sum(samples):
    """The README's check of a signal."""
    return int((samples.astype(np.int64).sum(1) * np.arange(1, len(samples) + 1)).sum() % 1000003)


def rows_of(ours, theirs, which=()):
    """Rows of ours that golden rows stand for: those of the README, or, of another number of rows, the nearest."""
    if len(theirs) == len(ours):
        return ours
    if len(which) != len(theirs):
        which = [int(np.abs(ours - row).max((1, 2)).argmin()) for row in theirs]
    return ours[list(which)]


def seconds(samples, rate):
    """A sound cut into its seconds."""
    return [samples[k:k + rate] for k in range(0, len(samples), rate)]


WHICH = {"ave_noise44": (0, 4, 9), "ave_clicks48": (0, 9), "cont_sweep16": (0, 5, 9), "cont_noise44": (0, 9),
         "nearest_noise44": (0, 9)}


def check_audio(folder):
    """Signals, resampling, both framings, the route `nearest`, the mel matrix and Google's smoke test."""
    golden, _ = load(folder, "features_audio")
    checks, sounds = {}, {}
    for key in [key for key in golden if key.endswith("_sum")]:
        name = key.removesuffix("_sum")
        sounds[name] = signal(name, int(golden[key]))
        checks[f"{name}, input"] = exact(signal_sum(sounds[name][0]), golden[key]), 0
    time = np.linspace(0, 3, 132300)
    for key, theirs in golden.items():
        form, _, rest = key.partition("_")
        name, _, resampler = rest.partition("_")
        front = {"ave": ("native", "second"), "cont": ("native", "continuous"), "nearest": ("nearest", "second")}
        if name in sounds and form in front:
            samples, rate = sounds[name]
            route, framing = front[form]
            ours = audio.FrontEnd(route, framing, resampler or "r022").patches(seconds(samples, rate), rate)
            checks[key] = difference(rows_of(ours, theirs, WHICH.get(f"{form}_{name}", ())), theirs), LOG_MEL
        elif form == "resampled":
            samples, rate = sounds[name]
            wave = audio.resample(audio.mono(samples[:rate]), rate, resampler=resampler)
            checks[key] = difference(np.concatenate([wave[:64], wave[8000:8064], wave[-64:]]), theirs), RESAMPLED
        elif form == "smoke":
            wave = audio.resample(np.sin(2 * np.pi * 1000 * time), 44100, resampler=rest)
            checks[key] = difference(audio.log_mel(wave)[[0, 1, 95]], theirs), LOG_MEL
    checks["nearest, index"] = exact(audio.nearest_index([0, 1, 2, 3, 4, 5, 79999, 159999]), golden["nearest_index"]), 0
    checks["continuous, rows"] = exact([audio.count_rows(n) for n in golden["cont_lengths"]], golden["cont_counts"]), 0
    checks["silence"] = difference(audio.log_mel(np.zeros(400)), golden["silence"]), LOG_MEL
    checks["mel matrix"] = relative_error(audio.mel_matrix(), golden["mel_matrix"]), RESAMPLED
    checks["window"] = relative_error(audio.window(), golden["window"]), RESAMPLED
    return [Check("features_audio", group, *error) for group, error in checks.items()]


def frame(k, height, width, seed=11):
    """RGB frame k, uint8, by the rule of the README; `seed`: of frame 0."""
    y, x = np.mgrid[:height, :width]
    red = 127.5 + 100 * np.sin(2 * np.pi * (3 * x / width + 0.1 * k))
    green = 127.5 + 100 * np.cos(2 * np.pi * (2 * y / height + x / width) + 0.2 * k)
    blue = 127.5 + 60 * np.sin(2 * np.pi * 4 * x * y / (height * width))
    noise = np.random.RandomState(seed + k).randint(-20, 21, (height, width, 3))
    return np.clip(np.rint(np.stack([red, green, blue], -1) + noise), 0, 255).astype(np.uint8)


def frame_rule(folder):
    """Sizes of the golden frames in their order, and the seed that gives the sum of the first."""
    golden, _ = load(folder, "features_video")
    names = [key.removeprefix("resized_") for key in golden if re.fullmatch(r"resized_\d+x\d+", key)]
    sizes = [tuple(map(int, name.split("x"))) for name in names] or [(240, 320), (360, 480)]
    total = golden.get(f"resized_{names[0]}_sum", [None])[0] if names else None
    seeds = (seed for seed in [11, *range(SEEDS)] if total is None or frame(0, *sizes[0], seed).sum(dtype=int) == total)
    return sizes, next(seeds, 11)


def check_video(folder):
    """Which frames are taken, and OpenCV's resize."""
    golden, _ = load(folder, "features_video")
    checks = {}
    sizes, seed = frame_rule(folder)
    for k, (height, width) in enumerate(sizes):
        name = f"resized_{height}x{width}"
        source = frame(k, height, width, seed)
        ours = video.resize(source)
        flat = ours.ravel().astype(np.int64)
        sums = [source.sum(dtype=np.int64), flat.sum(), (flat * (np.arange(flat.size) % 97)).sum()]
        checks[name] = exact(ours[::8, ::8], golden[name])
        checks[f"{name}, sums"] = exact(sums, golden[f"{name}_sum"])
    seconds, per_second = 10, golden["length_index"].shape[1] // 10
    timing = Timing(seconds, per_second, "tenths")
    indices = [timing.frames(n, n / seconds)[1].ravel() for n in golden["lengths"].tolist()]
    checks["sampled frames"] = exact(indices, golden["length_index"])
    return [Check("features_video", group, error, 0) for group, error in checks.items()]


def filled(network, section):
    """A network with its weights drawn by the golden rule, in evaluation mode."""
    state = {key: det(f"{section}.{key}", tuple(x.shape)).float() for key, x in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def vggish(section):
    """VGGish of a section such as `vggish8`: every width divided by the number behind the name."""
    divisor = int(section.removeprefix("vggish") or 1)
    widths = (64, 128, 256, 256, 512, 512, 4096, 4096, 128)
    return filled(networks.VGGish([width // divisor for width in widths]), section)


def vgg19(section):
    """VGG-19 of a section such as `vgg19_8`."""
    divisor = int(section.removeprefix("vgg19").lstrip("_") or 1)
    widths = (64, 64, 128, 128, *(256,) * 4, *(512,) * 8)
    return filled(networks.VGG19([width // divisor for width in widths]), section)


def pixels(folder, count):
    """The first golden frames, resized: (count, 224, 224, 3) uint8."""
    sizes, seed = frame_rule(folder)
    return torch.from_numpy(np.stack([video.resize(frame(k, *sizes[k], seed)) for k in range(count)]))


def check_nets(folder):
    """VGGish before and after its last ReLU, VGG-19's pool5, Caffe's preprocessing, PCA, the printed log-mel."""
    golden, _ = load(folder, "features_nets")
    checks, patches = {}, None
    for key, theirs in golden.items():
        net = re.fullmatch(r"(vggish\d*)_(embedding|pre)|(vgg19(?:_\d+)?)_pool5", key)
        if net and net[1]:
            if patches is None:
                patches = torch.from_numpy(audio.FrontEnd().patches(seconds(*signal("sweep16")), 16000))
            with torch.inference_mode():
                checks[key] = relative_error(vggish(net[1])(patches, net[2] == "pre"), theirs), VGGISH
        elif net:
            with torch.inference_mode():
                ours = vgg19(net[3])(networks.caffe_input(pixels(folder, len(theirs))))
            checks[key] = relative_error(ours, theirs), VGG19
    step = video.SIDE // len(golden["preprocessed"])
    ours = networks.caffe_input(pixels(folder, 1))[0].permute(1, 2, 0)[::step, ::step]
    checks["preprocessed"] = relative_error(ours, golden["preprocessed"]), VGG19
    shape = golden["post_input"].shape[1]
    reduced = networks.pca(golden["post_input"], det("vggish_pca.pca_eigen_vectors", (shape, shape)).float(),
                           det("vggish_pca.pca_means", (shape,)).float())
    checks["PCA"] = relative_error(reduced, golden["post_pca"]), VGGISH
    checks["PCA, bytes"] = exact(networks.quantize(reduced), golden["post_uint8"]), 0
    wave = audio.resample(np.sin(2 * np.pi * 1000 * np.linspace(0, 3, 132300)), 44100)
    rows, bands = golden["published_smoke_log_mel_frames"], golden["published_smoke_log_mel_bands"]
    ours = audio.log_mel(wave)[np.ix_(rows, bands)]
    checks["log-mel as printed"] = difference(ours, golden["published_smoke_log_mel"]), LOG_MEL
    return [Check("features_nets", group, *error) for group, error in checks.items()]


def encoder(section, network, **settings):
    """The command's encoder over a network of the golden rule."""
    kind = "audioset" if section.startswith("vggish") else "caffe"
    weights = Weights("vggish" if kind == "audioset" else "vgg19", kind, "name given", "", network.state_dict())
    make = VGGishSound if kind == "audioset" else VGG19Pictures
    return make(weights, device=torch.device("cpu"), **settings)


def check_clip(folder):
    """A whole file through decoding, sampling, resizing, resampling and both networks, as the command runs them."""
    golden, _ = load(folder, "features_clip")
    checks = {}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "clip.mp4"
        path.write_bytes(golden["mp4"].tobytes())
        media = Media(path)
        frames = [rgb(frame) for frame, first, end in media.timeline() for _ in range(first, end)]
        checks["frames"] = exact(len(frames), golden["frame_count"]), 0
        checks["frames, sums"] = exact([x.sum(dtype=np.int64) for x in frames], golden["frame_sums"]), 0
        rows = next(len(x) for key, x in golden.items() if key.startswith("video_feature_"))
        timing = Timing(rows, golden["sample_index"].size // rows)
        _, table = timing.frames(len(frames), media.facts.frame_rate)
        checks["sampled frames"] = exact(table.ravel(), golden["sample_index"]), 0
        sums = [video.resize(frames[k]).sum(dtype=np.int64) for k in table.ravel()]
        checks["resized frames, sums"] = exact(sums, golden["resized_sums"]), 0
        sound = np.concatenate(list(media.seconds_of_sound()))
        rate, (length, channels) = int(golden["wav_rate"]), golden["wav_shape"]
        near = abs(len(sound) - length) <= 20 and sound.shape[1] == channels and media.facts.audio_rate == rate
        checks["sound, length and rate"] = 0.0 if near else float("inf"), 0
        checks["sound, samples"] = exact(sound[20000:20000 + len(golden["wav_head"])], golden["wav_head"]), 0
        for key, theirs in golden.items():
            log_mel = re.fullmatch(r"log_mel_(r\d+)", key)
            feature = re.fullmatch(r"(audio|video)_feature_(\d+)(?:_(r\d+))?", key)
            if log_mel:
                ours = audio.FrontEnd(resampler=log_mel[1]).patches(media.seconds_of_sound(rows), rate)
                checks[key] = difference(rows_of(ours, theirs, (0, rows - 1)), theirs), LOG_MEL
            elif feature and feature[1] == "audio":
                section, front = f"vggish{feature[2]}", audio.FrontEnd(resampler=feature[3])
                ours = extract(path, "clip", timing, sound=encoder(section, vggish(section), front=front))
                checks[key] = relative_error(ours.audio, theirs), VGGISH
            elif feature:
                section = f"vgg19_{feature[2]}"
                ours = extract(path, "clip", timing, pictures=encoder(section, vgg19(section)))
                checks[key] = relative_error(ours.video, theirs), VGG19
    return [Check("features_clip", group, *error) for group, error in checks.items()]


CHECKS = {"features_audio": check_audio, "features_clip": check_clip, "features_nets": check_nets,
          "features_video": check_video}
