"""X-to-audio retrieval with frozen codes (NeurIPS 2023, section 5.1 and Table 5), and retrieval without training."""

import time
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import torch
from torch.func import functional_call, vmap
from torch.nn import functional as F

from cmg.downstream import encode, fit_heads, metrics, run
from cmg.downstream.task import SHOWN, Task
from cmg.models import toc
from cmg.models.masking import mean_of_clips

RANKS = (1, 5, 10)               # of R@k
TOP = 5                          # candidates kept for the pictures


@dataclass
class Retrieval(Task):
    """Train retrieval from source to audio, test it from target to audio. The only correct answer is the query's clip.

    Candidates are audio FEATURES, not codes, so the encoder need not be trained on audio (the paper's is not).
    """

    label_key = "audio"
    metrics = (*(f"r@{k}" for k in RANKS), "median_rank")

    def make(self, width, segment_layers=2):
        return self.head(width, next(iter(self.train.values()))[0]["audio"].shape[-1])

    def targets(self, part):
        return part.labels

    def measure(self, heads, part, batch_size=None):
        found = [metrics.recall_at(query @ sound.mT, RANKS) for query, sound in zip(*embed(heads, part))]
        return {name: torch.tensor([of_head[name] for of_head in found]) for name in found[0]}

    def chance(self, part, batch_size=None):
        return metrics.recall_chance(len(part), RANKS)

    def pictured(self, heads, part, dataset):
        query, sound = embed(heads[:1], part)
        similarity = query[0] @ sound[0].mT
        categories = np.array(getattr(dataset, "categories", None) or dataset.ids)
        shown = np.unique(categories, return_index=True)[1][:SHOWN]
        top = similarity[torch.from_numpy(shown).to(similarity.device)].topk(min(TOP, len(part))).indices.cpu().numpy()
        return {"classes": categories, "shown": shown, "top": top,
                "sounds": np.stack([[dataset[i]["audio"] for i in row] for row in top]),
                "own_sounds": np.stack([dataset[i]["audio"] for i in shown])}


class _SoundEmbedding(torch.nn.Module):
    """Wrapper whose `forward` embeds audio, because functional_call only supports `forward`."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, audio):
        return self.head.embed_audio(audio)


@torch.no_grad()
def embed(heads, part):
    """Unit vectors of the codes and of the audio features of a set for each head, as two tensors (E, N, width)."""
    whole = _SoundEmbedding(heads[0])
    parameters = {f"head.{name}": value for name, value in fit_heads.stacked(heads).items()}
    sounds = vmap(lambda p, x: functional_call(whole, p, (x,)), in_dims=(0, None))
    return (fit_heads.predict(heads, part),
            torch.cat([sounds(parameters, x) for x in part.labels.split(fit_heads.CHUNK)], 1))


def training_free(dataset, pretrained, variants, settings, output, cache=None):
    """Retrieval by cosine similarity of the clips' mean codes, for every ordered pair of the encoder's modalities.

    Two kinds of answers count as correct: clips of the same class ("map", "ndcg@10"; no lines if the list has no
    classes), and the clip itself ("r@k", "median_rank"). Text is the sentence of a class, which several clips share, so
    R@k to or from text stays below 100 for any encoder.

    Returns:
        Result lines (cmg/results/rows.py), task "retrieval_free", appended to the results file as well.
    """
    start = time.monotonic()
    encoders = run.with_control(pretrained.encoder, settings)
    modalities = [m for m in dataset.modalities if m in pretrained.encoder.config.modalities]
    parts = encode.codes(encoders, dataset, modalities, labels="audio", batch_size=settings.test_batch_size,
                         precision=settings.precision, workers=settings.readers, cache=cache)
    device, names = pretrained.encoder.codebooks[0].device, getattr(dataset, "categories", None)
    classes = torch.from_numpy(np.unique(names, return_inverse=True)[1]).to(device) if names else None
    chance = metrics.class_retrieval_chance(classes, classes) if names else {}
    chance |= metrics.recall_chance(len(dataset), RANKS)
    rows = []
    for variant in variants:
        choice = next(iter(variant.choices.values()))           # the same for all directions of retrieval
        channels = {name: toc.head_channels(encoder.codebooks, choice) for name, encoder in encoders.items()}
        means = {key: F.normalize(mean_of_clips(part.select(channels[key[0]]).table[part.rows], part.mask), dim=-1)
                 for key, part in parts.items()}
        for (source, target), control in product(permutations(modalities, 2), encoders):
            similarity = means[control, source] @ means[control, target].T
            found = metrics.class_retrieval(similarity, classes, classes) if names else {}
            found |= metrics.recall_at(similarity, RANKS)
            rows += [run.line("retrieval_free", dataset, (source, target), metric, value, epoch=0,
                                   selection="last", chance=chance[metric], seed=settings.seeds[0], control=control,
                                   variant=variant.name, choice=choice) for metric, value in found.items()]
    return run.written(rows, pretrained, settings.protocol, start, output)


def evaluate(task, pretrained, variants, settings, output, cache=None):
    """Evaluate retrieval with a head and without training; see cmg.downstream.run.evaluate."""
    dataset = next(iter(task.test.values()))
    return (run.evaluate(task, pretrained, variants, settings, output, cache)
            + training_free(dataset, pretrained, variants, settings, output, cache))
