"""FCID and MICU against the golden numbers: `CHECKS` maps a golden run to the function that checks it."""

from dataclasses import replace
from unittest.mock import Mock

import torch

from cmg.losses.info_nce import info_nce
from cmg.losses.jigsaw import Jigsaw
from cmg.models import toc
from cmg.models.codebook import Reset
from cmg.models.random import RESET_NOISE
from cmg.systems.base import FrozenEncoder
from cmg.systems.micu import JIGSAW
from cmg.systems.registry import SYSTEMS
from cmg.systems.state_dicts import rules
from golden_io import ABSOLUTE, FORWARD, STEPPED, load, published_names
from parity_dcid import ACCURACY, BUFFERS, INPUTS, LETTER, ROUNDING, Recorded, Worst, codebook_name, filled, manifest
from tiny import step_for


class Draws(Recorded):
    """Recorded draws, with the constant reset noise of these programs, and MICU's masks and blocks."""

    def __init__(self, cpc_t, permutations, picks=(), masks=(), modalities=()):
        super().__init__({"cpc_t": cpc_t, "club_permutations": permutations}, picks)
        self.masks, self.blocks = [torch.tensor(mask) for mask in masks], [torch.tensor(b) for b in modalities]

    def reset_noise(self, codes):
        return torch.full_like(codes, -RESET_NOISE)

    def kept(self, num_clips, num_seconds, masked):
        return self.masks.pop(0)

    def modalities(self, num_blocks, num_modalities):
        return self.blocks.pop(0)


class Run:
    """A system filled by the rule from the manifest and the stored codebook, its trainer, and the batch."""

    def __init__(self, folder, name, arrays, rng, started=True, **settings):
        sections = filled(manifest(folder, f"{name}_small_manifest"))
        self.jigsaws = {section: sections.pop(section) for section in list(sections) if section.startswith("Jigsaw")}
        self.quantizer = codebook_name(sections)
        encoder = sections[rules.ENCODER]
        for buffer in ("embedding", "ema_count", "unactivated_count"):
            encoder[self.quantizer + buffer] = torch.from_numpy(arrays[f"start_{buffer}"]).clone()
        if not started:                 # no code is near its reset
            encoder[self.quantizer + "unactivated_count"].fill_(-1)
        encoder[self.quantizer + "ema_weight"] = (encoder[self.quantizer + "embedding"]
                                                  * encoder[self.quantizer + "ema_count"].unsqueeze(-1))
        kind, config = rules.infer_config(sections, [SYSTEMS[name]])
        self.system = kind(replace(config, dropout=0.0)).double()
        self.tensors = rules.layout(kind, config)
        state, self.unused = rules.from_published(sections, self.tensors, sections)
        self.system.load_state_dict(state, strict=False)
        self.batch = {m: torch.from_numpy(arrays[key]).double() for m, key in INPUTS.items()}
        self.trainer = step_for(self.system, rng, codebook_init="released", code_reset="released", **settings)

    @property
    def codebook(self):
        return self.system.codebooks[""]

    def published(self):
        return rules.to_published(self.system.state_dict(), self.tensors, self.unused, torch.float64)

    def evaluate(self):
        """(outputs, Report) of one pass in evaluation mode, with gradients; likelihoods where CLUB is trained."""
        self.system.eval()
        outputs = self.system.encode(self.system.features(self.batch), 0)
        found = likelihoods(self, outputs) if self.system.AUXILIARY else {}
        report = self.trainer.losses(outputs, 0)
        report.likelihoods = found
        return outputs, report

    def gradients(self):
        """Published name -> gradient norm; 0 where nothing reaches a tensor, missing where autograd knows none."""
        ours = dict(self.system.named_parameters())
        return {f"{t.section}.{t.key}": ours[t.ours[0]].grad.norm() for t in self.tensors
                if t.ours and not t.is_buffer and ours[t.ours[0]].grad is not None}

    def compare_gradients(self, worst, group, golden, further=()):
        """`further`: names of ours that must be there besides."""
        ours = self.gradients() | dict(further)
        for name, theirs in golden.items():
            worst.add(group, ours.get(name, torch.zeros(())), theirs, FORWARD)
        surplus = [norm for name, norm in ours.items() if name not in golden]
        worst.add(f"{group} where there are none", sum(surplus, torch.zeros(())), 0.0, 0)

    def compare_codebook(self, worst, arrays, prefix, group):
        for name in BUFFERS:
            if f"{prefix}_{name}" in arrays:
                worst.add(group, getattr(self.codebook, name), arrays[f"{prefix}_{name}"], STEPPED)

    def compare_norms(self, worst, group, golden):
        sections = self.published() | self.jigsaw_sections()
        for name, theirs in golden.items():
            section, key = name.split(".", 1)
            worst.add(group, sections[section][key].norm(), theirs, STEPPED)

    def jigsaw_sections(self):
        jigsaw = getattr(self.system, "jigsaw", None)
        if jigsaw is None:
            return {}
        return {JIGSAW: {f"enc_net.{place}.{kind}": getattr(layer, kind).detach()
                         for place, layer in ((0, jigsaw.hidden), (2, jigsaw.classify)) for kind in ("weight", "bias")}}


