"""The segmentation network: golden numbers, name maps, what TPAVI costs, what a frame of it can reach; IoU and F
of cases small enough for the eye."""

import shutil

import numpy as np
import pytest
import torch
from network import backbones, metrics, published
from network.avs import AVSNetwork, NetworkConfig
from network.backbones import Backbone, load_weights
from network.tpavi import TPAVI
from torch import nn

from conftest import refused
from parity_avs import CHECKS

TINY = ((1, 2, 1, 1), (8, 16, 24, 32), (1, 2, 2, 4), (8, 4, 2, 1))             # a PVT-v2 of no size
SMALL = NetworkConfig("small", (0, 1, 2, 3), tpavi_va=True, code_dim=6, channels=16, norm_start=1.0)


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    """"tiny" is a PVT-v2 with the published structure: split key-and-value layers, three spatial reductions."""
    monkeypatch.setitem(backbones.PVT_SHAPES, "tiny", TINY)


def test_parity_sees_a_wrong_number(golden, tmp_path):
    arrays = dict(np.load(golden / "avs_tpavi.npz"))
    arrays["c32_va_wy"] = arrays["c32_va_wy"] * (1 + 1e-7)
    np.savez(tmp_path / "avs_tpavi.npz", **arrays)
    assert [check.group for check in CHECKS["avs_tpavi"](tmp_path) if not check.passed] == ["c32_va_wy"]


def small(seed=0, **changes):
    torch.manual_seed(seed)
    return AVSNetwork(NetworkConfig(**{**vars(SMALL), **changes}))


def plain_tpavi(module, x, query):
    """The published order of work, with the N x N matrix: the oracle of the reassociated form."""
    audio = x if query is None else module.align_channel(query).transpose(1, 2)[..., None, None].expand_as(x)
    theta, phi, g = (layer(y).flatten(2) for layer, y in ((module.theta, x), (module.phi, audio), (module.g, x)))
    pairs = theta.transpose(1, 2) @ phi / theta.shape[-1]
    z = module.W_z((g @ pairs.transpose(1, 2)).unflatten(2, x.shape[2:])) + x
    return module.norm_layer(z.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("with_query", (True, False))
@pytest.mark.parametrize("shape", ((2, 8, 5, 3, 4), (1, 4, 1, 1, 1)))
def test_reassociated_tpavi_equals_the_plain_form(shape, with_query):
    torch.manual_seed(1)
    module = TPAVI(shape[1], 7, norm_start=1.0).double().eval()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    query = torch.randn(shape[0], shape[2], 7, dtype=torch.float64) if with_query else None
    objective = torch.randn_like(x)
    ours, oracle = module(x, query)[0], plain_tpavi(module, x, query)
    torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((z * objective).sum(), x)[0] for z in (ours, oracle)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


def test_tpavi_of_all_stages_stays_below_a_gigabyte_a_clip():
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        blocks = [TPAVI(256, 256) for _ in range(4)]
        results = [block(torch.zeros(1, 256, 5, side, side, requires_grad=True), torch.zeros(1, 5, 256))[0]
                   for block, side in zip(blocks, (56, 28, 14, 7), strict=True)]
    assert sum(z.untyped_storage().nbytes() for z in results) + sum(kept.values()) < 0.3 * 2**30


def test_query_has_no_influence_at_the_published_start():
    frames, one, two = torch.randn(1, 5, 3, 32, 32), torch.randn(1, 5, 6), torch.randn(1, 5, 6)
    published, open_start = small(norm_start=0.0).eval(), small(norm_start=1.0).eval()
    with torch.no_grad():
        assert torch.equal(published(frames, one).logits, published(frames, two).logits)
        assert not torch.allclose(open_start(frames, one).logits, open_start(frames, two).logits)


def test_decoding_first_frames_only_changes_no_gradient():
    torch.manual_seed(2)
    network = small(backbone="tiny").double()
    for module in network.modules():                 # stochastic depth draws: the two passes must see the same
        if type(module).__name__ == "PvtV2DropPath":
            module.drop_prob = 0.0
    frames = torch.randn(2, 5, 3, 32, 32, dtype=torch.float64)
    query = torch.randn(2, 5, 6, dtype=torch.float64)
    target = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    gradients = []
    for first in (True, False):
        logits = network(frames, query, first_frames=first).logits
        loss = ((logits if first else logits[::5]) * target).sum()
        gradients.append(torch.autograd.grad(loss, [p for p in network.parameters()], allow_unused=True))
    for ours, full in zip(*gradients, strict=True):
        assert (ours is None) == (full is None)
        if ours is not None:
            torch.testing.assert_close(ours, full, rtol=1e-8, atol=1e-10)


def test_every_trainable_parameter_gets_a_gradient():
    network = small().train()
    network(torch.randn(2, 5, 3, 64, 64), torch.randn(2, 5, 6)).logits.sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("backbone", ("tiny", "small"))
def test_published_names_survive_a_round_trip(backbone):
    one, two = small(1, backbone=backbone), small(2, backbone=backbone)
    published.load_published(two, published.to_published(one), "memory")
    for key, x in one.state_dict().items():
        assert torch.equal(x, two.state_dict()[key]), key


def test_published_file_loads_strictly_or_not_at_all():
    network, state = small(1), published.to_published(small(2))
    before = {key: x.clone() for key, x in network.state_dict().items()}
    for change in ({"conv1.conv2d_list.0.weight": None}, {"surplus": torch.zeros(1)},
                   {"path4.resConfUnit1.conv1.weight": None}, {"tpavi_b1.g.bias": torch.zeros(3)}):
        broken = {key: x for key, x in {**state, **change}.items() if x is not None}
        refused("file.pth", published.load_published, network, broken, "file.pth")
    assert all(torch.equal(x, network.state_dict()[key]) for key, x in before.items())


def official(name, seed=3):
    """A backbone file as its authors publish it: no prefix, a classifier at the end, one branch."""
    torch.manual_seed(seed)
    network = nn.Module()
    network.backbone, network.decoder = Backbone(name), nn.Module()
    prefix = "resnet." if name == "resnet" else "encoder_backbone."
    state = {key[len(prefix):].replace("_1.", ".", 1): x for key, x in published.to_published(network).items()
             if key.startswith(prefix) and "_2." not in key}
    return network.backbone, {**state, ("fc" if name == "resnet" else "head") + ".weight": torch.zeros(5, 5)}


@pytest.mark.parametrize("name", ("resnet", "tiny"))
def test_backbone_file_fills_everything_or_is_refused(tmp_path, name):
    donor, state = official(name)
    path = tmp_path / "backbone.pth"
    torch.save(state, path)
    backbone = Backbone(name)
    load_weights(backbone, str(path))
    assert all(torch.equal(x, backbone.state_dict()[key]) for key, x in donor.state_dict().items())
    del state[next(key for key in state if key.endswith("weight"))]
    torch.save(state, path)
    refused("1 tensors of the backbone", load_weights, Backbone(name), str(path))
    torch.save({"module": torch.zeros(1)}, path)
    refused("missing", load_weights, Backbone(name), str(path))
    path.write_bytes(b"no weights")
    refused("not a readable PyTorch file", load_weights, Backbone(name), str(path))


def test_backbone_from_the_hub_fills_everything_or_is_refused(tmp_path):
    donor, backbone = Backbone("tiny"), Backbone("tiny")
    donor.network.save_pretrained(tmp_path / "model")            # a folder is read as a model of the hub is
    load_weights(backbone, str(tmp_path / "model"))
    assert all(torch.equal(x, backbone.state_dict()[key]) for key, x in donor.state_dict().items())
    assert {m.eps for k, m in backbone.network.named_modules() if k.endswith("patch_embedding.layer_norm")} == {1e-5}
    state = {key: x for key, x in donor.network.state_dict().items() if "stages.0" not in key and "layers.0" not in key}
    donor.network.save_pretrained(tmp_path / "model", state_dict=state)
    refused("not in this model", load_weights, Backbone("tiny"), str(tmp_path / "model"))
    shutil.rmtree(tmp_path / "model")
    refused("no such file, and .* is not available on the hub", load_weights, Backbone("tiny"), str(tmp_path / "model"))


def test_pvt_eps_are_the_published_ones():
    with torch.device("meta"):
        network = Backbone("pvt").network
    norms = {key: m.eps for key, m in network.named_modules() if isinstance(m, nn.LayerNorm)}
    assert sum(eps == 1e-5 for eps in norms.values()) == 53
    assert {eps for key, eps in norms.items() if ".layer_norm_" in key} == {1e-6}


def test_resnet_saves_the_branch_that_never_runs():
    with torch.device("meta"):
        state = published.to_published(AVSNetwork(NetworkConfig("resnet")))
    assert state["resnet.layer4_2.0.conv1.weight"].shape == state["resnet.layer4_1.0.conv1.weight"].shape


@pytest.mark.parametrize("settings", ({"tpavi_stages": (4,), "tpavi_va": True}, {"tpavi_stages": (0,)},
                                      {"tpavi_stages": (0, 0), "tpavi_va": True}))
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="TPAVI stages"):
        NetworkConfig(**settings)


