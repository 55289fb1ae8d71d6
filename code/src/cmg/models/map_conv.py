"""Convolutions over small maps (N, H, W, C) as matrix products, forward and backward.

A 3x3 convolution over a 7x7 map gives 25 positions. Gathering the nine neighbors of each gives a matrix of N*25 rows,
and one product with the kernel (out, 9 * in) is the whole layer. Its two gradients are products of the same matrices,
and the transposed convolution is the same with the roles reversed. The kernels are the parameters of nn.Conv2d and
nn.ConvTranspose2d; in channels-last format (set in cmg/training/step.py) they are these matrices without a copy,
otherwise they are copied at each use. Under autocast the products use its dtype.
"""

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

SIZE = 3        # of every kernel that is not 1x1


def compute_dtype(weight):
    """Dtype of a layer's products: that of autocast if it is enabled, else that of the weight."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def taps(size):
    """For each of the nine entries of a 3x3 kernel with padding 1, on maps of `size` (H, W): (index of the entry,
    (rows, columns) of the positions whose neighbor is inside the map, (rows, columns) of these neighbors)."""
    spans = [[(slice(max(0, 1 - i), min(n, n + 1 - i)), slice(max(0, i - 1), min(n, n - 1 + i))) for i in range(SIZE)]
             for n in size]
    return [(SIZE * i + j, (rows[0], columns[0]), (rows[1], columns[1]))
            for i, rows in enumerate(spans[0]) for j, columns in enumerate(spans[1])]


def padded_conv(x, matrices):
    """3x3 convolution of (N, H, W, I) with padding 1, given nine matrices (I, O), without products with the padding.

    Partial products are summed in at least float32. On a 3x3 map 32 of 81 products are saved, on a 5x5 map 56 of 225.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = torch.zeros(*x.shape[:3], matrices[0].shape[1], dtype=wide, device=x.device)
    for number, (rows, columns), neighbors in taps(x.shape[1:3]):
        part = x[(slice(None), *neighbors)]
        y[:, rows, columns] += torch.mm(part.flatten(0, 2), matrices[number]).unflatten(0, part.shape[:3])
    return y.to(x.dtype)


def gather(x, padding=0):
    """The 3x3 neighborhood of every position: (N, H, W, C) -> (N, H', W', 9 * C), H' = H - 2 + 2 * padding."""
    if padding:
        x = F.pad(x, (0, 0, padding, padding, padding, padding))
    return x.unfold(1, SIZE, 1).unfold(2, SIZE, 1).permute(0, 1, 2, 4, 5, 3).flatten(3)


def scatter(y):
    """Adjoint of `gather` without padding, summed in at least float32: (N, H', W', 9 * C) -> (N, H' + 2, W' + 2, C)."""
    rows, columns = y.shape[1:3]
    y = y.unflatten(3, (SIZE, SIZE, -1))
    wide = torch.promote_types(y.dtype, torch.float32)
    x = torch.zeros(len(y), rows + SIZE - 1, columns + SIZE - 1, y.shape[-1], dtype=wide, device=y.device)
    for i in range(SIZE):
        for j in range(SIZE):
            x[:, i:i + rows, j:j + columns] += y[:, :, :, i, j]
    return x.to(y.dtype)


def _transposed_product(a, b, out=None):
    """a^T b. Transposing the narrow factor first keeps CPU libraries on their fast path."""
    return torch.mm(a.t().contiguous(), b, out=out)


class _Product(Function):
    """Linear layer: x (R, I), weight (O, I), bias (O,) or None -> (R, O)."""

    @staticmethod
    def forward(ctx, x, weight, bias, dtype):
        ctx.of = x.dtype, weight.dtype
        x, cast = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, cast)
        return F.linear(x, cast, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx, grad):
        x, cast = ctx.saved_tensors
        to_x = (grad @ cast).to(ctx.of[0]) if ctx.needs_input_grad[0] else None
        to_bias = grad.sum(0, dtype=ctx.of[1]) if ctx.needs_input_grad[2] else None
        return to_x, _transposed_product(grad, x).to(ctx.of[1]), to_bias, None