def golden_names(run, report):
    """Values of a step under the names of these golden files."""
    ours = published_names(run.system, report)
    for kind in ("fine_recon", "coarse_recon", "commit", "infonce"):
        parts = {name.removesuffix(f"_{kind}"): value for name, value in report.losses.items()
                 if name.endswith(f"_{kind}")}
        ours |= {f"{kind}_{m}{'_text' if kind == 'infonce' else ''}": value for m, value in parts.items()}
        ours[kind] = sum(parts.values())
    return ours


def compare_losses(worst, run, group, report, golden, tolerance):
    """Every loss, accuracy, likelihood and gradient norm of one step."""
    ours = golden_names(run, report)
    for name, theirs in golden.items():
        if name == "grad_norms_before_clip":
            for section, norm in theirs.items():
                worst.add(f"{group}: clip norms", report.grad_norms.get(section, torch.zeros(())), norm, STEPPED)
        elif "accuracy" in name:
            worst.add(f"{group}: accuracies", ours[name], theirs, ACCURACY)
        elif name not in ("reset_picks", "distinct_codes"):
            worst.add(group, ours[name], theirs, tolerance, ROUNDING if "_mi" in name else ABSOLUTE)


def likelihoods(run, outputs):
    """Group -> log-likelihood of FCID's CLUB networks, without an update."""
    outputs.clubs = run.system.clubs()
    for batched in outputs.clubs.values():
        batched.share_gradients()
    found = run.system.fit_auxiliary(outputs.clubs, outputs, Mock())
    for batched in outputs.clubs.values():
        batched.zero_gradients()
    return found


def check_fcid(folder):
    """One pass in evaluation mode, codes of seconds, TOC, three training steps; both forms of the coarse bound."""
    arrays, facts = load(folder, "fcid_small")
    worst = Worst("fcid_small")
    for form, ending in (("released", ""), ("intended", "_intended")):
        def rng(picks=()):
            return Draws(facts["cpc_t"], facts["club_permutations"], picks)
        run = Run(folder, "fcid", arrays, rng(), started=False, club_coarse=form)
        outputs, report = run.evaluate()
        compare_losses(worst, run, "eval losses" + ending, report, facts["eval_losses" + ending], FORWARD)
        report.losses["total"].backward()
        golden = facts["eval_grad_norms"] | facts["eval_grad_norms" + ending]
        run.compare_gradients(worst, "eval gradient norms" + ending, golden)
        if form == "released":
            compare_eval(worst, folder, run, outputs, arrays, facts)
        picks = [pick for step in facts["steps" + ending] for pick in step["reset_picks"]]
        run = Run(folder, "fcid", arrays, rng(picks), club_coarse=form)
        run.system.train()
        for number, golden in enumerate(facts["steps" + ending]):
            report = run.trainer.step(run.batch, 0)
            compare_losses(worst, run, "train losses" + ending, report, golden, STEPPED)
            used = [len(run.system.assigned_codes(report.outputs)[""][m].unique()) for m in ("audio", "video", "text")]
            worst.add("distinct codes" + ending, used, golden["distinct_codes"], 0)
            run.compare_codebook(worst, arrays, ending[1:] + "_" * bool(ending) + f"step{number}",
                                 "train codebook buffers" + ending)
        worst.add("resets left over" + ending, len(run.trainer.rng.picks), 0, 0)
        run.compare_norms(worst, "parameter norms after the steps" + ending, facts["param_norms" + ending])
    return worst.checks()


