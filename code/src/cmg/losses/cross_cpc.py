"""Cross-CPC: the past of each modality predicts the next second of every modality (NeurIPS 2023, eq. 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmg.models.config import short
from cmg.utils import dist

SAME_MODALITY = 0.1         # weight of predicting the same modality


@dataclass
class Prediction:
    """InfoNCE summed over ordered pairs of modalities, and accuracy (0..1) by (predicting, target) modality."""

    loss: Tensor
    accuracy: dict

    @property
    def metrics(self):
        """Name in the log -> accuracy."""
        return {f"cpc_accuracy_{short(y)}_to_{short(x)}": a for (y, x), a in self.accuracy.items()}


def _mean(x, counts):
    """Mean over the last dimension (clips), restricted to clips with `counts` > 0."""
    return x.mean(-1) if counts is None else torch.where(counts > 0, x, 0).sum(-1) / counts.sum().clamp_min(1)


class CrossCPC(nn.Module):
    """One LSTM and one linear predictor per modality, on semantic features before quantization.

    Args:
        modalities: names.
        code_dim: width D.
        accuracy_over: the logged accuracy ranks the "targets" for a prediction (DCID), or the "predictions" for a
            target (FCID, MICU).
    """

    def __init__(self, modalities, code_dim, accuracy_over="targets"):
        super().__init__()
        self.accuracy_over = accuracy_over
        self.lstm = nn.ModuleDict({m: nn.LSTM(code_dim, code_dim, 2, batch_first=True) for m in modalities})
        self.predictor = nn.ModuleDict({m: nn.Linear(code_dim, code_dim) for m in modalities})

    def forward(self, z, second, mask=None):
        """Predict second + 1 from seconds 0..second.

        Args:
            z: modality -> (B, T, D).
            second: last second of the context.
            mask: mask of the seconds (cmg/models/masking.py). If given, `second` is scaled to the length of each clip,
                and clips shorter than three seconds are ignored.

        Returns:
            Prediction.
        """
        if mask is None:
            counts = None
            contexts = [self.lstm[m](x[:, :second + 1])[0][:, -1] for m, x in z.items()]
            targets = [x[:, second + 1] for x in z.values()]
        else:
            own, clips = mask.sum(1), torch.arange(len(mask), device=mask.device)
            counts = dist.all_gather((own >= 3).to(next(iter(z.values())).dtype))      # (B,) 0 or 1, of all clips
            last = (1 + (second - 1) * (own - 2) // (mask.shape[1] - 2)).clamp_min(0)
            contexts = [self.lstm[m](x)[0][clips, last] for m, x in z.items()]
            targets = [x[clips, last + 1] for x in z.values()]
        predicted = [self.predictor[m](x) for m, x in zip(z, contexts)]
        both = torch.stack([torch.stack(targets), torch.stack(predicted)])
        targets, predicted = dist.all_gather(both.movedim(2, 0)).movedim(0, 2)         # (M, B, D)
        scores = (targets.flatten(0, 1) @ predicted.flatten(0, 1).T).unflatten(1, predicted.shape[:2])
        if counts is not None:
            scores = scores.masked_fill(counts == 0, torch.finfo(scores.dtype).min)         # finite: all may be masked
        logs = scores.unflatten(0, targets.shape[:2]).log_softmax(3)        # (M, B, M, B): target, its clip, source
        pairs = -_mean(logs.diagonal(dim1=1, dim2=3), counts)               # (M, M)
        loss = pairs.sum() - (1 - SAME_MODALITY) * pairs.diagonal().sum()
        with torch.no_grad():
            own = torch.arange(targets.shape[1], device=targets.device)
            probabilities = logs.exp()
            if self.accuracy_over == "targets":
                if counts is not None:
                    probabilities = probabilities.masked_fill((counts == 0)[:, None, None], -1)
                hits = _mean((probabilities.argmax(1) == own).to(logs.dtype), counts)
            else:
                hits = _mean((probabilities.argmax(3) == own[:, None]).to(logs.dtype).transpose(1, 2), counts)
        accuracy = {(source, target): hit for target, row in zip(z, hits) for source, hit in zip(z, row)}
        return Prediction(loss, accuracy)
