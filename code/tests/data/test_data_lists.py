"""Lists made from the official annotation files, against the released ones."""

import shutil

import h5py
import numpy as np
import pytest

import prepare
from cmg.data.layout import DATA_PATHS
from conftest import refused


@pytest.fixture(scope="module")
def derived(tmp_path_factory, annotations):
    """A data root with the official annotation files alone, after `prepare.py lists`."""
    root = tmp_path_factory.mktemp("official")
    sources = {"ave.annotations": "ave/Annotations.txt", "vggsound.csv": "released/vggsound40k/vggsound-avel40k.csv",
               "avvp.official_visual": "avvp/AVVP_eval_visual.csv",
               "avvp.official_audio": "avvp/AVVP_eval_audio.before_2024_fix.csv"}
    sources |= {f"ave.{split}_list": f"ave/{split}Set.txt" for split in ("train", "val", "test")}
    for name, source in sources.items():
        (root / DATA_PATHS[name]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(annotations / source, root / DATA_PATHS[name])
    prepare.main(["lists", "--data_root", str(root)])
    return root


@pytest.mark.parametrize("name, source", [
    *[(f"{place}.{side}_csv", f"{folder}/{folder}_eval_{side}_checked_combined.csv")
      for place, folder in (("avvp", "AVVP"), ("ave_avvp", "AVE_AVVP")) for side in ("audio", "visual")],
    ("avvp.categories", "AVVP/AVVP_Categories.txt"), ("ave_avvp.categories", "AVE_AVVP/AVE_AVVP_Categories.txt"),
    ("ucf_vggsound.vggsound_csv", "UCF101/vggsound2ucf.csv")])
def test_derived_lists_equal_the_released_to_the_byte(derived, annotations, name, source):
    assert (derived / DATA_PATHS[name]).read_bytes() == (annotations / "released" / source).read_bytes()


@pytest.mark.parametrize("name, source, key", [
    ("ave.label", "ave/labels_reconstructed.h5", "avadataset"), ("ave.train", "ave/train_order.h5", "order"),
    ("ave.val", "ave/val_order.h5", "order"), ("ave.test", "ave/test_order.h5", "order"),
    ("ave_avvp.label", "released/AVE_AVVP/ave_avvp_labels.h5", "avadataset"),
    ("ave_avvp.order", "released/AVE_AVVP/ave_avvp_order.h5", "order")])
def test_derived_arrays_equal_the_released(derived, annotations, name, source, key):
    with h5py.File(derived / DATA_PATHS[name]) as ours, h5py.File(annotations / source) as theirs:
        assert ours[key].dtype == theirs[key].dtype and np.array_equal(ours[key][:], theirs[key][:])


def test_lists_of_the_user_stay(derived, tmp_path, annotations, capsys):
    root = shutil.copytree(derived, tmp_path / "copy")
    path = root / DATA_PATHS["avvp.categories"]
    path.write_text("mine\n")
    prepare.main(["lists", "--data_root", str(root)])
    assert path.read_text() == "mine\n" and f"{path}: exists, kept as it is" in capsys.readouterr().out
    prepare.main(["lists", "--data_root", str(root), "--overwrite"])
    assert path.read_text() != "mine\n"
    refused("no official annotation file", prepare.main, ["lists", "--data_root", str(tmp_path / "none")])
    with_header = annotations / "ave" / "Annotations.with_header.txt"
    shutil.copy(with_header, root / DATA_PATHS["ave.annotations"])
    prepare.main(["lists", "--data_root", str(root), "--overwrite"])
    test_derived_arrays_equal_the_released(root, annotations, "ave.train", "ave/train_order.h5", "order")
    path = root / DATA_PATHS["ave.train_list"]
    path.write_text(path.read_text().replace("&good&", "&fine&", 1))
    refused("row 1 is not in", prepare.main, ["lists", "--data_root", str(root), "--overwrite"])
