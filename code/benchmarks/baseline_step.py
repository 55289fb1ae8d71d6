"""Plain implementation of a DCID training step, the reference for every faster formulation.

It follows the published order of DCID in the most literal form: channels-first convolutions, one modality and one code
at a time, the attention whose weights are always 1, and Adam tensor by tensor. Its float64 time is the benchmarks'
baseline, and its results equal those of `cmg.training.step` (test_speed_equal.py). It works on the parameters of one of
our models with one level and default settings, and is not meant to be optimized.
"""

from itertools import permutations

import torch
from torch.nn import functional as F

DECAY, EPSILON = 0.99, 1e-5
RESET_AFTER, ACTIVE_BELOW = 300, 100
CLUB_ITERATIONS = 5
CLIP = 0.5


def residual(block, x):
    """relu(x) + Conv1x1(relu(Conv3x3(relu(x)))), ReLU; (N, C, H, W) -> the same."""
    x = F.relu(x)
    spread = F.relu(F.conv2d(x, block.conv3x3.weight.contiguous(), padding=1))
    return F.relu(x + F.conv2d(spread, block.conv1x1.weight))


def temporal(encoder, x):
    """Linear and post-norm Transformer layers, dropout included; (B, T, in) -> (B, T, D)."""
    x = encoder.affine(x)
    for layer in encoder.layers:
        x = layer(x)
    return x


def video_semantic(encoder, x):
    """Squeeze-excitation, the attention as released (a softmax over one entry), temporal encoder."""
    average = x.mean((2, 3))                                                            # (B, T, V)
    gate = torch.sigmoid(encoder.excite(F.relu(encoder.squeeze(average))))
    positions = (x * gate[:, :, None, None] + x).flatten(2, 3)                             # (B, T, 49, V)
    match = F.relu(encoder.place_attention(positions)) * F.relu(encoder.average_attention(average)).unsqueeze(2)
    weights = torch.softmax(torch.tanh(encoder.attention(match)), -1)                   # (B, T, 49, 1), all 1
    return temporal(encoder.temporal, (weights * positions).sum(2))


def video_specific(encoder, x):
    """Convolutions in (N, C, H, W): full (B, T, 3, 3, O) and pooled (B, T, V)."""
    maps = x.flatten(0, 1).permute(0, 3, 1, 2).contiguous()
    maps = F.relu(F.conv2d(maps, encoder.conv1.weight.contiguous(), encoder.conv1.bias))
    maps = F.relu(F.conv2d(maps, encoder.conv2.weight.contiguous(), encoder.conv2.bias))
    maps = residual(encoder.residual, F.conv2d(maps, encoder.conv3.weight, encoder.conv3.bias))
    pooled = encoder.pool2(F.relu(encoder.pool1(F.avg_pool2d(maps, 3).flatten(1))))
    return (maps.permute(0, 2, 3, 1).unflatten(0, x.shape[:2]), pooled.unflatten(0, x.shape[:2]))


def video_decoder(decoder, codes, specific):
    """Transposed convolutions in (N, C, H, W): (B, T, 7, 7, V)."""
    code = decoder.code_linear(codes)[:, :, None, None].repeat(1, 1, *specific.shape[2:4], 1)
    maps = torch.cat([code, specific], -1).flatten(0, 1).permute(0, 3, 1, 2).contiguous()
    maps = F.conv_transpose2d(maps, decoder.deconv1.weight.contiguous(), decoder.deconv1.bias)
    maps = F.relu(F.conv_transpose2d(residual(decoder.residual, maps), decoder.deconv2.weight.contiguous(),
                                     decoder.deconv2.bias))
    maps = F.conv_transpose2d(maps, decoder.deconv3.weight, decoder.deconv3.bias)
    return maps.permute(0, 2, 3, 1).unflatten(0, codes.shape[:2])


