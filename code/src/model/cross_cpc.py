"""Cross-CPC: each modality's past predicts every modality's next second (dcid.md 4; paper eq. 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        self.predictor = nn.ModuleDict({m: nn.Linear(code_dim, code_dim) for m in modalities})

    def forward(self, z, second):
        """Predict second + 1 from seconds 0..second of `z`, modality -> (B, T, D)."""
        predicted = {m: self.predictor[m](self.lstm[m](x[:, :second + 1])[0][:, -1]) for m, x in z.items()}
        loss, accuracy = 0, {}
        for target, x in z.items():
            own = torch.arange(len(x), device=x.device)
            for source, p in predicted.items():
                logits = x[:, second + 1] @ p.T                                             # (B, B)
                weight = SAME_MODALITY if source == target else 1.0
                loss = loss + weight * F.cross_entropy(logits, own)
                with torch.no_grad():
                    accuracy[source, target] = (logits.softmax(1).argmax(0) == own).to(logits.dtype).mean()
        return Prediction(loss, accuracy)
