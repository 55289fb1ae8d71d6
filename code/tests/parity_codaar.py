"""CoDAAR, with text and without, against the golden numbers: `CHECKS` maps a golden run to its function."""

from dataclasses import replace

import torch

from cmg.downstream import metrics
from cmg.models.heads import DeepSegmentHead
from cmg.systems.codaar import CoDAAR
from cmg.systems.state_dicts import rules
from golden_io import ABSOLUTE, FORWARD, STEPPED, det, load
from parity_dcid import ACCURACY, INPUTS, LETTER, Worst, filled, manifest
from tiny import step_for

BIASES = 1e-10      # gradients of the biases before batch normalization are zero but for rounding
FLOAT32 = 1e-7      # the published macro precision is rounded to float32
FACTS = {"grad_norms_before_clip", "reset_picks", "distinct_codes", "margins"}    # entries that are no figure


class Recorded:
    """Draws that repeat a golden run's, in order."""

    def __init__(self, arrays, facts):
        self.seconds = list(facts["cpc_t"])
        steps = facts["train_steps"]
        self.picks = [torch.tensor(step["reset_picks"], dtype=torch.int64) for step in steps]
        self.noise = [torch.from_numpy(arrays[f"step{n}_reset_noise"]) for n in range(len(steps))]

    def second(self, num_seconds):
        return self.seconds.pop(0)

    def reset_positions(self, due, num_active):
        self.due = due
        return torch.zeros(len(due), dtype=torch.int64).masked_scatter(due, self.picks.pop(0))

    def normal(self, like):
        assert int(self.due.sum()) == len(self.noise[0]), "other resets are due than in the golden run"
        return torch.zeros_like(like).masked_scatter(self.due.unsqueeze(1).expand_as(like), self.noise.pop(0))


class Run:
    """CoDAAR filled by the rule, with the stored table; its trainer and the batch of a golden file."""

    def __init__(self, folder, name, arrays, facts):
        sections = filled(manifest(folder, f"{name}_manifest"))
        for array, value in arrays.items():
            if array.startswith("start_"):
                sections[rules.ENCODER][f"Cross_quantizer.{array.removeprefix('start_')}"] = torch.from_numpy(value)
        _, config = rules.infer_config(sections, [CoDAAR])
        self.system = CoDAAR(replace(config, dropout=0.0)).double()
        self.tensors = rules.layout(CoDAAR, self.system.config)
        state, self.unused = rules.from_published(sections, self.tensors, sections)
        self.system.load_state_dict(state)
        self.modalities = self.system.config.modalities
        self.batch = {m: torch.from_numpy(arrays[INPUTS[m]]).double() for m in self.modalities}
        self.trainer = step_for(self.system, Recorded(arrays, facts), codebook_init="released",
                                   code_reset="released")

    def published(self):
        return rules.to_published(self.system.state_dict(), self.tensors, self.unused, torch.float64)

    def compare_gradients(self, worst, group, golden):
        """Gradient norms by published name; what the golden run has no gradient for must have none here."""
        ours = dict(self.system.named_parameters())
        found = {f"{t.section}.{t.key}": ours[t.ours[0]].grad.norm() for t in self.tensors
                 if t.ours and not t.is_buffer and ours[t.ours[0]].grad is not None}
        for name, theirs in golden.items():
            is_before_norm = "spatial_conv_stack" in name and name.endswith((".0.bias", ".3.bias"))
            is_zero = is_before_norm and self.system.training or name.startswith("CPC_parameters") and "bias" in name
            worst.add(group, found.get(name, torch.zeros(())), theirs, FORWARD, BIASES if is_zero else ABSOLUTE)
        surplus = [norm for name, norm in found.items() if name not in golden]
        worst.add(f"{group} where there are none", sum(surplus, torch.zeros(())), 0.0, 0)

    def compare_figures(self, worst, group, report, golden, tolerance):
        """Every loss and reported figure of one step."""
        ours = report.losses | report.metrics
        ours |= {f"perplexity_{LETTER[m]}": ours[f"{m}_perplexity"] for m in self.modalities}
        for name in golden.keys() - FACTS:
            is_rounded = "accuracy" in name
            worst.add(f"{group}: accuracies" if is_rounded else group, ours[name], golden[name],
                      ACCURACY if is_rounded else tolerance)
        for section, norm in golden.get("grad_norms_before_clip", {}).items():
            worst.add("train clip norms", report.grad_norms[section], norm, STEPPED)


