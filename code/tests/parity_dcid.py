"""DCID, H-DCID and TOC against the golden numbers: `CHECKS` maps a golden run to the function that checks it."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from cmg.losses.cross_cpc import CrossCPC
from cmg.models import toc
from cmg.models.codebook import Codebook, Reset
from cmg.systems.h_dcid import HDCID
from cmg.systems.registry import SYSTEMS
from cmg.systems.settings import SECOND_LEVEL_WEIGHT
from cmg.systems.state_dicts import rules
from golden_io import ABSOLUTE, FORWARD, STEPPED, Check, det, load, published_names, relative_error
from tiny import step_for

INPUTS = {"audio": "audio", "video": "video", "text": "query"}
LETTER = {"audio": "a", "video": "v", "text": "t"}
BUFFERS = ("embedding", "ema_count", "ema_weight", "unactivated_count")
RELEASED_LEVEL_2 = float(torch.tensor(0.3, dtype=torch.float32))    # the published total is float32
FLOAT32_TOTAL = 1.2e-7                                              # its rounding
FLOAT32_SUM = 1e-4                                                  # of TOC's criterion, summed in float32
ROUNDING = 1e-11                                                    # of CLUB bounds that are zero: sums cancel
ACCURACY = 1e-6                                                     # accuracies are rounded to float32


class Recorded:
    """Draws that repeat a golden run's, in order."""

    def __init__(self, facts, picks=()):
        self.seconds = list(facts["cpc_t"])
        self.permutations = [torch.tensor(p) for p in facts["club_permutations"]]
        self.picks = list(picks)

    def second(self, num_seconds):
        return self.seconds.pop(0)

    def permutation(self, num_clips):
        return self.permutations.pop(0)

    def reset_positions(self, due, num_active):
        positions = torch.zeros(len(due), dtype=torch.int64)
        count = int(due.sum())
        positions[due] = torch.tensor(self.picks[:count], dtype=torch.int64)
        del self.picks[:count]
        return positions

    def reset_noise(self, codes):
        return torch.zeros_like(codes)


class Worst:
    """The worst relative error of every quantity group of a file."""

    def __init__(self, file):
        self.file, self.errors, self.tolerances = file, {}, {}

    def add(self, group, ours, theirs, tolerance, floor=ABSOLUTE):
        error = relative_error(ours, theirs, floor)
        known = self.errors.get(group, 0.0)
        self.errors[group] = error if not error <= known else known         # NaN wins
        self.tolerances[group] = tolerance

    def checks(self):
        return [Check(self.file, group, error, self.tolerances[group]) for group, error in self.errors.items()]


def manifest(folder, name):
    """Section -> key -> shape of one manifest."""
    facts = json.loads((Path(folder) / f"{name}.json").read_text())
    return {section: keys for section, keys in facts.items() if isinstance(keys, dict)}


def filled(shapes):
    """Published sections with the weights of the golden rule; batch normalization has counts of whole numbers."""
    sections = {}
    for section, keys in shapes.items():
        sections[section] = {key: torch.zeros((), dtype=torch.int64) if key.endswith("num_batches_tracked") else
                             det(f"{section}.{key}", shape) for key, shape in keys.items()}
        for key in (key for key in keys if key.endswith("running_var")):
            x, weight = det(f"{section}.{key}", keys[key]) / 0.05, key.replace("running_var", "weight")
            sections[section][key] = 1 + 0.1 * x ** 2
            sections[section][weight] = 1 + 0.1 * (det(f"{section}.{weight}", keys[weight]) / 0.05)
    encoder, quantizer = sections[rules.ENCODER], codebook_name(sections)
    encoder[quantizer + "ema_weight"] = encoder[quantizer + "embedding"].clone()
    encoder[quantizer + "ema_count"].fill_(1)
    encoder[quantizer + "unactivated_count"].fill_(-1)
    return sections


def codebook_name(sections):
    """Prefix of the codebook's published names."""
    return next(key for key in sections[rules.ENCODER] if key.endswith(".embedding")).removesuffix("embedding")