class _Conv(Function):
    """3x3 convolution: x (N, H, W, I), weight (O, I, 3, 3), bias (O,) or None, padding 0 or 1 -> (N, H', W', O)."""

    @staticmethod
    def forward(ctx, x, weight, bias, padding, dtype):
        ctx.of, ctx.padding = (x.dtype, weight.dtype), padding
        x, kernel = x.to(dtype), weight.permute(0, 2, 3, 1).flatten(1).to(dtype)                # (O, 9 * I)
        ctx.save_for_backward(x, kernel)
        if not padding:
            return F.linear(gather(x), kernel, None if bias is None else bias.to(dtype))
        y = padded_conv(x, [part.T for part in kernel.split(x.shape[3], 1)])
        return y if bias is None else y + bias.to(dtype)

    @staticmethod
    def backward(ctx, grad):
        x, kernel = ctx.saved_tensors
        rows = grad.flatten(0, 2)
        to_x = to_bias = None
        if ctx.needs_input_grad[0] and ctx.padding:                 # the kernel rotated by 180 degrees
            to_x = padded_conv(grad, kernel.split(x.shape[3], 1)[::-1]).to(ctx.of[0])
        elif ctx.needs_input_grad[0]:
            to_x = scatter((rows @ kernel).unflatten(0, grad.shape[:3])).to(ctx.of[0])
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0, dtype=ctx.of[1])
        to_kernel = _transposed_product(rows, gather(x, ctx.padding).flatten(0, 2)).to(ctx.of[1])
        to_weight = to_kernel.unflatten(1, (SIZE, SIZE, -1)).permute(0, 3, 1, 2)
        return to_x, to_weight, to_bias, None, None


class _ConvTranspose(Function):
    """3x3 transposed convolution of x (N, H, W, I) with `shared` (N, S) prepended at every position: weight
    (S + I, O, 3, 3), bias (O,) -> (N, H + 2, W + 2, O). The shared channels are multiplied once per map."""

    @staticmethod
    def forward(ctx, shared, x, weight, bias, dtype):
        ctx.of = shared.dtype, x.dtype, weight.dtype
        shared, x = shared.to(dtype), x.to(dtype)
        kernel = weight.permute(0, 2, 3, 1).flatten(1).to(dtype)                                # (S + I, 9 * O)
        ctx.save_for_backward(shared, x, kernel)
        width = shared.shape[1]
        y = x @ kernel[width:]                                                                  # (N, H, W, 9 * O)
        if width:
            y += (shared @ kernel[:width])[:, None, None]
        return scatter(y) + bias.to(dtype)

    @staticmethod
    def backward(ctx, grad):
        shared, x, kernel = ctx.saved_tensors
        width = shared.shape[1]
        patches = gather(grad.contiguous())                                                     # (N, H, W, 9 * O)
        to_x = (patches @ kernel[width:].T).to(ctx.of[1]) if ctx.needs_input_grad[1] else None
        to_kernel = torch.empty_like(kernel)
        _transposed_product(x.flatten(0, 2), patches.flatten(0, 2), out=to_kernel[width:])
        to_shared = None
        if width:
            total = patches.sum((1, 2))
            to_shared = (total @ kernel[:width].T).to(ctx.of[0])
            _transposed_product(shared, total, out=to_kernel[:width])
        to_weight = to_kernel.to(ctx.of[2]).unflatten(1, (SIZE, SIZE, -1)).permute(0, 3, 1, 2)
        return to_shared, to_x, to_weight, grad.sum((0, 1, 2), dtype=ctx.of[2]), None


class MapConv(nn.Conv2d):
    """nn.Conv2d, 3x3 or 1x1, over maps (N, H, W, C)."""

    def forward(self, x):
        dtype = compute_dtype(self.weight)
        if self.kernel_size == (1, 1):
            return _Product.apply(x.flatten(0, -2), self.weight.flatten(1), self.bias, dtype).unflatten(0, x.shape[:-1])
        return _Conv.apply(x, self.weight, self.bias, self.padding[0], dtype)


class MapConvTranspose(nn.ConvTranspose2d):
    """nn.ConvTranspose2d, 3x3 or 1x1, over maps (N, H, W, C)."""

    def forward(self, x, shared=None):
        """Convolve x (N, H, W, I); `shared` (N, S) holds leading channels that are the same at every position."""
        dtype = compute_dtype(self.weight)
        if self.kernel_size == (1, 1):
            rows = _Product.apply(x.flatten(0, -2), self.weight.flatten(1).T, self.bias, dtype)
            return rows.unflatten(0, x.shape[:-1])
        shared = x.new_empty(len(x), 0) if shared is None else shared
        return _ConvTranspose.apply(shared, x, self.weight, self.bias, dtype)