def compare_eval(worst, folder, run, outputs, arrays, facts):
    """Features and codes of the pass, its reset, codes of seconds, channels of TOC."""
    for m in INPUTS:
        worst.add("eval outputs", outputs.semantic[m], arrays[f"eval_{m}_semantic"], FORWARD)
        worst.add("eval outputs", outputs.clips[m], arrays[f"eval_{m}_coarse"], FORWARD)
        worst.add("eval outputs", outputs.general[m][:, 0], arrays[f"eval_{m}_coarse_general"], FORWARD)
        worst.add("eval outputs", outputs.private[m], arrays[f"eval_{m}_coarse_specific"], FORWARD)
        worst.add("eval outputs", outputs.quantized.vectors[m], arrays[f"eval_{m}_quantized"], FORWARD)
        worst.add("eval code indices", outputs.quantized.indices[m][:, 0], arrays[f"eval_indices_{m}"], 0)
    worst.add("eval outputs", outputs.specific["video"].full, arrays["eval_video_specific"], FORWARD)
    worst.add("eval outputs", outputs.specific["video"].pooled, arrays["eval_video_specific_pooled"], FORWARD)
    worst.add("eval outputs", outputs.specific["audio"].full, arrays["eval_audio_specific"], FORWARD)
    start = Run(folder, "fcid", arrays, Draws([], [], facts["eval_reset_picks"]))
    codebook = start.codebook
    codebook.expire_codes(outputs.quantized.indices, start.trainer.rng, Reset("released"))
    worst.add("eval reset", codebook.embedding, arrays["eval_after_embedding"], FORWARD)
    worst.add("eval reset counter", codebook.unactivated_count, arrays["eval_after_unactivated_count"], 0)
    frozen = FrozenEncoder(run.system.encoder, type(run.system))
    for m in INPUTS:
        codes = frozen.embed(m, run.batch[m])
        worst.add("codes of seconds", codes.indices, arrays[f"second_indices_{m}"], 0)
        if f"second_quantized_{m}" in arrays:
            kept = arrays[f"second_quantized_{m}"]
            worst.add("vectors of seconds", codes.vectors[:len(kept)], kept, FORWARD)
    released = {task: next(iter(of.values())) for task, of in type(run.system).TOC_RELEASED.items()}
    for golden in facts["toc"]:
        terms = "both" if golden["variance_term"] else "similarity"
        choice = golden["choose"], golden["toc_max_num"], golden["toc_min_num"], terms
        worst.add("TOC: preset of the script", float(released[golden["script"]] == choice), 1, 0)
        chosen = toc.select(torch.from_numpy(arrays["start_embedding"]), toc.Selection(*choice))
        worst.add("TOC: selected channels", chosen, golden["channels"], 0)