class Run:
    """A system filled by the rule, its trainer, and the batch of a golden file."""

    def __init__(self, folder, system, arrays, facts, start=None, picks=()):
        sections = filled(manifest(folder, f"{system}_small_manifest"))
        if start:
            for name, value in start.items():
                sections[rules.ENCODER][f"Cross_quantizer.{name}"] = value
        kind, config = rules.infer_config(sections, [SYSTEMS[system]])
        config = replace(config, dropout=0.0)
        self.system = kind(config).double()
        self.tensors = rules.layout(kind, config)
        state, self.unused = rules.from_published(sections, self.tensors, sections)
        self.system.load_state_dict(state)
        self.batch = {m: torch.from_numpy(arrays[key]).double() for m, key in INPUTS.items()}
        settings = {"codebook_init": "released", "code_reset": "released"}
        if kind is HDCID:
            settings |= {"mi_forward": "released"}
            weights = self.system.weights
            self.system.weights = lambda epoch: {kind: RELEASED_LEVEL_2 if weight == SECOND_LEVEL_WEIGHT else weight
                                                 for kind, weight in weights(epoch).items()}
        self.trainer = step_for(self.system, Recorded(facts, picks), **settings)

    def published(self):
        return rules.to_published(self.system.state_dict(), self.tensors, self.unused, torch.float64)

    def gradients(self):
        """Published name -> gradient norm; tensors that nothing reaches are missing."""
        ours = dict(self.system.named_parameters())
        return {f"{t.section}.{t.key}": ours[t.ours[0]].grad.norm() for t in self.tensors
                if t.ours and not t.is_buffer and ours[t.ours[0]].grad is not None}

    def compare_codebook(self, worst, arrays, prefix, group):
        buffers = self.published()[rules.ENCODER]
        for name in BUFFERS:
            if f"{prefix}_{name}" in arrays:
                worst.add(group, buffers[f"Cross_quantizer.{name}"], arrays[f"{prefix}_{name}"], STEPPED)


def compare_losses(worst, run, group, report, golden, tolerance, is_float32_total):
    """Every loss and figure of one step. The published MI figures are minus the log-likelihood."""
    ours = published_names(run.system, report)
    for name, theirs in golden.items():
        if name == "grad_norms_before_clip":
            for section, norm in theirs.items():
                worst.add("train clip norms", report.grad_norms[section], norm, STEPPED)
        elif name not in ("reset_picks", "distinct_codes"):
            is_rounded = name == "total" and is_float32_total
            target = "train total (published in float32)" if is_rounded else group
            limit = FLOAT32_TOTAL if is_rounded else tolerance
            if "accuracy" in name:
                target, limit = f"{group}: accuracies", ACCURACY
            worst.add(target, ours[name], theirs, limit, ROUNDING if "_mi" in name else ABSOLUTE)


def compare_norms(worst, run, golden):
    sections = run.published()
    for name, theirs in golden.items():
        section, key = name.split(".", 1)
        worst.add("parameter norms after the steps", sections[section][key].norm(), theirs, STEPPED)


