"""AVE to AVVP, twelve shared classes: a head is trained on AVE's clips and tested on AVVP's."""

from typing import Any

from cmg.data.clips import Clips, Paths
from cmg.data.csv import read_classes
from cmg.data.sets.ave import read_labels, read_order
from cmg.data.sets.avvp import AVVP
from cmg.utils.errors import InputError

# AVVP's name -> AVE's, in the label order of the published class list.
SHARED = {"Dog": "Bark", "Car": "Race car, auto racing", "Helicopter": "Helicopter", "Violin_fiddle": "Violin, fiddle",
          "Frying_(food)": "Frying (food)", "Motorcycle": "Motorcycle", "Acoustic_guitar": "Acoustic guitar",
          "Banjo": "Banjo", "Baby_cry_infant_cry": "Baby cry, infant cry", "Chainsaw": "Chainsaw", "Cat": "Cat",
          "Accordion": "Accordion"}


class AVEShared(Clips):
    """Training side: AVE's samples of the shared classes (of all AVE splits, as in the published order file).

    Args:
        paths: name -> Path of "categories", "label", "order", and "ave_audio" or "ave_video".
        modality: "audio" or "video".
        reading: on_bad_clip, in_memory, seconds, padding; see `Clips`.
    Raises:
        InputError: a wrong number of classes, row numbers outside the labels, bad rows.
    """

    def __init__(self, paths: Paths, modality: str, **reading: Any) -> None:
        classes, labels = read_classes(paths["categories"]), read_labels(paths["label"])
        if labels.shape[2] != len(classes) + 1:
            raise InputError(f"{paths['label']}: {labels.shape[2]} columns; expected {len(classes)} classes of "
                             f"{paths['categories']} and a background; use files that belong together")
        rows = read_order(paths["order"], len(labels))
        super().__init__(f"AVE->AVVP train {modality}", (modality,), [str(row) for row in rows],
                         {modality: paths[f"ave_{modality}"]}, classes=classes, labels=labels[rows],
                         **reading)


class AVVPShared(AVVP):
    """Test side: AVVP's events of the shared classes.

    Args:
        paths: name -> Path of "categories", "audio_csv" and "avvp_audio", or "visual_csv" and "avvp_video".
        modality, reading: see `AVVP`.
    """

    def __init__(self, paths: Paths, modality: str, **reading: Any) -> None:
        super().__init__({**paths, modality: paths[f"avvp_{modality}"]}, modality, name="AVE->AVVP test", **reading)
