"""Clips of Natural: short videos of recordings and photographs, and their features from this project's extraction.

A clip pairs a recording and a photograph of the same class and split at random. To keep recording conditions from
revealing the class, every recording is mixed to mono, resampled to 8 kHz and stripped of digital silence, starts at a
random position, repeats after a pause if it is shorter than a clip, and gets the same level within 6 dB and faint
noise. A photograph is shown during the whole clip; half of them are mirrored.
"""

import csv
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from cmg.data.manifest import SPLITS
from cmg.demos import natural_sources
from cmg.demos.tree import Deck, build
from cmg.extract import audio, command
from cmg.extract.hub_data import read_sound, still_video
from cmg.extract.media import Unreadable
from cmg.extract.run import run as run_extraction
from cmg.extract.video import SIDE, resize
from cmg.utils.errors import InputError, Parser
from cmg.utils.files import open_input
from cmg.utils.limits import LIMITS

SECONDS = 5                             # length of a clip
RATE = 8000                             # sample rate of its audio in Hz
LEVEL, GAIN, NOISE = -23, 6, -58        # RMS in dB of full scale, its largest random change, RMS of the noise
FRAME, SILENT = 400, 1e-4               # frames of this many samples with a lower peak are digital silence
PAUSE = (0.25, 1.0)                     # seconds before a short recording repeats
SHARES = {"train": 1, "val": 15, "test": 9}        # pretraining clips per clip of the split
BANDS = 48                              # VGGish's bands below 4 kHz
CHANNELS = 64                           # channels of `patches`
MARKER, LABELS, SOURCES, VIDEOS = "clips.json", "labels.csv", "sources.csv", "videos"
PROMPT = "a recording and a photograph of a {}"


@dataclass(frozen=True)
class Encoders:
    """Options of `prepare.py features`: encoders of audio, video and text, and front ends of custom encoders."""

    audio: str = "logmel"
    video: str = "patches"
    text: str = "hashing"
    front_end: tuple[str, ...] = ()

    def options(self):
        """The options as command-line arguments."""
        more = [text for front in self.front_end for text in ("--front-end", front)]
        return ["--audio-encoder", self.audio, "--video-encoder", self.video, "--text-encoder", self.text,
                "--patch-filters", "pca", "--patch-channels", str(CHANNELS), *more]


def make(folder, sources, encoders, clips, seed=0, progress=True):
    """Create clips from a folder of sources, and extract their features; existing ones are kept.

    Args:
        folder: output folder; videos and features get separate subfolders.
        sources: folder of recordings and photographs; see `natural_sources.read_index`.
        encoders: `Encoders`.
        clips: number of pretraining clips; the other splits are proportional.
        seed: seed of all random choices.
        progress: show progress bars.

    Returns:
        folder of the features, in the format of `natural.read`.

    Raises:
        InputError: invalid sources, other clips in the folder, or a clip without features.
    """
    found = natural_sources.read_index(sources)
    classes = sorted({source.label for source in found})
    if not len(classes) * SHARES["val"] <= clips <= LIMITS.clips:
        raise InputError(f"--clips {clips}: expected {len(classes) * SHARES['val']} or more for {len(classes)} classes")
    listed = hashlib.sha256("\n".join(map(str, found)).encode()).hexdigest()
    settings = {"name": "clips of Natural", "version": 1, "seed": seed, "clips": clips, "sources": listed}
    made = folder / "clips"
    build(made, MARKER, settings, lambda partial: _write(partial, sources, found, classes, clips, seed, progress))
    named = "-".join(Path(name).stem for name in (encoders.audio, encoders.video, encoders.text))
    out = folder / re.sub(r"[^\w.-]+", "_", f"features-{named}")
    parser = Parser(prog="natural.py")
    command.add_arguments(parser)
    opts = parser.parse_args([str(made / VIDEOS), "--out", str(out), "--labels", str(made / LABELS), "--seconds",
                              str(SECONDS), *encoders.options()])
    command.complete(opts)
    if run_extraction(opts):
        raise InputError(f"{out / 'report.csv'}: some clips have no features; expected all; see the report")
    (out / SOURCES).write_bytes((made / SOURCES).read_bytes())
    return out


