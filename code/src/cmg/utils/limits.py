"""What files of others may cost. Beyond a limit a reader refuses in one line; each is far above what any published or
own file needs.

Valid Python 3.7, standard library alone.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bytes, unless it says otherwise."""

    # a feature: a clip of a minute (60, 7, 7, 512) in float32 is 6 MB; its zip has one member
    zip_bytes: int = 64 << 20
    pickle_bytes: int = 64 << 20
    members: int = 64               # of a zip
    dimensions: int = 6             # of an array
    array_bytes: int = 60 << 20     # that an extraction writes: less than a reader admits
    feature: float = 1e15           # value of a feature from Python; squares of sums of such fit into float32
    chunk_bytes: int = 256 << 20    # of HDF5: one clip, 1 MB in the published features
    clips: int = 1 << 22            # rows of an HDF5 array
    # lists and texts
    list_bytes: int = 256 << 20     # an annotation file; the largest published one is 3 MB
    record_bytes: int = 1 << 20     # a sidecar, an exported config.json
    text_bytes: int = 64 << 20      # a log or results
    predictions_bytes: int = 2 << 30        # of one file's arrays when unpacked
    hashed_bytes: int = 64 << 20    # a list in a provenance record; of larger files the size is recorded
    figure: float = 1e9             # in a line of results: no metric comes near
    path_letters: int = 4096        # of a path or name there
    classes: int = 1 << 16          # of a head from Python
    seed: int = 1 << 43             # times a million it is still an int64: of the order of an epoch
    onnx_bytes: int = 2 << 30       # of an ONNX file: what its format admits
    onnx_data_bytes: int = 16 << 30         # of the files beside it that hold its numbers
    # recordings of Spoken Digits
    download_bytes: int = 64 << 20
    unpacked_bytes: int = 256 << 20
    recording_bytes: int = 1 << 20
    # a video
    pixels: int = 1 << 26           # of a frame; 8K has 33 million
    frame_rate: int = 1 << 20       # nominal; variable rates are told as up to 90,000
    sound_rate: int = 192_000       # a second's filter to 16 kHz takes 300 MB at this one
    least_sound_rate: int = 1000
    video_seconds: int = 1 << 15    # nine hours, where all seconds are taken
    silence_seconds: int = 600      # that stand for missing sound
    sound_seconds: int = 600        # held at once by `continuous` framing
    # a checkpoint: what its config may claim
    width: int = 1 << 20            # codes, channels
    layers: int = 256
    parameters: int = 1 << 31


LIMITS = Limits()
