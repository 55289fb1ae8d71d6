"""Retrieval by captions: ranks by hand and by brute force over ties, the list's defects, the script."""

from itertools import permutations

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import clip_retrieval
from cmg.data.layout import DATA_PATHS
from cmg.data.sets.captions import Captions
from cmg.downstream.captions import RankCounts, both_ways, chance
from cmg.results import rows as results
from conftest import refused
from test_tasks import tree, write_checkpoint  # noqa: F401  (tree is a fixture)


def test_the_best_caption_counts_for_a_clip_and_every_caption_is_a_query():
    clips = F.normalize(torch.tensor([[1., 0.], [0., 1.]]), dim=-1)
    captions = F.normalize(torch.tensor([[.1, 1.], [1., .2], [.5, 1.], [1., .1]]), dim=-1)
    found = both_ways(clips, captions, torch.tensor([0, 0, 1, 1]))
    # clip 0: captions by similarity 3, 1, 2, 0, own 0 and 1: rank 2. clip 1: 0, 2, 1, 3, own 2 and 3: rank 2.
    assert found["clip"] == {"r@1": 0, "r@5": 100, "r@10": 100, "r@50": 100, "median_rank": 2, "mean_rank": 2}
    # captions 1 and 2 find their clip first, 0 and 3 second
    assert found["caption"]["r@1"] == 50 and found["caption"]["mean_rank"] == 1.5


@pytest.mark.parametrize("better, wrong, right", [(0, 3, 2), (2, 2, 1), (4, 4, 2), (0, 0, 3)])
def test_ties_are_the_mean_over_their_orders(better, wrong, right):
    ranks = [better + 1 + min(order.index(one) for one in range(right)) for order in permutations(range(right + wrong))]
    found = RankCounts(*(torch.tensor([n]) for n in (better, right + wrong, right))).metrics()
    for k in (1, 5, 10, 50):
        assert found[f"r@{k}"] == pytest.approx(100 * sum(rank <= k for rank in ranks) / len(ranks))
    assert found["mean_rank"] == found["median_rank"] == pytest.approx(sum(ranks) / len(ranks))


def test_equal_vectors_give_chance():
    same, owner = torch.ones(3, 2), torch.tensor([0, 0, 1, 2, 2])
    assert both_ways(same, torch.ones(5, 2), owner) == chance(3, owner)


def place(root, name):
    return root / DATA_PATHS[f"captions.{name}"]


def test_the_script_measures_both_ways_with_a_control(tree, tmp_path):      # noqa: F811
    path = write_checkpoint(tmp_path / "fcid.pt", system="fcid")
    clip_retrieval.main(["--data_root", str(tree / "data"), "--checkpoint", str(path), "--snapshot_pref", str(tmp_path),
                         "--gpu", "cpu", "--workers", "0"])
    rows = results.read(tmp_path / "results.jsonl")
    assert {row["direction"] for row in rows} == {"video->text", "text->video", "audio->text", "text->audio"}
    assert {row["metric"] for row in rows} == {"r@1", "r@5", "r@10", "r@50", "median_rank", "mean_rank"}
    assert {row["control"] for row in rows} == {None, "untrained"} and len(rows) == 48


def test_an_encoder_without_text_and_absent_features_are_one_line(tree, tmp_path):      # noqa: F811
    path = write_checkpoint(tmp_path / "av.pt", ("audio", "video"))
    common = ["--data_root", str(tree / "data"), "--checkpoint", str(path), "--snapshot_pref", str(tmp_path), "--gpu",
              "cpu", "--workers", "0"]
    refused("text was requested", clip_retrieval.main, common)
    refused("neither exists", clip_retrieval.main,
            [*common, "--path", f"captions.video={tmp_path / 'a'}", "--path", f"captions.audio={tmp_path / 'b'}"])


@pytest.mark.parametrize("damage, words", [
    (lambda table: pd.concat([table, table[:1]]), "occurs twice"),
    (lambda table: table.assign(label=table["label"] + "x"), "no prompt for"),
    (lambda table: table.assign(clip="absent"), "1 of 1 clips of captions have no video"),
    (lambda table: table.drop(columns="clip"), "no column 'clip'")])
def test_a_defective_list_is_one_line(tree, tmp_path, damage, words):       # noqa: F811
    paths = {name: place(tree / "data", name) for name in ("csv", "text", "video", "audio")}
    table = damage(pd.read_csv(paths["csv"]))
    table.to_csv(tmp_path / "list.csv", index=False)
    refused(words, Captions, paths | {"csv": tmp_path / "list.csv"}, ("video",))


def test_a_bad_clip_takes_its_captions_along(tree, tmp_path):               # noqa: F811
    paths = {name: place(tree / "data", name) for name in ("csv", "text", "video", "audio")}
    table = pd.read_csv(paths["csv"])
    table.loc[table["clip"] == table["clip"][0], "clip"] = "absent"
    table.to_csv(tmp_path / "list.csv", index=False)
    clips = Captions(paths | {"csv": tmp_path / "list.csv"}, ("video",), on_bad_clip="skip")
    assert len(clips.owner) == len(table) - 2 and clips.caption_vectors(0, 3).shape == (3, 10, 768)
    assert [clips.ids[number] for number in clips.owner[:2]] == table["clip"][2:4].tolist()