def _write(folder, sources, found, classes, clips, seed, progress):
    """Write the videos and the lists of clips."""
    rng, waves = np.random.default_rng([seed, *b"natural"]), {}
    (folder / VIDEOS).mkdir()
    labels, origins = [("file", "label", "split", "prompt")], [("id", "split", "class", "sound", "photo")]
    keys = {split: np.arange(clips // share) % len(classes) for split, share in SHARES.items()}
    with tqdm(total=sum(map(len, keys.values())), unit="clip", desc="natural clips",
              disable=None if progress else True) as bar:
        for split in SPLITS:
            pools = {kind: [s for s in found if (s.kind, s.split) == (kind, split)] for kind in natural_sources.KINDS}
            decks = {kind: Deck([classes.index(s.label) for s in pool], rng) for kind, pool in pools.items()}
            for k, key in enumerate(keys[split]):
                sound, photo = (pools[kind][deck.next(key)].file for kind, deck in decks.items())
                name = f"{split}{k:05d}"
                if sound not in waves:
                    waves[sound] = read_wave(sources / sound)
                picture = read_photo(sources / photo)[:, ::-1 if rng.random() < 0.5 else 1]
                video = still_video(picture, (clip_sound(waves[sound], rng)[:, None], RATE), SECONDS, lossy=True)
                (folder / VIDEOS / f"{name}.mkv").write_bytes(video)
                labels.append((name, classes[key], split, PROMPT.format(classes[key].replace("_", " "))))
                origins.append((name, split, classes[key], sound, photo))
                bar.update()
    for name, rows in ((LABELS, labels), (SOURCES, origins)):
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def read_wave(path):
    """Read a recording as (N,) float32 at 8 kHz, mono, with RMS 1 and without digital silence.

    Raises:
        InputError: not a recording, or only silence.
    """
    from scipy.signal import resample_poly  # here, because most programs do not resample
    try:
        samples, rate = read_sound(path)
    except Unreadable as error:
        raise InputError(error) from None
    common = math.gcd(rate, RATE)
    wave = resample_poly(audio.mono(samples), RATE // common, rate // common).astype(np.float32)
    frames = np.pad(wave, (0, -len(wave) % FRAME)).reshape(-1, FRAME)
    wave = frames[np.abs(frames).max(1) > SILENT].ravel()
    if not len(wave):
        raise InputError(f"{path}: only silence; expected a recording; remove its line")
    return wave / np.sqrt(np.mean(wave ** 2))


def clip_sound(wave, rng):
    """The audio of a clip, (SECONDS * RATE,) int16, from a recording of `read_wave`."""
    length = SECONDS * RATE
    if len(wave) < length:
        pause = np.zeros(round(rng.uniform(*PAUSE) * RATE), np.float32)
        wave = np.tile(np.concatenate([wave, pause]), 1 + -(-length // (len(wave) + len(pause))))
    start = rng.integers(len(wave) - length + 1)
    level, noise = 10 ** ((LEVEL + rng.uniform(-GAIN, GAIN)) / 20), 10 ** (NOISE / 20)
    sound = level * wave[start:start + length] + noise * rng.standard_normal(length)
    return (audio.SCALE * sound.clip(-1, 1 - 1 / audio.SCALE)).astype(np.int16)


def read_photo(path):
    """Read a photograph in the encoders' size, (224, 224, 3) uint8.

    Raises:
        InputError: not a photograph, or too large.
    """
    try:
        with open_input(path) as file, Image.open(file) as image:
            if image.width * image.height > LIMITS.pixels:
                raise ValueError(f"{image.width} x {image.height} pixels")
            picture = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as a photograph ({str(error)[:100]}); expected a JPEG or PNG; "
                         "download it again, or remove its line") from None
    return resize(picture)


def originals(sources, sounds, photos):
    """Content of clips for display in the report: the first seconds of the recordings, and the photographs.

    Args:
        sources: folder of recordings and photographs.
        sounds, photos: files below it, (N).

    Returns:
        {"audio": log-mel spectrogram (48 bands, frames), "video": image (112, 112, 3)}, uint8, for each clip.

    Raises:
        InputError: a file is missing or cannot be decoded.
    """
    from scipy.signal import resample_poly  # here, because most programs do not resample
    bands = {}
    for name in dict.fromkeys(sounds):
        wave = 10 ** (LEVEL / 20) * np.resize(read_wave(sources / name), SECONDS * RATE)       # repeats short ones
        bands[name] = (audio.log_mel(resample_poly(wave, audio.RATE, RATE)) - audio.SILENCE).clip(0)[:, :BANDS].T
    largest = max(x.max() for x in bands.values())
    pictures, half = {name: read_photo(sources / name) for name in dict.fromkeys(photos)}, SIDE // 2
    return [{"audio": (255 * bands[sound] / largest).astype(np.uint8),
             "video": pictures[photo].reshape(half, 2, half, 2, 3).mean((1, 3)).astype(np.uint8)}
            for sound, photo in zip(sounds, photos)]
