"""Sharing an encoder on the hub: what is uploaded, by which name the card loads it, its table of results; offline, with
a stand-in for the client of the hub."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

import cmg
from cmg.checkpoints import checkpoint
from cmg.results import rows as results
from cmg.systems.dcid import DCID
from cmg.utils import files
from conftest import refused
from test_results import row

NAME = "somebody/dcid"


class Hub:
    """The calls of `cmg.push` and `cmg.load`, on a folder of this machine."""

    def __init__(self, folder):
        self.folder, self.private, self.calls = folder, {}, []

    def create_repo(self, name, private, exist_ok):
        self.calls.append(("create_repo", name, private, exist_ok))
        self.private.setdefault(name, private)
        address = type("Address", (str,), {})(f"hub/{name}")
        address.repo_id = name
        return address

    def repo_info(self, name):
        return SimpleNamespace(private=self.private[name])

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        self.calls.append(("upload_folder", repo_id))
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            shutil.copy(f"{folder_path}/{pattern}", self.folder / repo_id)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **more: str(hub.folder / name))
    return hub


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A checkpoint of a small DCID that says on what it was pretrained."""
    system = DCID(DCID.Config.for_data({"audio": (8,), "video": (6,), "text": (4, 5)}, num_codes=24, feed_forward=64))
    path = tmp_path_factory.mktemp("push") / "DCID-model-3.pt"
    contents = checkpoint.pack(system, None, {}, 3, 40, {})
    contents["run"] = {"options": {"dataset_name": "vggsound_AVT", "seed": 43},
                       "clips": {"number": 40801, "ids_sha256": "0" * 64}}
    checkpoint.save(path, contents)
    return path


@pytest.fixture
def measured(file, tmp_path):
    """Results of that checkpoint: two directions, two seeds, a control, and values that do not belong in the card."""
    common = {"checkpoint": str(file), "checkpoint_sha256": files.sha256(file), "dataset": "AVE test", "chance": 3.6}
    for direction, values in (("video->audio", (50, 54)), ("audio->video", (60, 60))):
        for seed, value in enumerate(values):
            results.append(tmp_path / "results.jsonl", row(**common, direction=direction, value=value, seed=seed))
            results.append(tmp_path / "results.jsonl", row(**common, direction=direction, value=99.9, seed=seed,
                                                           selection="best"))
            results.append(tmp_path / "results.jsonl", row(**common, direction=direction, value=5, seed=seed,
                                                           control="untrained"))
    return tmp_path / "results.jsonl"


def test_what_is_pushed_loads_by_its_name(file, hub, measured):
    encoder = cmg.load(file)
    assert cmg.push(encoder, NAME, results=[measured]) == f"hub/{NAME}"
    assert hub.calls == [("create_repo", NAME, True, True), ("upload_folder", NAME)]
    assert sorted(path.name for path in (hub.folder / NAME).iterdir()) == ["README.md", "config.json",
                                                                           "model.safetensors"]
    again, x = cmg.load(NAME), torch.randn(2, 10, 8)
    assert torch.equal(again.embed("audio", x).vectors, encoder.embed("audio", x).vectors) and again.epoch == 3
    assert cmg.push(again, "somebody/copy", private=False) == "hub/somebody/copy"
    cards = [(hub.folder / name / "README.md").read_text() for name in (NAME, "somebody/copy")]
    assert cards[0].replace(NAME, "somebody/copy", 1).split("# ")[0] == cards[1].split("# ")[0]
    assert f'cmg.load("{NAME}")' in cards[0] and 'cmg.load("somebody/copy")' in cards[1]
    refused("an exported folder, whose card already has its results", cmg.push, again, NAME, results=[measured])


def test_the_card_is_small_and_says_what_people_ask(file, measured, tmp_path):
    card = cmg.export(file, tmp_path / "out", [measured])[1].read_text()
    assert card.startswith("---\nlibrary_name: cmg\n") and 'cmg.load("out")' in card
    assert "Data: vggsound_AVT, 40,801 clips. 4 epochs, 40 steps." in card
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]
    assert table[0] == ["", "video->audio", "audio->video"]
    assert table[2:] == [["AVE test, accuracy", "52.0 +- 2.8", "60.0 +- 0.0"],
                         ["with an untrained encoder", "5.0 +- 0.0", "5.0 +- 0.0"], ["chance", "3.6", "3.6"]]
    assert "99.9" not in card


def test_what_cannot_be_pushed_is_a_line(file, hub, monkeypatch):
    hub.private[NAME] = False                   # exists, and everybody sees it
    refused("public on the Hub, but private=True was requested; nothing was uploaded", cmg.push, cmg.load(file), NAME)
    assert ("upload_folder", NAME) not in hub.calls

    def failing(*args, **more):
        raise OSError("401 Client Error.\nInvalid username or password.")
    monkeypatch.setattr(hub, "create_repo", failing)
    refused("OSError: 401 Client Error.*hf auth login", cmg.push, cmg.load(file), NAME)
    refused("not loaded from a file", cmg.push, cmg.Encoder(cmg.load(file).frozen), NAME)