def test_whitened_start_tells_codes_apart_whatever_they_share():
    torch.manual_seed(4)
    strength = torch.tensor([5.0, 2.0, 1.0] + [0.0] * 5)
    codes = 10 + torch.randn(60, 8) * strength         # a large mean, three directions
    block = TPAVI(512, 8)
    block.whiten(codes, ridge=0.0)
    aligned = block.align_channel(codes)
    assert aligned.mean(0).abs().max() < 1e-3
    torch.testing.assert_close(aligned.var(unbiased=False), torch.tensor(1.0), atol=0.1, rtol=0)
    variances = torch.linalg.svdvals(aligned - aligned.mean(0))[:3] ** 2
    assert variances[2] > 0.7 * variances[0]                       # all three equally strong: 25 to 1 in the codes


def test_iou_by_eye():
    logits = torch.tensor([[[1.0, 1.0], [-1.0, 0.0]], [[1.0, -1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    masks = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    assert metrics.frame_iou(logits, masks).tolist() == pytest.approx([1 / 3, 3 / 4, 0.0], abs=1e-6)


def test_whole_set_figures_do_not_depend_on_the_batches():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(11, 8, 8, generator=generator)
    masks = (torch.randn(11, 8, 8, generator=generator) > 0.5).float()
    masks[8:] = 0
    results = {"default": [], "released": []}
    for size in (1, 4, 11):
        counted = metrics.SetMetrics()
        for part in zip(logits.split(size), masks.split(size), strict=True):
            counted.add(*part)
        for protocol, values in results.items():
            values.append(counted.result(protocol))
    one, *others = results["default"]
    assert all(other == pytest.approx(one, abs=1e-9) for other in others)
    assert results["released"][0]["F"] != pytest.approx(results["released"][1]["F"], abs=1e-3)


def test_empty_predictions_and_no_truth_at_all():
    counted = metrics.SetMetrics()
    counted.add(torch.full((2, 4, 4), -5.0), torch.zeros(2, 4, 4))
    assert counted.result() == {"mIoU": pytest.approx(1.0, abs=1e-6), "F": 0.0}
