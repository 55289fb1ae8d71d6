"""Retrieval between clips and captions without a head, by cosine similarity of clip codes (FCID, ACL 2025 Findings)."""

import time
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cmg.data.loader import ClipLoader
from cmg.downstream import encode, run, toc

RANKS = (1, 5, 10, 50)           # of R@k
ROWS = 512                       # queries compared at once; limits memory


@dataclass
class RankCounts:
    """Numbers of candidates (Q,) that determine the rank of each query's first correct answer.

    Attributes:
        better: candidates that are more similar than the most similar correct answer.
        tied: candidates that are exactly as similar, including the answer itself; they are ranked in random order.
        right: correct answers among the tied candidates.
    """

    better: Tensor
    tied: Tensor
    right: Tensor

    def metrics(self):
        """{"r@k", "median_rank", "mean_rank"}, as expected values over the order of ties; ranks start at 1."""
        better, tied, right = (x.double() for x in (self.better, self.tied, self.right))
        found = {}
        for k in RANKS:
            taken = (k - better).clamp(min=0).minimum(tied)             # tied candidates among the first k
            wrong = tied - right
            missed = torch.exp(_log_choose(wrong, taken.minimum(wrong)) - _log_choose(tied, taken))
            found[f"r@{k}"] = float(100 * (1 - torch.where(taken > wrong, 0.0, missed)).mean())
        rank = better + (tied + 1) / (right + 1)
        return found | {"median_rank": float(rank.quantile(0.5)), "mean_rank": float(rank.mean())}


def _log_choose(n, k):
    """Logarithm of the binomial coefficient."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def rank(queries, candidates, is_right):
    """`RankCounts` of queries (Q, D) among candidates (C, D), all unit vectors.

    Args:
        is_right: (start, stop) of the queries -> (n, C) bool, with at least one correct answer per query.
    """
    parts = []
    for first in range(0, len(queries), ROWS):
        similarity = queries[first:first + ROWS] @ candidates.T
        right = is_right(first, first + len(similarity))
        best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        tied = similarity == best
        parts.append(torch.stack([(similarity > best).sum(1), tied.sum(1), (tied & right).sum(1)]))
    return RankCounts(*torch.cat(parts, 1))


def both_ways(clips, captions, owner):
    """Metrics of retrieval from clips to captions (the best-ranked caption counts) and from captions to clips.

    Args:
        clips, captions: unit vectors (N, D), (C, D).
        owner: (C,) index of the clip of each caption.

    Returns:
        {"clip", "caption"}, the kind of the query -> metrics.
    """
    numbers = torch.arange(len(clips), device=owner.device)
    return {"clip": rank(clips, captions, lambda a, b: owner == numbers[a:b, None]).metrics(),
            "caption": rank(captions, clips, lambda a, b: owner[a:b, None] == numbers).metrics()}


def chance(num_clips, owner):
    """The result of `both_ways` if all similarities are equal."""
    counts, clips = owner.bincount(minlength=num_clips), torch.full_like(owner, num_clips)
    return {"clip": RankCounts(torch.zeros_like(counts), torch.full_like(counts, len(owner)), counts).metrics(),
            "caption": RankCounts(torch.zeros_like(owner), clips, torch.ones_like(owner)).metrics()}


@torch.no_grad()
def vectors(encoder, dataset, modality, batch_size, workers=0, cache=None):
    """Unit vectors (N, head_dim) of the clips of a cmg.data.sets.captions.Captions, or of its captions ("text")."""
    device = encoder.codebooks[0].device
    key = cache and cache.key(encoder, dataset, modality, dataset.sentences, batch_size=batch_size, of="clips")
    if cache and (known := cache.read(key, device)):
        return known["vectors"]
    if modality == "text":
        starts = range(0, len(dataset.owner), batch_size)
        batches = ({"text": torch.from_numpy(dataset.caption_vectors(start, start + batch_size))} for start in starts)
    else:
        batches = ClipLoader(dataset.only([modality]), batch_size, workers)
    shown = tqdm(batches, desc=f"{modality} of {dataset.name}", unit="batch", leave=False, disable=None)
    found = []
    for item in shown:
        mask = item["mask"].to(device) if "mask" in item and modality != "text" else None
        found.append(encoder.embed_clips(modality, item[modality].to(device), mask))
    found = F.normalize(torch.cat(found), dim=-1)
    if cache:
        cache.write(key, {"vectors": found})
    return found


def evaluate(dataset, pretrained, settings, output, workers=0, cache=None):
    """Measure retrieval between every modality of the clips and their captions, in both directions.

    Args:
        dataset: cmg.data.sets.captions.Captions.
        pretrained: cmg.downstream.task.Pretrained, of text and the clips' modalities.
        settings: RetrievalSettings.
        output: cmg.results.rows.Output.
        workers: processes that read clips.
        cache: CodeCache of the checkpoint (cmg/downstream/code_cache.py), or None.

    Returns:
        Result lines (cmg/results/rows.py) of the task "clip_retrieval", which are also appended to the results file.
    """
    start, rows = time.monotonic(), []
    encoders = run.with_control(pretrained.encoder, settings)
    for modality in ("text", *dataset.modalities):
        encode.check_modality(pretrained.encoder, modality, pretrained.path)
    owner = torch.from_numpy(dataset.owner).to(pretrained.encoder.codebooks[0].device)
    guess = chance(len(dataset), owner)
    variant = "zero_code0" if settings.zero_code0 else toc.OFF
    for control, encoder in encoders.items():
        found = {m: vectors(encoder, dataset, m, settings.test_batch_size, workers, cache)
                 for m in ("text", *dataset.modalities)}
        for modality in dataset.modalities:
            measured = both_ways(found[modality], found["text"], owner)
            for (query, direction), metric in product(
                    (("clip", (modality, "text")), ("caption", ("text", modality))), guess["clip"]):
                rows.append(run.line(
                    "clip_retrieval", dataset, direction, metric, measured[query][metric], epoch=0,
                    selection="last", chance=guess[query][metric], seed=settings.seeds[0], control=control,
                    variant=variant, choice=None))
    return run.written(rows, pretrained, settings.protocol, start, output)
