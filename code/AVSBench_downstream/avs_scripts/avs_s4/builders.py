"""Shared by training and testing: run folders, checks of the encoder, and the demo's scenes."""

import time
from dataclasses import dataclass
from pathlib import Path

from cmg.data import origins
from cmg.data.sets import avs_s4
from cmg.downstream.encode import check_fit, check_modality, check_shape
from cmg.utils.errors import InputError
from cmg.utils.files import remove_leftovers

STAMP = "%Y%m%d-%H%M%S"


@dataclass(frozen=True)
class RunFolders:
    """The run folders <log_dir>/<session>_<direction>_<YYYYmmdd-HHMMSS>."""

    log_dir: Path
    session: str
    direction: str              # "at", or "??" for any

    def create(self):
        """Create a new folder, with a later time in its name than all others, even if the clock was set back."""
        names = [folder.name[-15:] for folder in self._all()]
        while True:
            stamp = max([time.strftime(STAMP), *map(_after, names)])
            folder = Path(self.log_dir) / f"{self.session}_{self.direction}_{stamp}"
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:             # another run in the same second
                time.sleep(1)
            except OSError as error:
                raise InputError(f"{folder}: cannot be created ({error.strerror}); choose another --log_dir") from error

    def newest(self, file):
        """The newest folder that contains `file`, None if there is none."""
        folders = self._all()
        for folder in folders:
            remove_leftovers((folder / file).parent)
        return max((folder for folder in folders if (folder / file).is_file()),
                   key=lambda folder: folder.name[-15:], default=None)

    def _all(self):
        return list(Path(self.log_dir).glob(f"{self.session}_{self.direction}_????????-??????"))


def _after(name):
    """The second after a time in the format of folder names, "" if it is not one."""
    try:
        return time.strftime(STAMP, time.localtime(time.mktime(time.strptime(name, STAMP)) + 1))
    except ValueError:
        return ""


def require_modalities(pretrained, modalities):
    """Raise InputError unless the encoder was pretrained on all `modalities`."""
    for modality in modalities:
        check_modality(pretrained.encoder, modality, pretrained.path)


def require_fit(pretrained, dataset):
    """Raise InputError unless the encoder accepts the audio and text features of an S4."""
    if "audio" in dataset.modalities:
        check_fit(pretrained.encoder, dataset, "audio", pretrained.path)
    if "text" in dataset.modalities:
        check_shape(pretrained.encoder, "text", dataset.words.shape[1:], dataset.name, pretrained.path)


def warn_of_features(pretrained, paths, modalities):
    """Warn of features of another kind than those of pretraining; `paths` as for S4."""
    pretrained.warn(origins.other_features(pretrained.path, pretrained.encoder.features,
                                          [(m, Path(paths[m])) for m in dict.fromkeys(modalities)]))


def data_name(is_demo, root, paths):
    """Name of the dataset in results. Creates the demo's scenes if they are missing.

    Args:
        is_demo: use the demo's scenes.
        root: data root.
        paths: dotted name -> path relative to the root.
    """
    if not is_demo:
        return avs_s4.NAME
    import demo_scenes  # here, because only the demo draws scenes
    demo_scenes.build(root, paths)
    return demo_scenes.NAME