def lexicographic(numbers, blocks):
    """Permutations (P, S) with these numbers in lexicographic order."""
    def one(number):
        left, order = list(range(blocks)), []
        for place in range(blocks, 0, -1):
            size = 1
            for factor in range(1, place):
                size *= factor
            order.append(left.pop(number // size))
            number %= size
        return order
    return torch.tensor([one(number) for number in numbers])


def set_jigsaw(run, section, permutations):
    """Give MICU a jigsaw of these permutations with the golden weights of a section."""
    golden = run.jigsaws[section]
    number, blocks = permutations.shape
    width = golden["enc_net.0.weight"].shape[1]
    jigsaw = Jigsaw(width, blocks, number, golden["enc_net.0.bias"].shape[0]).double()
    jigsaw.load_state_dict({"permutations": permutations, "hidden.weight": golden["enc_net.0.weight"],
                            "hidden.bias": golden["enc_net.0.bias"], "classify.weight": golden["enc_net.2.weight"],
                            "classify.bias": golden["enc_net.2.bias"]})
    run.system.jigsaw = jigsaw
    run.system.config = replace(run.system.config, jigsaw_blocks=blocks, jigsaw_permutations=number)


def micu_run(folder, arrays, facts, section="Jigsaw_parameters", started=True, rng=None, numbers=None, splits=None,
             **settings):
    """A MICU run whose draws are the recorded ones."""
    recorded = facts["draws"]
    rng = rng or Draws(recorded["cpc_t"], recorded["club_permutations"], (), recorded["masks"],
                           recorded["modalities"])
    run = Run(folder, "micu", arrays, rng, started, reset_counter="released", **settings)
    set_jigsaw(run, section, lexicographic(recorded["permutation_indices"] if numbers is None else numbers,
                                     splits or len(recorded["modalities"][0])))
    run.trainer = step_for(run.system, rng, codebook_init="released", code_reset="released",
                              reset_counter="released", **settings)
    return run


def jigsaw_gradients(run, section):
    return {f"{section}.{name}": parameter.grad.norm() for name, parameter in (
        (f"enc_net.{place}.{kind}", getattr(layer, kind)) for place, layer in
        ((0, run.system.jigsaw.hidden), (2, run.system.jigsaw.classify)) for kind in ("weight", "bias"))}


def check_micu(folder):
    """Evaluation with two and with four blocks, the zeroed code, three steps with two passes and with one."""
    arrays, facts = load(folder, "micu_small")
    worst = Worst("micu_small")
    run = micu_run(folder, arrays, facts, started=False)
    outputs, report = run.evaluate()
    output = outputs.contrasted[0]
    for m in INPUTS:
        worst.add("eval outputs", output.semantic[m], arrays[f"eval_{m}_semantic"], FORWARD)
        kept = arrays[f"eval_{m}_specific"]
        worst.add("eval outputs", output.specific[m].full[:len(kept)], kept, FORWARD)
        worst.add("eval code indices", output.quantized.indices[m], arrays[f"eval_indices_{LETTER[m]}"], 0)
    worst.add("eval outputs", output.specific["video"].pooled, arrays["eval_video_specific_pooled"], FORWARD)
    worst.add("eval outputs", output.inputs["text"], arrays["eval_text_lstm"], FORWARD)
    compare_losses(worst, run, "eval losses", report, facts["eval_losses"], FORWARD)
    report.losses["total"].backward()
    run.compare_gradients(worst, "eval gradient norms", facts["eval_grad_norms"], jigsaw_gradients(run, JIGSAW))

    four = facts["four_blocks"]
    rng = Draws(facts["draws"]["cpc_t"], facts["draws"]["club_permutations"], (), [four["mask"]],
                  [four["modalities"]])
    run = micu_run(folder, arrays, facts, "Jigsaw4_parameters", False, rng, four["permutation_indices"],
                   four["splits"])
    worst.add("four blocks: permutations", run.system.jigsaw.permutations, four["permutations"], 0)
    _, report = run.evaluate()
    compare_losses(worst, run, "four blocks: losses", report, four["losses"], FORWARD)
    report.losses["total"].backward()
    run.compare_gradients(worst, "four blocks: gradient norms", four["grad_norms"],
                          jigsaw_gradients(run, "Jigsaw4_parameters"))

    for zero, ending in ((True, ""), (False, "without_")):
        run = micu_run(folder, arrays, facts)
        run.codebook.embedding.copy_(torch.from_numpy(arrays["zero0_start_embedding"]))
        frozen = FrozenEncoder(run.system.encoder, type(run.system), zero_code0=zero)
        for m in INPUTS:
            worst.add("codes with and without code 0 at zero", frozen.embed(m, run.batch[m]).indices,
                      arrays[f"zero0_indices_{ending}{LETTER[m]}"], 0)

    for passes, prefix, steps, norms in (("released", "step{}", "steps", "param_norms"),
                                         ("once", "one_pass", "one_pass_steps", "one_pass_param_norms")):
        run = micu_run(folder, arrays, facts, encoder_passes=passes)
        run.trainer.rng.picks = [pick for step in facts[steps] for pick in step["reset_picks"]]
        run.system.train()
        for number, golden in enumerate(facts[steps]):
            report = run.trainer.step(run.batch, 0)
            compare_losses(worst, run, f"{passes}: train losses", report, golden, STEPPED)
            used = [[len(output[0].quantized.indices[m].unique()) for m in INPUTS] for output in (
                report.outputs.contrasted, report.outputs.reconstructed)][:len(golden["distinct_codes"])]
            worst.add(f"{passes}: distinct codes", used, golden["distinct_codes"], 0)
            if "{}" in prefix or number + 1 == len(facts[steps]):
                run.compare_codebook(worst, arrays, prefix.format(number), f"{passes}: codebook buffers")
        worst.add(f"{passes}: resets left over", len(run.trainer.rng.picks), 0, 0)
        run.compare_norms(worst, f"{passes}: parameter norms", facts[norms])
    check_nce(worst, facts["nce"])
    return worst.checks()


def check_nce(worst, golden):
    """The contrast alone, one query being zero, and on identical one-hot rows."""
    queries = torch.tensor(golden["queries"], dtype=torch.float64, requires_grad=True)
    keys = torch.tensor(golden["keys"], dtype=torch.float64, requires_grad=True)
    value = info_nce(queries, keys)
    value.backward()
    worst.add("InfoNCE", value, golden["value"], FORWARD)
    for ours, theirs in ((queries, golden["grad_norms_queries"]), (keys, golden["grad_norms_keys"])):
        for gradient, norm in zip(ours.grad, theirs):
            if norm is not None:
                worst.add("InfoNCE: gradients", gradient.norm(), norm, FORWARD)
    rows = torch.eye(4, dtype=torch.float64)
    worst.add("InfoNCE of one-hot rows", info_nce(rows, rows), golden["closed_form_identity_4"], FORWARD)


CHECKS = {"fcid_small": check_fcid, "micu_small": check_micu}