def check_dcid_small(folder):
    """One evaluation pass with gradients, then four training steps."""
    arrays, facts = load(folder, "dcid_small")
    worst = Worst("dcid_small")
    run = Run(folder, "dcid", arrays, facts)
    run.system.eval()
    features = run.system.features(run.batch)
    outputs = run.system.encode(features, 0)
    output = outputs[0]
    worst.add("eval outputs", features["text"], arrays["eval_text_lstm"], FORWARD)
    worst.add("eval outputs", output.specific["video"].pooled, arrays["eval_video_specific_pooled"], FORWARD)
    for m in INPUTS:
        worst.add("eval outputs", output.semantic[m], arrays[f"eval_{m}_semantic"], FORWARD)
        worst.add("eval outputs", output.specific[m].full, arrays[f"eval_{m}_specific"], FORWARD)
        worst.add("eval outputs", output.quantized.vectors[m], arrays[f"eval_{m}_quantized"], FORWARD)
        worst.add("eval code indices", output.quantized.indices[m], arrays[f"eval_indices_{LETTER[m]}"], 0)
    objective = run.system.objectives[0]
    clubs = objective.clubs()
    clubs.share_gradients()
    output.club = clubs
    report = run.trainer.losses(outputs, 0)
    likelihoods = clubs.log_likelihoods(objective.stats(output))
    report.likelihoods = {f"{m}_club": value for m, value in zip(objective.club_order, likelihoods)}
    compare_losses(worst, run, "eval losses", report, facts["eval_losses"], FORWARD, False)
    report.losses["total"].backward()
    ours = run.gradients()
    for name, theirs in facts["eval_grad_norms"].items():
        worst.add("eval gradient norms", ours.get(name, torch.zeros(())), theirs, FORWARD)
    surplus = [norm for name, norm in ours.items() if name not in facts["eval_grad_norms"]]
    worst.add("eval gradients where there are none", sum(surplus, torch.zeros(())), 0.0, 0)
    codebook = run.system.encoder.levels[0].codebook
    codebook.expire_codes(output.quantized.indices, run.trainer.rng, Reset("released"))
    worst.add("eval reset counter", codebook.unactivated_count, facts["eval_unactivated_count"], 0)

    run = Run(folder, "dcid", arrays, facts)
    run.system.train()
    for number, golden in enumerate(facts["train_steps"]):
        report = run.trainer.step(run.batch, 0)
        compare_losses(worst, run, "train losses", report, golden, STEPPED, False)
        run.compare_codebook(worst, arrays, f"train_step{number}", "train codebook buffers")
    compare_norms(worst, run, facts["train_param_norms"])
    return worst.checks()


def check_h_dcid_small(folder):
    """Two steps at epoch 0 and two at epoch 3, each pair from fresh weights, six encoder passes per step."""
    arrays, facts = load(folder, "h_dcid_small")
    worst = Worst("h_dcid_small")
    rng = Recorded(facts)
    for epoch in (0, 3):
        run = Run(folder, "h_dcid", arrays, facts)
        run.trainer.rng = rng               # the lists of draws run on from pair to pair
        run.system.train()
        for number, golden in enumerate(facts[f"epoch{epoch}_steps"]):
            report = run.trainer.step(run.batch, epoch)
            compare_losses(worst, run, f"epoch {epoch} losses", report, golden, STEPPED, True)
            for level, suffix in enumerate(("", "_2") if number == 0 else ()):
                for m in INPUTS:
                    worst.add(f"epoch {epoch} features", report.outputs[level].semantic[m],
                              arrays[f"epoch{epoch}_{m}_semantic{suffix}"], FORWARD)
        run.compare_codebook(worst, arrays, f"epoch{epoch}_after2", f"epoch {epoch} codebook buffers")
    return worst.checks()


def check_spread(folder, system):
    """Three training steps from a stored codebook among the features, with many codes in use and with resets."""
    arrays, facts = load(folder, f"{system}_spread")
    worst = Worst(f"{system}_spread")
    start = {name: torch.from_numpy(arrays[f"start_{name}"])
             for name in ("embedding", "ema_count", "unactivated_count")}
    start["ema_weight"] = start["embedding"] * start["ema_count"].unsqueeze(-1)
    picks = [pick for step in facts["steps"] for pick in step["reset_picks"]]
    run = Run(folder, system, arrays, facts, start, picks)
    run.system.train()
    for number, golden in enumerate(facts["steps"]):
        report = run.trainer.step(run.batch, facts["epoch"])
        compare_losses(worst, run, "train losses", report, golden, STEPPED, system == "h_dcid")
        used = [[len(output.quantized.indices[m].unique()) for m in INPUTS] for output in report.outputs]
        worst.add("distinct codes", used, golden["distinct_codes"], 0)
        run.compare_codebook(worst, arrays, f"step{number}", "train codebook buffers")
    worst.add("resets left over", len(run.trainer.rng.picks), 0, 0)
    compare_norms(worst, run, facts["param_norms"])
    return worst.checks()


