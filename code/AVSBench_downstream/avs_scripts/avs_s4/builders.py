"""What training and testing build alike: the run's folder, the frozen encoder, the demo's scenes."""

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
    """Folders <log_dir>/<session>_<direction>_<YYYYmmdd-HHMMSS>, one a run."""

    log_dir: Path
    session: str
    direction: str              # "at", or "??" for any

    def create(self):
        """A new one, later by its name than all others, even if the clock went back."""
        names = [folder.name[-15:] for folder in self._all()]
        while True:
            stamp = max([time.strftime(STAMP), *map(_after, names)])
            folder = Path(self.log_dir) / f"{self.session}_{self.direction}_{stamp}"
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:             # another run of this very second
                time.sleep(1)
            except OSError as error:
                raise InputError(f"{folder}: cannot be made ({error.strerror}); choose another --log_dir") from error

    def newest(self, file):
        """The newest one that holds `file`, None where there is none."""
        folders = self._all()
        for folder in folders:
            remove_leftovers((folder / file).parent)
        return max((folder for folder in folders if (folder / file).is_file()),
                   key=lambda folder: folder.name[-15:], default=None)


    def _all(self):
        return list(Path(self.log_dir).glob(f"{self.session}_{self.direction}_????????-??????"))


def _after(name):
    """The second after a time, as names spell it; "" where it is none."""
    try:
        return time.strftime(STAMP, time.localtime(time.mktime(time.strptime(name, STAMP)) + 1))
    except ValueError:
        return ""


def require_modalities(pretrained, modalities):
    """InputError unless the encoder was pretrained on all of them."""
    for modality in modalities:
        check_modality(pretrained.encoder, modality, pretrained.path)


def require_fit(pretrained, dataset):
    """InputError unless the encoder takes the sounds and the sentences of an S4."""
    if "audio" in dataset.modalities:
        check_fit(pretrained.encoder, dataset, "audio", pretrained.path)
    if "text" in dataset.modalities:
        check_shape(pretrained.encoder, "text", dataset.words.shape[1:], dataset.name, pretrained.path)


def warn_of_features(pretrained, paths, modalities):
    """Say which features are of another kind than those of pretraining; `paths`: as S4 takes them."""
    pretrained.warn(origins.other_features(pretrained.path, pretrained.encoder.features,
                                          [(m, Path(paths[m])) for m in dict.fromkeys(modalities)]))


def data_name(is_demo, root, paths):
    """Name of the data in results. The demo's scenes are made below the data root `root` where they are absent.

    Args:
        paths: name -> path below the root (configs/opts.py).
    """
    if not is_demo:
        return avs_s4.NAME
    import demo_scenes  # here, because only the demo draws scenes
    demo_scenes.build(root, paths)
    return demo_scenes.NAME
