"""X-to-audio retrieval over frozen codes (NeurIPS 2023, section 5.1 and Table 5), and retrieval without training."""

import time
from dataclasses import astuple, dataclass
from itertools import permutations, product

import numpy as np
import torch
from torch.func import functional_call, vmap
from torch.nn import functional as F

from engine import checkpoint, results
from engine.transfer import fit_heads, metrics, run_task, toc_variants
from model import toc
from model.heads import RetrievalHead

LOOKED_AT = (1, 5, 10)
TOP = 5                          # candidates kept for the pictures


@dataclass
class Retrieval(run_task.Task):
    """Training on source->audio, testing on target->audio. Candidate i is the sound of clip i, the one right answer.

    The sounds are the audio FEATURES, not audio codes: the encoder need not have heard anything (the paper's is
    visual-text).
    """

    labels = "audio"

    def make(self, width):
        return self.head(width, next(iter(self.train.values()))[0]["audio"].shape[-1])

    def answers(self, part):
        return part.labels

    def measure(self, heads, part, batch=None):
        found = [metrics.recall_at(query @ sound.mT, LOOKED_AT) for query, sound in zip(*embed(heads, part))]
        return {name: torch.tensor([figures[name] for figures in found]) for name in found[0]}

    def chance(self, part, batch=None):
        return metrics.recall_chance(len(part), LOOKED_AT)

    def pictured(self, heads, part, dataset):
        query, sound = embed(heads[:1], part)
        similarity = query[0] @ sound[0].mT
        categories = np.array(getattr(dataset, "categories", None) or dataset.ids)
        shown = np.unique(categories, return_index=True)[1][:run_task.SHOWN]
        top = similarity[torch.from_numpy(shown).to(similarity.device)].topk(min(TOP, len(part))).indices.cpu().numpy()
        return {"classes": categories, "shown": shown, "top": top,
                "sounds": np.stack([[dataset[i]["audio"] for i in row] for row in top]),
                "own_sounds": np.stack([dataset[i]["audio"] for i in shown])}


class _Ear(torch.nn.Module):
    """A retrieval head whose call embeds sounds: functional_call replaces the parameters of calls only."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, audio):
        return self.head.hear(audio)


@torch.no_grad()
def embed(heads, part):
    """Unit vectors of a set's codes and of its sounds for each head: two (E, N, width)."""
    ear = _Ear(heads[0])
    parameters = {f"head.{name}": value for name, value in fit_heads.stacked(heads).items()}
    hear = vmap(lambda p, x: functional_call(ear, p, (x,)), in_dims=(0, None))
    return (fit_heads.predict(heads, part),
            torch.cat([hear(parameters, x) for x in part.labels.split(fit_heads.CHUNK)], 1))


def training_free(dataset, pretrained, opts):
    """Retrieval by cosine similarity of the clips' mean codes, for every ordered pair of the encoder's modalities.

    Returns:
        Rows (engine/results.py), task "retrieval_free", appended to `opts.results` as well.
    """
    start = time.monotonic()
    variants = toc_variants.variants(opts, "retrieval", pretrained.encoder.config)
    encoders = {None: pretrained.encoder}
    if not opts.no_control:
        encoders["untrained"] = checkpoint.untrained_like(pretrained.encoder, opts.seeds[0])
    modalities = [m for m in dataset.modalities if m in pretrained.encoder.config.modalities]
    parts = fit_heads.codes(encoders, dataset, modalities, labels="audio", batch=opts.test_batch_size,
                           precision=opts.precision, workers=0 if opts.in_memory else opts.workers)
    chance, rows = metrics.recall_chance(len(dataset), LOOKED_AT), []
    for variant in variants:
        selection = next(iter(variant.selections.values()))         # retrieval has no setting of its own a direction
        kept = {name: toc.head_channels(encoder.codebooks, selection) for name, encoder in encoders.items()}
        means = {key: F.normalize(part.select(kept[key[0]]).table[part.rows].mean(1), dim=-1)
                 for key, part in parts.items()}
        for (source, target), control in product(permutations(modalities, 2), encoders):
            found = metrics.recall_at(means[control, source] @ means[control, target].T, LOOKED_AT)
            rows += [{
                "variant": variant.name, "channels": selection and astuple(selection),
                "task": "retrieval_free", "dataset": dataset.name, "direction": f"{source}->{target}", "metric": metric,
                "value": value, "epoch": 0, "selection": "last", "same_modality": None, "chance": chance[metric],
                "seed": opts.seeds[0], "control": control} for metric, value in found.items()]
    about = run_task.describe(pretrained, opts, start, run_task.keep_record(opts, "vggsound"))
    rows = [about | row for row in rows]
    for row in rows:
        results.append(opts.results, row)
    return rows


def evaluate(splits, pretrained, opts):
    """Both kinds of retrieval over {"train", "val", "test"} -> dataset with audio; rows as run_task.evaluate."""
    parts = {name: run_task.by_modality([dataset]) for name, dataset in splits.items()}
    task = Retrieval("retrieval", RetrievalHead, "r@5", **parts)
    return run_task.evaluate(task, pretrained, opts) + training_free(splits["test"], pretrained, opts)