def check_parts(folder):
    """Code reset, the codebook of two modalities, Cross-CPC of two modalities."""
    arrays, facts = load(folder, "parts")
    worst = Worst("parts")

    def tensor(name):
        return torch.from_numpy(arrays[name])

    before = tensor("reset_embedding_before")
    codebook = Codebook(*before.shape).double()
    codebook.embedding.copy_(before)
    codebook.unactivated_count.copy_(tensor("reset_count_before"))
    z = {m: tensor(f"reset_semantic_{LETTER[m]}") for m in INPUTS}
    positions = facts["reset"].split("positions ")[1].split(" of ")[0]
    picks = [int(p) for p in positions.split(",")]
    rng = Recorded({"cpc_t": [], "club_permutations": []}, picks)
    codebook.expire_codes(codebook(z).indices, rng, Reset("released"))
    worst.add("code reset", codebook.embedding, arrays["reset_embedding_after"], FORWARD)
    worst.add("code reset: counter", codebook.unactivated_count, arrays["reset_count_after"], 0)

    for pair, second in (("av", "video"), ("at", "text")):
        codebook = Codebook(*tensor("two_embedding").shape).double()
        codebook.embedding.copy_(tensor("two_embedding"))
        codebook.ema_weight.copy_(codebook.embedding)
        codebook.ema_count.fill_(1)
        z = {"audio": tensor("two_semantic_audio"), second: tensor("two_semantic_video")}
        quantized = codebook(z)
        ours = {"cmcm": quantized.cmcm, "equal_num": quantized.equal_num}
        ours |= {f"{m}_commit": v for m, v in quantized.commitment.items()}
        ours |= {f"{m}_perplexity": v for m, v in quantized.perplexity.items()}
        for mode in ("eval", "train"):
            for name, theirs in facts[f"{pair}_{mode}"].items():
                worst.add("two-modality codebook", ours[name], theirs, FORWARD)
        codebook.update_ema(z, quantized.indices)
        worst.add("two-modality EMA", codebook.embedding, arrays[f"{pair}_embedding_after"], FORWARD)
        worst.add("two-modality EMA", codebook.ema_count, arrays[f"{pair}_ema_count_after"], FORWARD)

    golden = facts["cpc_two_modalities"]
    cpc = CrossCPC(("audio", "video"), arrays["cpc2_audio"].shape[-1]).double()
    state = {}
    for key, shape in facts["cpc2_manifest"].items():
        modality, kind, *rest = key.replace("_predictors.0", "_predictor").replace("_ar_lstm", "_lstm").replace(
            "_", ".", 1).split(".")
        state[".".join([kind, modality, *rest])] = det(f"cpc2.{key}", shape)
    cpc.load_state_dict(state)
    prediction = cpc({"audio": tensor("cpc2_audio"), "video": tensor("cpc2_video")}, golden["t"])
    worst.add("two-modality CPC", prediction.loss, golden["nce"], FORWARD)
    for (source, target), value in prediction.accuracy.items():
        worst.add("two-modality CPC: accuracies", value, golden[f"accuracy_{source[0]}_to_{target[0]}"], ACCURACY)
    return worst.checks()


def check_toc(folder):
    """The criterion of the selected channels, in their order, for several settings.

    The channels themselves may differ where criteria are equal but for the rounding of the published sums, which are
    float32 (1.6e-5 of the largest for 400 codes with a mean).
    """
    arrays, facts = load(folder, "toc")
    worst = Worst("toc")
    codes = torch.from_numpy(arrays["codebook"])
    value = toc.criterion(codes)
    for setting, theirs in facts.items():
        chosen = toc.Selection(**{key: int(value) for key, value in (pair.split("=") for pair in setting.split())})
        ours = toc.select(codes, chosen)
        is_sound = len(ours) == len(theirs) == len(set(theirs))
        worst.add("selected channels", value[ours] if is_sound else torch.zeros(0), value[theirs], FLOAT32_SUM)
    return worst.checks()


CHECKS = {
    "dcid_small": check_dcid_small,
    "dcid_spread": lambda folder: check_spread(folder, "dcid"),
    "h_dcid_small": check_h_dcid_small,
    "h_dcid_spread": lambda folder: check_spread(folder, "h_dcid"),
    "parts": check_parts,
    "toc": check_toc,
}
