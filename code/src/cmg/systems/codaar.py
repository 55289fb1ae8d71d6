"""CoDAAR: one codebook per modality, aligned by code index (arXiv 2605.12145).

The codebooks are the segments of one table: code k of every modality is in row k. A second is assigned a row by the
segment of its own modality; decoders and downstream heads receive the whole row, no matter which modality it was
assigned by. The update of the table aligns the segments. We take the features of other modalities in the moving
averages for the paper's Discrete Temporal Alignment (DTA) and the averaging of the segments for its Cascading Semantic
Alignment (CSA); this is our reading of the published program.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmg.losses.cross_cpc import CrossCPC
from cmg.models import codebook
from cmg.models.blocks import Blocks
from cmg.models.config import in_order, short
from cmg.models.encoders import Specific
from cmg.models.map_conv import MapConv
from cmg.models.masking import first_rows, gathered, mean_of_seconds, squared_error, unmasked
from cmg.systems import base, settings
from cmg.systems.base import Codes, Losses, full_precision
from cmg.systems.state_dicts import codaar
from cmg.systems.state_dicts.rules import DECODER, ENCODER, LSTMS
from cmg.utils import dist

OWN_SHARE = 3                               # weight of the own features in the moving averages; others have 1
OTHERS_COMMITMENT = 0.5                     # weight of another modality's code; the own code has 2
NOISE = 1e-3                                # standard deviation of the noise on rows that are reset or repeated
TEMPERATURE = 0.1                           # of the logged segment alignment


# ----------------------------------------------------------------------------------------------------------- the table
@dataclass
class QuantizedRows(codebook.Pass):
    """Result of one pass through the table; dicts are keyed by modality, in the order of the segments."""

    rows: dict          # (B, T, nD) assigned rows, with a straight-through gradient to the features of ALL modalities
    indices: dict       # (B, T) int64 assigned rows
    commitment: dict    # scalar losses
    cmcm: Tensor        # scalar loss
    perplexity: dict    # scalars, 1..K
    equal_num: Tensor   # number of clips whose most frequent row is the same in all modalities


class RowTable(nn.Module):
    """K rows of one segment (D columns) per modality, in the order of SEGMENTS.

    The state consists of buffers with published names, which change only in `init_from_data`, `update_ema` and
    `expire_codes`: `embedding` and `ema_weight` (K, nD), `ema_count_<short name>` (K,) of each modality, their sum
    `ema_count`, and `unactivated_count` (K,). They are initialized as published. After `update_ema`,
    embedding = cascade(weight / count).
    """

    def __init__(self, config):
        super().__init__()
        self.segments, self.width = config.segments, config.code_dim
        rows = config.num_codes
        embedding = torch.empty(rows, config.row_dim).uniform_(-1 / rows, 1 / rows)
        self.register_buffer("embedding", embedding)
        self.register_buffer("ema_count", torch.zeros(rows))
        for modality in self.segments:
            self.register_buffer(f"ema_count_{short(modality)}", torch.zeros(rows))
        self.register_buffer("ema_weight", embedding.clone())
        self.register_buffer("unactivated_count", torch.full((rows,), -1.0))

    def split(self, table):
        """The segments (n, K, D) of a table (K, nD), as a view."""
        return table.unflatten(1, (len(self.segments), self.width)).transpose(0, 1)

    @property
    def counts(self):
        """`ema_count_<short name>` of the segments, (K,) each."""
        return [getattr(self, f"ema_count_{short(modality)}") for modality in self.segments]

    def forward(self, z, with_cmcm=True, mask=None):
        """Assign a row to every second of every modality. No buffer changes.

        Args:
            z: modality -> (B, T, D) semantic features.
            with_cmcm: if False, the CMCM loss is 0.
            mask: mask of the seconds (cmg/models/masking.py), here and below.

        Returns:
            QuantizedRows.
        """
        table = self.embedding.clone()          # the update rewrites the buffer before backward reads it
        segments, x = self.split(table), torch.stack([z[m] for m in self.segments])         # (n, K, D), (n, B, T, D)
        distance = codebook.squared_distance(x.flatten(1, 2), segments).unflatten(1, x.shape[1:3])   # (n, B, T, K)
        indices = torch.stack([codebook.nearest_codes(of.flatten(0, 1), codes).unflatten(0, of.shape[:2])
                               for of, codes in zip(distance, segments)])
        codes = torch.stack([codes[assigned] for codes, assigned in zip(segments, indices)])
        features = torch.cat(x.unbind(), -1)
        rows = features + (table[indices] - features).detach()                              # (n, B, T, nD)
        cmcm = codebook.code_matching(distance, mask) if with_cmcm and len(x) > 1 else table.new_zeros(())
        perplexity, equal_num = codebook.code_metrics(indices, table, mask)
        commitment = dist.mean(self._commitment(x, codes, mask), mask)
        return QuantizedRows(
            rows=dict(zip(self.segments, rows)), indices=dict(zip(self.segments, indices)),
            commitment=dict(zip(self.segments, commitment)), cmcm=cmcm,
            perplexity=dict(zip(self.segments, perplexity)), equal_num=equal_num)

    @staticmethod
    def _commitment(x, codes, mask):
        """Commitment losses (n,): twice the mean squared error to the modality's own code, plus half of that to the
        code of each other modality at the same second."""
        errors = (x.unsqueeze(1) - codes) ** 2                              # (n, n, ...): features of, codes of
        errors = errors.mean((2, 3, 4)) if mask is None else mean_of_seconds(errors.mean(4), mask)
        return codebook.COMMITMENT * (OTHERS_COMMITMENT * errors.sum(1) + (2 - OTHERS_COMMITMENT) * errors.diagonal())

    def lookup(self, modality, z):
        """Rows assigned by one modality: z (B, T, D) -> rows (B, T, nD), indices (B, T).

        The straight-through gradient is that of the modality's own segment.
        """
        number = self.segments.index(modality)
        codes = self.split(self.embedding)[number]
        distance = codebook.squared_distance(z.detach().flatten(0, 1), codes)
        indices = codebook.nearest_codes(distance, codes).unflatten(0, z.shape[:2])
        rows = self.embedding[indices]
        if z.requires_grad:
            before = number * self.width, (len(self.segments) - 1 - number) * self.width
            rows = rows + F.pad(z - z.detach(), before)
        return rows, indices

    @torch.no_grad()
    def init_from_data(self, z, order, rng, with_cascade=True, mask=None):
        """Initialize every row, with a count of 1, from a random second of the first batch, the same for all segments.

        If there are fewer seconds than rows, they are repeated with a little noise.
        """
        seconds = torch.cat([dist.all_gather(z[m].detach()).flatten(0, 1) for m in self.segments], 1)
        mask = None if mask is None else gathered(mask, seconds).flatten()
        sample = seconds[first_rows(rng, len(seconds), len(self.embedding), mask).to(seconds.device)]
        if mask is not None:
            sample = sample + NOISE * rng.normal(sample) * (mask.sum() < len(sample))
        elif len(seconds) < len(sample):
            sample = sample + NOISE * rng.normal(sample)
        self.ema_weight.copy_(sample)
        for count in self.counts:
            count.fill_(1)
        self.ema_count.fill_(len(self.segments))
        self.unactivated_count.fill_(-1)
        self.embedding.copy_(self._cascaded(sample, order, with_cascade))

    def _cascaded(self, means, order, with_cascade=True):
        """CSA (K, nD) -> (K, nD): in `order`, replace each segment with the mean of all segments, including those
        already replaced."""
        parts = dict(zip(self.segments, self.split(means)))
        for modality in order if with_cascade else ():
            if modality in parts:
                parts[modality] = sum(parts.values()) / len(parts)
        return torch.cat(list(parts.values()), 1)

    def _means(self):
        """The moving averages (K, nD): weight / count of every row and segment."""
        return self.ema_weight / torch.stack(self.counts, 1).repeat_interleave(self.width, 1)

    @torch.no_grad()
    def update_ema(self, z, indices, order, with_others=True, with_cascade=True, mask=None):
        """Update the moving averages of all segments with the seconds that were assigned each row, then cascade.

        DTA mixes the features of all modalities at the same second: with weights 0.6 for the modality itself and 0.2
        for each of two others, or 0.75 and 0.25 with one other. The averages are kept before the cascade, so that its
        effect does not accumulate.

        Args:
            z: modality -> (B, T, D) features before quantization.
            indices: modality -> (B, T) assigned rows.
            order: modalities in the order of the cascade.
            with_others, with_cascade: False omits DTA or CSA.
        """
        x = torch.stack([z[m].detach() for m in self.segments], 1)                          # (B, n, T, D)
        number = len(self.segments)
        share = 1 / (OWN_SHARE + number - 1) if with_others else 0.0
        mixed = (1 - number * share) * x + share * x.sum(1, keepdim=True)                   # own: 1 - (n - 1) * share
        mixed = dist.local(mixed).transpose(0, 1).flatten(1, 2)                      # (n, N, D)
        assigned = dist.local(torch.stack([indices[m] for m in self.segments], 1)).transpose(0, 1).flatten(1)
        hits = F.one_hot(assigned, len(self.embedding)).to(mixed.dtype)                     # (n, N, K)
        if mask is not None:
            hits = hits * dist.local(mask).flatten().unsqueeze(1)
        sums = dist.all_reduce(torch.cat([hits.sum(1).unsqueeze(2), hits.mT @ mixed], 2))
        counts = codebook.DECAY * torch.stack(self.counts) + (1 - codebook.DECAY) * sums[..., 0]              # (n, K)
        total = counts.sum(1, keepdim=True)
        counts = (counts + codebook.EPSILON) / (total + len(self.embedding) * codebook.EPSILON) * total
        for count, now in zip(self.counts, counts):
            count.copy_(now)
        self.ema_count.copy_(counts.sum(0))
        self.ema_weight.mul_(codebook.DECAY).add_(sums[..., 1:].transpose(0, 1).flatten(1), alpha=1 - codebook.DECAY)
        self.embedding.copy_(self._cascaded(self._means(), order, with_cascade))

    @torch.no_grad()
    def expire_codes(self, indices, order, rng, mode="full", with_cascade=True, mask=None):
        """Count passes in which no modality uses a row, and reset rows that have been unused for more than 300 passes.

        Args:
            mode: "full" sets the moving averages to those of an active row plus noise, with a count of 1, so that the
                next update keeps the row; "released" resets the row only, which that update undoes completely; "off"
                only counts.
        """
        codebook.count_unused(self.unactivated_count, indices, mask)
        if mode == "off":
            return
        due, source = codebook.replacements(self.unactivated_count, rng)
        rows, noise = due.unsqueeze(1), NOISE * rng.normal(self.embedding)
        if mode == "released":
            fresh = self.embedding[source] + noise
        else:
            means = self._means()[source] + noise
            self.ema_weight.copy_(torch.where(rows, means, self.ema_weight))
            for count in self.counts:
                count.masked_fill_(due, 1)
            self.ema_count.copy_(sum(self.counts))
            fresh = self._cascaded(means, order, with_cascade)
        self.embedding.copy_(torch.where(rows, fresh, self.embedding))
        self.unactivated_count.masked_fill_(due, 0)

    @torch.no_grad()
    def alignment(self):
        """Alignment of the segments, in nats, for the log; lower is better.

        l_xy = mean_k(logsumexp_j S[k, j] - S[k, k]) with S the cosine similarities of the segments x and y divided by
        0.1; half the mean over all pairs.
        """
        unit = dict(zip(self.segments, F.normalize(self.split(self.embedding), dim=2)))
        scores = torch.stack([unit[x] @ unit[y].T for x, y in combinations(self.segments, 2)]) / TEMPERATURE
        return 0.5 * (scores.logsumexp(2) - scores.diagonal(dim1=1, dim2=2)).mean()


# --------------------------------------------------------------------------------------------------------- the encoder
class BatchNorm(nn.BatchNorm1d):
    """Batch normalization of the channels of maps (N, H, W, C), over maps and positions in all processes."""

    def __init__(self, channels):
        super().__init__(channels)

    def forward(self, x, clips, mask=None):
        """Normalize x (N, H, W, C). `clips` is a tensor (B, T, ...) of the clips, N = B * T; `mask` their mask."""
        rows = x.flatten(0, -2)
        if not self.training or dist.world_size() == 1 and mask is None:
            return super().forward(rows).view_as(x)
        wide = rows.to(torch.promote_types(rows.dtype, self.weight.dtype))
        positions = rows.unflatten(0, (*clips.shape[:2], -1)).shape[2]
        counts = None if mask is None else mask.flatten().repeat_interleave(positions).unsqueeze(1)

        def mean_of(values):
            mean = values.mean(0) if counts is None else (values * counts).sum(0) / counts.sum()
            return dist.pooled_mean(mean, mask)
        mean = mean_of(wide)
        variance = mean_of((wide - mean) ** 2)
        with torch.no_grad():
            number = dist.global_batch_size(clips) * (len(rows) // len(clips))
            if mask is not None:
                number = dist.all_reduce(dist.local(mask).sum()) * positions
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * number / (number - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        return ((wide - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype).view_as(x)


class MapConvStack(nn.Module):
    """Specific encoder of maps: (B, T, H, W, C) -> `full` (B, T, H-4, W-4, O), without pooling."""

    def __init__(self, channels, widths):
        super().__init__()
        self.conv1 = MapConv(channels, widths.hidden, 3)
        self.norm1 = BatchNorm(widths.hidden)
        self.conv2 = MapConv(widths.hidden, widths.specific, 3)
        self.norm2 = BatchNorm(widths.specific)

    def forward(self, x, mask=None):
        maps = F.relu(self.norm1(self.conv1(x.flatten(0, 1)), x, mask))
        return Specific(F.relu(self.norm2(self.conv2(maps), x, mask)).unflatten(0, x.shape[:2]), None)


@dataclass
class PassOutput:
    """Output of one pass; dicts are keyed by modality."""

    inputs: dict                # targets of the reconstruction
    semantic: dict              # (B, T, D) before quantization
    specific: dict              # (B, T, D) of vectors and tokens, (B, T, H-4, W-4, O) of maps
    quantized: QuantizedRows
    mask: Tensor | None = None      # (B, T) mask of the seconds (cmg/models/masking.py)
    alignment: Tensor | None = None     # of the table after the update of this pass; None without an update


class Encoder(base.Encoder):
    """LSTMs of tokens, semantic and specific encoders, and the table."""

    def __init__(self, config):
        super().__init__(config)
        self.add_lstms()
        self.add_standardization()
        semantic, specific = {}, {}
        for m in config.modalities:
            blocks = Blocks(config, m)
            semantic[m], specific[m] = blocks.semantic(), blocks.specific(MapConvStack)
        self.semantic, self.specific = nn.ModuleDict(semantic), nn.ModuleDict(specific)
        self.table = RowTable(config)

    @property
    def codebooks(self):
        """The segments: one codebook (K, D) for each modality."""
        return list(self.table.split(self.table.embedding))

    def forward(self, features, with_cmcm=True, mask=None):
        """The PassOutput for `features`, modality -> result of `inputs`."""
        semantic, specific = {}, {}
        for m, x in features.items():
            with full_precision(x):
                exact = x.to(self.table.embedding.dtype)
                if self.config.kind(m) == "map":    # both encoders share the squeeze-excitation
                    factor, average = self.semantic[m].gate(exact)
                    semantic[m] = self.semantic[m].temporal(self.semantic[m].pool(exact, factor, average), mask)
                    x = x * factor.to(x.dtype)[:, :, None, None]
                else:
                    semantic[m] = self.semantic[m](exact, mask)
            specific[m] = (self.specific[m](x, mask) if self.config.kind(m) == "map" else self.specific[m](x)).full
        with full_precision(self.table.embedding):
            return PassOutput(features, semantic, specific, self.table(semantic, with_cmcm, mask), mask)

    def embed_inputs(self, modality, inputs, mask=None):
        """See the base class. Convolutions and batch normalization are not used."""
        with full_precision(inputs):
            z = self.semantic[modality](inputs.to(self.table.embedding.dtype), mask)
            return Codes(*self.table.lookup(modality, z))


# ---------------------------------------------------------------------------------------------------------- the system
class RowDecoder(nn.Module):
    """Decoder of a row: a linear layer to the width of a code, then the decoder of a code."""

    def __init__(self, config, modality):
        super().__init__()
        self.row_linear = nn.Linear(config.row_dim, config.code_dim)
        self.of_code = Blocks(config, modality).decoder()

    def forward(self, rows, specific):
        return self.of_code(self.row_linear(rows), specific)


class CoDAAR(settings.CoDAAR, base.System):
    """One encoder pass per step, without CLUB networks."""

    KEY_RULES = codaar.KEY_RULES
    GROUPS = {"encoder.{m}_lstm.": LSTMS, "encoder.": ENCODER, "cpc.": "CPC_parameters", "decoders.": DECODER}

    def __init__(self, config):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.cpc = CrossCPC(config.modalities, config.code_dim)
        self.decoders = nn.ModuleDict({m: RowDecoder(config, m) for m in config.modalities})
        self.initialized = [False]

    @property
    def cascade_order(self):
        """The option with unpublished modalities appended."""
        return in_order(self.config.modalities, self.options.cascade_order)

    def features(self, batch):
        features = {m: self.encoder.inputs(m, batch[m]) for m in self.config.modalities}
        return base.to_seconds(features, self.config, batch.get("mask"))

    def encode(self, features, epoch):
        with self.autocast():
            return self.encoder(features, self.is_on("cmcm"), features.mask)

    def init_codebooks(self, features, epoch, rng):
        if not self.initialized[0] and self.options.codebook_init == "data":
            with self.evaluating():
                outputs = self.encode(features, epoch)
            self.encoder.table.init_from_data(outputs.semantic, self.cascade_order, rng, self.is_on("csa"),
                                          features.mask)
        self.initialized = [True]

    def update_codebooks(self, outputs, rng):
        table, order, with_cascade = self.encoder.table, self.cascade_order, self.is_on("csa")
        indices = outputs.quantized.indices
        table.update_ema(outputs.semantic, indices, order, self.is_on("dta"), with_cascade, outputs.mask)
        outputs.alignment = table.alignment()
        table.expire_codes(indices, order, rng, self.options.code_reset if self.is_on("reset") else "off",
                           with_cascade, outputs.mask)

    def losses(self, outputs, rng):
        quantized, recon = outputs.quantized, {}
        for m, target in outputs.inputs.items():
            with self.autocast():
                reconstructed = self.decoders[m](quantized.rows[m], outputs.specific[m])
            target = target.to(quantized.rows[m].dtype)
            error = squared_error(reconstructed.to(target.dtype), target, outputs.mask)
            recon[m] = dist.mean(error, outputs.mask)
        terms = {"recon": recon, "commit": quantized.commitment}
        metrics = quantized.metrics
        if outputs.alignment is not None:
            metrics["segment_alignment"] = outputs.alignment
        if self.is_on("cpc"):
            second = rng.second(min(z.shape[1] for z in outputs.semantic.values()))
            prediction = self.cpc(outputs.semantic, second, outputs.mask)
            terms["cpc"] = prediction.loss
            metrics |= prediction.metrics
        return Losses(terms | {"cmcm": quantized.cmcm}, metrics)

    @property
    def codebooks(self):
        return {"": self.encoder.table}

    def level_outputs(self, outputs):
        return {"": outputs}

    def assigned_codes(self, outputs):
        return {"": unmasked(outputs.quantized.indices, outputs.mask)}
