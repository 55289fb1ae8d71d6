"""Cross-CPC: each modality's past predicts every modality's next second (NeurIPS 2023, eq. 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.collectives import ALONE

SAME_MODALITY = 0.1         # weight of predicting one's own future


@dataclass
class Prediction:
    """InfoNCE summed over ordered pairs, and accuracy (0..1) by (predicting, target) modality."""

    loss: Tensor
    accuracy: dict


class CrossCPC(nn.Module):
    """One LSTM and one linear predictor per modality, on semantic features before quantisation.

    `accuracy_over`: among which the right one must score highest, the "targets" of a prediction (DCID) or the
    "predictions" for a target (FCID, MICU).
    """

    def __init__(self, modalities, code_dim, accuracy_over="targets"):
        super().__init__()
        self.accuracy_over = accuracy_over
        self.lstm = nn.ModuleDict({m: nn.LSTM(code_dim, code_dim, 2, batch_first=True) for m in modalities})
        self.together = ALONE
        self.predictor = nn.ModuleDict({m: nn.Linear(code_dim, code_dim) for m in modalities})

    def forward(self, z, second):
        """Predict second + 1 from seconds 0..second of `z`, modality -> (B, T, D)."""
        predicted = [self.predictor[m](self.lstm[m](x[:, :second + 1])[0][:, -1]) for m, x in z.items()]
        both = torch.stack([torch.stack([x[:, second + 1] for x in z.values()]), torch.stack(predicted)])
        futures, predicted = self.together.gather(both.movedim(2, 0)).movedim(0, 2)         # (M, B, D)
        scores = (futures.flatten(0, 1) @ predicted.flatten(0, 1).T).unflatten(1, predicted.shape[:2])
        logs = scores.unflatten(0, futures.shape[:2]).log_softmax(3)        # (M, B, M, B): target, its clip, source
        pairs = -logs.diagonal(dim1=1, dim2=3).mean(2)                      # (M, M)
        loss = pairs.sum() - (1 - SAME_MODALITY) * pairs.diagonal().sum()
        with torch.no_grad():
            own = torch.arange(futures.shape[1], device=futures.device)
            if self.accuracy_over == "targets":
                hits = (logs.exp().argmax(1) == own).to(logs.dtype).mean(2)
            else:
                hits = (logs.exp().argmax(3) == own[:, None]).to(logs.dtype).mean(1)
        accuracy = {(source, target): hit for target, row in zip(z, hits) for source, hit in zip(z, row)}
        return Prediction(loss, accuracy)
