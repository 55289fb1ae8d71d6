"""Limits on the size of untrusted files. Readers reject larger ones in one line; all limits are far above the needs of
real data.

Must run on Python 3.7 with only the standard library.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """In bytes unless stated otherwise."""

    # a feature: a clip of a minute (60, 7, 7, 512) in float32 is 6 MB; its zip has one member
    zip_bytes: int = 64 << 20
    pickle_bytes: int = 64 << 20
    members: int = 64               # members of a zip
    dimensions: int = 6             # dimensions of an array
    array_bytes: int = 60 << 20     # array written by an extraction; below the limits of readers
    feature: float = 1e15           # value of a feature from Python; squares of sums of such values fit into float32
    chunk_bytes: int = 256 << 20    # HDF5 chunk: one clip, 1 MB in the published features
    clips: int = 1 << 22            # rows of an HDF5 array
    # lists and texts
    list_bytes: int = 256 << 20     # an annotation file; the largest published one is 3 MB
    record_bytes: int = 1 << 20     # a sidecar, an exported config.json
    text_bytes: int = 64 << 20      # a log or results
    predictions_bytes: int = 2 << 30        # all arrays of one file when unpacked
    hashed_bytes: int = 64 << 20    # a list in a provenance record; for larger files only the size is recorded
    figure: float = 1e9             # a metric in a line of results
    path_letters: int = 4096        # characters of a path or name in results
    classes: int = 1 << 16          # classes of a head from Python
    seed: int = 1 << 43             # a million times a seed still fits into int64, for the order of an epoch
    onnx_bytes: int = 2 << 30       # an ONNX file; the limit of its format
    onnx_data_bytes: int = 16 << 30         # external data of an ONNX file
    # recordings of Spoken Digits
    download_bytes: int = 64 << 20
    unpacked_bytes: int = 256 << 20
    recording_bytes: int = 1 << 20
    # a video
    pixels: int = 1 << 26           # pixels of a frame; 8K has 33 million
    frame_rate: int = 1 << 20       # nominal rate; variable rates are reported as up to 90,000
    sound_rate: int = 192_000       # Hz; at this rate the filter to 16 kHz takes 300 MB
    least_sound_rate: int = 1000
    video_seconds: int = 1 << 15    # nine hours, if all seconds are used
    silence_seconds: int = 600      # silence that replaces missing audio
    sound_seconds: int = 600        # audio kept in memory by `continuous` framing
    # values in the config of a checkpoint
    width: int = 1 << 20            # codes, channels
    layers: int = 256
    parameters: int = 1 << 31


LIMITS = Limits()
