"""Cross-CPC: each modality's past predicts every modality's next second (dcid.md 4; paper eq. 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.together import ALONE

SAME_MODALITY = 0.1         # weight of predicting one's own future


@dataclass
class Prediction:
    """InfoNCE summed over ordered pairs, and accuracy (0..1) by (predicting, target) modality."""

    loss: Tensor
    accuracy: dict


class CrossCPC(nn.Module):
    """One LSTM and one linear predictor a modality, on semantic features before quantisation."""

    def __init__(self, modalities, code_dim):
        super().__init__()
        self.lstm = nn.ModuleDict({m: nn.LSTM(code_dim, code_dim, 2, batch_first=True) for m in modalities})
        self.together = ALONE
        self.predictor = nn.ModuleDict({m: nn.Linear(code_dim, code_dim) for m in modalities})

    def forward(self, z, second):
        """Predict second + 1 from seconds 0..second of `z`, modality -> (B, T, D)."""
        predicted = [self.predictor[m](self.lstm[m](x[:, :second + 1])[0][:, -1]) for m, x in z.items()]
        both = torch.stack([torch.stack([x[:, second + 1] for x in z.values()], 1), torch.stack(predicted, 1)], 1)
        futures, predicted = self.together.gather(both).unbind(1)                           # (B, M, D)
        loss, accuracy = 0, {}
        own = torch.arange(len(futures), device=futures.device)
        for target, future in zip(z, futures.unbind(1)):
            for source, p in zip(z, predicted.unbind(1)):
                logits = future @ p.T                                             # (B, B)
                weight = SAME_MODALITY if source == target else 1.0
                loss = loss + weight * F.cross_entropy(logits, own)
                with torch.no_grad():
                    accuracy[source, target] = (logits.softmax(1).argmax(0) == own).to(logits.dtype).mean()
        return Prediction(loss, accuracy)