def compare_evaluation(worst, run, arrays, facts):
    """One pass in evaluation mode with gradients; returns its output."""
    run.system.eval()
    before = {name: buffer.clone() for name, buffer in run.system.named_buffers()}
    output = run.system.encode(run.system.features(run.batch), 0)
    for m in run.modalities:
        worst.add("eval outputs", output.semantic[m], arrays[f"eval_{m}_semantic"], FORWARD)
        stored = "eval_video_spatial" if m == "video" else f"eval_{m}_specific"
        worst.add("eval outputs", output.specific[m], arrays[stored], FORWARD)
        worst.add("eval row indices", output.quantized.indices[m], arrays[f"eval_indices_{LETTER[m]}"], 0)
    if "text" in run.modalities:
        worst.add("eval outputs", output.inputs["text"], arrays["eval_text_lstm"], FORWARD)
    report = run.trainer.losses(output, 0)
    run.compare_figures(worst, "eval losses", report, facts["eval_losses"], FORWARD)
    report.losses["total"].backward()
    run.compare_gradients(worst, "eval gradient norms", facts["eval_grad_norms"])
    moved = [name for name, buffer in run.system.named_buffers() if not torch.equal(before[name], buffer)]
    worst.add("buffers that evaluation moves", len(moved), 0, 0)
    return output


def compare_training(worst, run, arrays, facts):
    """Training steps from the start state."""
    run.system.train()
    optimizers = run.trainer.optimizers

    def compare_and_clip():         # the gradients of the first step before they are clipped
        run.compare_gradients(worst, "train gradient norms", facts["train_grad_norms_step0"])
        del optimizers.clip_gradients
        return optimizers.clip_gradients()
    optimizers.clip_gradients = compare_and_clip
    for number, golden in enumerate(facts["train_steps"]):
        report = run.trainer.step(run.batch, 0)
        run.compare_figures(worst, "train losses", report, golden, STEPPED)
        quantized = report.outputs.quantized
        for m in run.modalities:
            worst.add("train row indices", quantized.indices[m], arrays[f"step{number}_indices_{LETTER[m]}"], 0)
            worst.add("distinct rows", len(quantized.indices[m].unique()), golden["distinct_codes"][LETTER[m]], 0)
        stored = run.published()[rules.ENCODER]
        for array, theirs in arrays.items():
            if array.startswith(f"step{number}_") and not array.startswith((f"step{number}_indices",
                                                                            f"step{number}_reset")):
                name = array.removeprefix(f"step{number}_")
                is_norm = name.startswith("spatial")
                key = f"video_semantic_encoder.{name}" if is_norm else f"Cross_quantizer.{name}"
                worst.add("batch statistics" if is_norm else "table", stored[key], theirs, STEPPED)
    worst.add("resets left over", len(run.trainer.rng.picks), 0, 0)
    sections = run.published()
    for name, theirs in facts["train_param_norms"].items():
        section, key = name.split(".", 1)
        worst.add("parameter norms after the steps", sections[section][key].norm(), theirs, STEPPED)


def compare_head(worst, rows, arrays, facts):
    """The four-layer segment head on the rows that audio picked, and AVE's macro precision."""
    shapes = facts["segment_head_4_manifest"]
    outputs, width = shapes["event_classifier.weight"][0], shapes["linear.weight"][1]
    head = DeepSegmentHead(width, outputs - 1).double()
    state = {name: det(f"segment_head_4.{name}", shape) for name, shape in shapes.items()}
    own = {name: list(value.shape) for name, value in head.state_dict().items() if not name.startswith("explog.")}
    worst.add("four-layer head, names and shapes", float(own != shapes), 0.0, 0)
    head.load_state_dict(state, strict=False)
    worst.add("four-layer head", head(rows.flatten(0, 1)), arrays["segment_head_4_logits"], FORWARD)
    scores, classes = torch.from_numpy(arrays["precision_scores"]), torch.from_numpy(arrays["precision_classes"])
    worst.add("macro precision", metrics.macro_precision(scores, classes), facts["macro_precision"], FLOAT32)


def check(folder, name):
    """One evaluation pass with gradients, then training steps; with text also the head and the metric."""
    arrays, facts = load(folder, name)
    worst = Worst(name)
    run = Run(folder, name, arrays, facts)
    output = compare_evaluation(worst, run, arrays, facts)
    if "segment_head_4_logits" in arrays:
        with torch.no_grad():
            rows = run.system.encoder.embed_inputs("audio", output.inputs["audio"]).vectors
        compare_head(worst, rows, arrays, facts)
    compare_training(worst, Run(folder, name, arrays, facts), arrays, facts)
    return worst.checks()


CHECKS = {name: (lambda folder, name=name: check(folder, name)) for name in ("codaar_small", "codaar_av_small")}