def cmcm(p_x, p_y):
    """Cross-modal code matching of two modalities, as written in the paper."""
    scores = p_x @ torch.log(p_y + 1e-10).T + p_y @ torch.log(p_x + 1e-10).T
    scores = torch.exp(scores - scores.min())
    return -torch.log(scores.diagonal() / (scores.sum(1) + 1e-5)).mean()


class PlainStep:
    """Trains `model` (one level) step by step.

    Args:
        model: cmg.systems.dcid.DCID in the dtype to be timed; its codebook is initialized.
        rng: cmg.models.random.StepRandom.
    """

    def __init__(self, model, rng, lr=4e-4, mi_lr=1e-3):
        self.model, self.rng = model, rng
        self.encoder, self.level, self.objective = model.encoder, model.encoder.levels[0], model.objectives[0]
        mi = {m: list(net.parameters()) for m, net in self.objective.club.items()}
        self.sections = [list(self.objective.cpc.parameters()), list(self.level.parameters()),
                         *mi.values(), list(self.objective.decoders.parameters())]
        if "text" in model.config.modalities:
            self.sections.append(list(self.encoder.text_lstm.parameters()))
        main = [p for section in self.sections for p in section if all(p is not q for net in mi.values() for q in net)]
        plain = {"foreach": False, "fused": False}
        self.main = torch.optim.Adam(main, lr, **plain)
        self.mi = {m: torch.optim.Adam(parameters, mi_lr, **plain) for m, parameters in mi.items()}

    def step(self, batch):
        """One step on `batch`, modality -> tensor; returns the losses by name."""
        level, objective, modalities = self.level, self.objective, self.model.config.modalities
        inputs = {m: self.encoder.text_lstm(batch[m])[0] if m == "text" else batch[m] for m in modalities}
        semantic, full, pooled = {}, {}, {}
        for m, x in inputs.items():
            semantic[m] = (video_semantic if m == "video" else temporal)(level.semantic[m], x)
        for m, x in inputs.items():
            if m == "video":
                full[m], pooled[m] = video_specific(level.specific[m], x)
            else:
                full[m] = pooled[m] = F.relu(level.specific[m].linear(x))
        losses, codes, indices = self._quantize(semantic)
        vectors = {m: z + (codes[m] - z).detach() for m, z in semantic.items()}
        self._move_codes(semantic, indices)
        self._reset_codes(indices)

        for _ in range(CLUB_ITERATIONS):
            for m in objective.club_order:
                self.mi[m].zero_grad()
                (-self._likelihood(objective.club[m], vectors[m].detach(), pooled[m].detach())).backward()
                self.mi[m].step()

        for m in modalities:
            if m == "video":
                rebuilt = video_decoder(objective.decoders[m], vectors[m], full[m])
            else:
                rebuilt = objective.decoders[m](vectors[m], full[m])
            losses[f"{m}_recon"] = F.mse_loss(rebuilt, inputs[m])
        for m in objective.club_order:
            losses[f"{m}_club"] = self._bound(objective.club[m], vectors[m], pooled[m],
                                            self.rng.permutation(len(vectors[m])))
        losses["cpc"] = self._cpc(semantic)
        losses["total"] = sum(losses.values())
        self.main.zero_grad()
        losses["total"].backward()
        for section in self.sections:
            torch.nn.utils.clip_grad_norm_(section, CLIP, foreach=False)
        self.main.step()
        return losses

    def _quantize(self, semantic):
        codes = self.level.codebook.embedding.clone()
        chosen, indices, chances, losses = {}, {}, {}, {}
        for m, z in semantic.items():
            rows = z.flatten(0, 1)
            distance = (rows ** 2).sum(1, keepdim=True) + (codes ** 2).sum(1) - 2 * rows @ codes.T
            indices[m] = distance.argmin(1).unflatten(0, z.shape[:2])
            chosen[m] = (F.one_hot(indices[m], len(codes)).to(codes.dtype) @ codes)
            chances[m] = torch.softmax(-distance.clamp_min(1e-30).sqrt(), 1).unflatten(0, z.shape[:2]).mean(1)
        for m, z in semantic.items():
            others = [F.mse_loss(z, chosen[other]) for other in chosen if other != m]
            losses[f"{m}_commit"] = 0.25 * (2 * F.mse_loss(z, chosen[m]) + sum(others) / len(others))
        names = list(chances)
        losses["cmcm"] = 0.5 * sum(cmcm(chances[x], chances[y]) for i, x in enumerate(names) for y in names[i + 1:])
        return losses, chosen, indices

    @torch.no_grad()
    def _move_codes(self, semantic, indices):
        """MM-EMA, one code at a time."""
        book, num_codes = self.level.codebook, len(self.level.codebook.embedding)
        for m, z in semantic.items():
            rows, chosen = z.flatten(0, 1), indices[m].flatten()
            others = [other.flatten(0, 1) for name, other in semantic.items() if name != m]
            for code in range(num_codes):
                hits = chosen == code
                book.ema_count[code] = DECAY * book.ema_count[code] + (1 - DECAY) * hits.sum().item()
            total = book.ema_count.sum()
            book.ema_count.copy_((book.ema_count + EPSILON) / (total + num_codes * EPSILON) * total)
            for code in range(num_codes):
                hits = chosen == code
                if hits.sum().item():
                    teachers = sum(other[hits].sum(0) for other in others) / len(others)
                    book.ema_weight[code] = (DECAY * book.ema_weight[code]
                                             + (1 - DECAY) * 0.5 * (rows[hits].sum(0) + teachers))
                else:
                    book.ema_weight[code] = DECAY * book.ema_weight[code]
                book.embedding[code] = book.ema_weight[code] / book.ema_count[code]

    @torch.no_grad()
    def _reset_codes(self, indices):
        """Count passes without use and reset unused codes, one code at a time."""
        book = self.level.codebook
        used = {int(code) for chosen in indices.values() for code in chosen.flatten()}
        for code in range(len(book.embedding)):
            book.unactivated_count[code] = 0 if code in used else book.unactivated_count[code] + 1
        count = book.unactivated_count
        active = [code for code in range(len(count)) if 0 <= count[code].item() < ACTIVE_BELOW]
        due = count > RESET_AFTER
        positions = self.rng.reset_positions(due, torch.tensor(len(active)))
        noise = self.rng.reset_noise(book.embedding)
        before = book.embedding.clone()
        for code in range(len(count)):
            if due[code].item():
                book.embedding[code] = before[active[int(positions[code])]] + noise[code]
                book.ema_weight[code] = book.embedding[code]
                book.ema_count[code] = 1
                book.unactivated_count[code] = 0

    @staticmethod
    def _likelihood(club, codes, specific):
        mean, log_variance = club.mean(codes), club.log_variance(codes)
        return (-(mean - specific) ** 2 / log_variance.exp() - log_variance).sum(-1).mean() / 2

    @staticmethod
    def _bound(club, codes, specific, permutation):
        mean, log_variance = club.mean(codes), club.log_variance(codes)
        matched = -((mean - specific) ** 2).mean(1) / log_variance.mean(1).exp()
        shuffled = -((mean - specific[permutation]) ** 2).mean(1) / log_variance.mean(1).exp()
        return (matched.sum(-1) - shuffled.sum(-1)).mean() / 2

    def _cpc(self, semantic):
        cpc = self.objective.cpc
        second = self.rng.second(min(z.shape[1] for z in semantic.values()))
        context = {m: cpc.predictor[m](cpc.lstm[m](z[:, :second + 1])[0][:, -1]) for m, z in semantic.items()}
        loss = 0
        for m, z in semantic.items():
            logits = z[:, second + 1] @ context[m].T
            loss = loss - 0.1 * torch.diag(F.log_softmax(logits, 1)).mean()
        for target, source in permutations(semantic, 2):
            logits = semantic[target][:, second + 1] @ context[source].T
            loss = loss - torch.diag(F.log_softmax(logits, 1)).mean()
        return loss
