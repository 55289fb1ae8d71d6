"""File layouts for the features of a clip: the published zips, or the files of AVSBench-S4."""

import io
import wave
from pathlib import Path

import numpy as np

from cmg.data.features import fit_length
from cmg.extract import audio, output
from cmg.extract.media import Media
from cmg.extract.output import write_whole
from cmg.utils.files import as_input_error

PICTURES = Path("AVSBench") / "Single-source" / "s4_data" / "visual_frames"
SOUNDS = PICTURES.with_name("audio_wav")


class Zips:
    """<folder>/{audio,video}/zip/<id>.zip, the published layout."""

    def __init__(self, folder, modalities):
        self.folder, self.modalities = Path(folder), modalities

    def path_of(self, modality, name):
        return self.folder / modality / "zip" / f"{name}.zip"

    def is_there(self, modality, name):
        return output.is_good_zip(self.path_of(modality, name))

    def exists(self, modality, name):
        return self.path_of(modality, name).exists()

    def save(self, made, path, start):
        """Write a clip's features; remove old ones that could not be extracted this time."""
        for modality in self.modalities:
            feature, target = getattr(made, modality), self.path_of(modality, made.row.id)
            if feature is None:
                with as_input_error(target, output.OTHER):
                    target.unlink(missing_ok=True)
            else:
                write_whole(target, output.zip_bytes(made.row.id, feature))


class AVSBench(Zips):
    """AVSBench-S4 in <folder>/AVSBench: VGGish zips, PNG frames and 16 kHz wavs, by split and category."""

    def __init__(self, folder, modalities, labels, seconds):
        super().__init__(folder, modalities)
        self.split, self.category, self.seconds = labels.first("split"), labels.first("label"), seconds

    def path_of(self, modality, name):
        split, category = self.split[name], self.category[name]
        if modality == "audio":
            return self.folder / "AVSBench" / "feature" / "audio" / split / "zip" / category / f"{name}.zip"
        return self.folder / (PICTURES if modality == "video" else SOUNDS) / split / category / name

    def is_there(self, modality, name):
        if modality == "audio":
            return super().is_there(modality, name) and self.path_of("wav", name).with_suffix(".wav").exists()
        return all((self.path_of(modality, name) / f"{name}_{k}.png").exists() for k in range(1, self.seconds + 1))

    exists = is_there

    def save(self, made, path, start):
        """Write a clip's frames, audio and features; a clip shorter than T seconds repeats its last row and frame."""
        name = made.row.id
        if made.video is not None:
            output.write_pictures(self.path_of("video", name), name, fit_length(made.video, self.seconds, path))
        if made.audio is not None:
            feature = fit_length(made.audio, self.seconds, path)
            write_whole(self.path_of("audio", name), output.zip_bytes(name, feature))
            write_whole(self.path_of("wav", name).with_suffix(".wav"), nearest_wav(path, self.seconds, start))


def nearest_wav(path, seconds, start):
    """A 16-bit stereo wav at 16 kHz, as written by moviepy: at most int(16000 * duration rounded to 0.01 s) samples."""
    media = Media(path, start)
    sound = [audio.nearest(samples, k) for k, samples in enumerate(media.seconds_of_sound(seconds, True))]
    sound = np.concatenate(sound)
    if media.facts.duration is not None:
        sound = sound[:int(audio.RATE * round(media.facts.duration - start, 2))]
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(audio.RATE)
        file.writeframes(sound.astype("<i2").tobytes())
    return buffer.getvalue()
