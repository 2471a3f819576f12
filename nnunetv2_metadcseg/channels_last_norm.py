"""Instance norm for the channels_last memory format on the CPU, with torch's values and gradients.

torch's own instance norm copies channels_last input to the standard format and leaves the result there, so that the
next convolution copies it back: more time than the norm itself. This one works where the data lies, a piece of the
image at a time so that intermediate results stay in the processor's cache: 2 to 6 times as fast (docs/cost.md).

It also avoids a fault of torch (2.14.1): with a single patch and a channels_last gradient, its instance norm returns
wrong gradients on the CPU (see the tests).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PIECE = 1 << 17  # numbers worked on at a time: half a megabyte
ROW = 64  # numbers per row that vector instructions and torch's reductions like


def use_channels_last_norm(network: nn.Module) -> None:
    """Let all affine instance norms of `network` compute as above where they can; parameters and names stay."""
    for module in network.modules():
        for plain, quick in ((nn.InstanceNorm2d, QuickInstanceNorm2d), (nn.InstanceNorm3d, QuickInstanceNorm3d)):
            if type(module) is plain and module.affine and not module.track_running_stats:
                module.__class__ = quick


class QuickInstanceNorm2d(nn.InstanceNorm2d):
    """nn.InstanceNorm2d, quick on channels_last input."""

    def forward(self, input: Tensor) -> Tensor:
        if suits(input, torch.channels_last):
            return ChannelsLastNorm.apply(input, self.weight, self.bias, self.eps)
        return super().forward(input)


class QuickInstanceNorm3d(nn.InstanceNorm3d):
    """nn.InstanceNorm3d, quick on channels_last_3d input."""

    def forward(self, input: Tensor) -> Tensor:
        if suits(input, torch.channels_last_3d):
            return ChannelsLastNorm.apply(input, self.weight, self.bias, self.eps)
        return super().forward(input)


def suits(input: Tensor, memory_format: torch.memory_format) -> bool:
    """Single precision on the CPU, in channels_last only, and more than one voxel."""
    return (
        input.device.type == "cpu"
        and input.dtype == torch.float32
        and input.ndim == (4 if memory_format is torch.channels_last else 5)
        and input.is_contiguous(memory_format=memory_format)
        and not input.is_contiguous()
        and input[0, 0].numel() > 1
        and not torch.compiler.is_compiling()
    )


class ChannelsLastNorm(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias over the voxels of every patch and channel.

    x (B, C, *S) in channels_last, weight and bias (C,), eps. No second derivative.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        rows = Rows(x)
        mean, variance = rows.moments()
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        y = torch.empty_like(x)
        factor, shift = rows.spread(scale), rows.spread(bias - mean * scale)
        for source, out in zip(rows.pieces(x), rows.pieces(y), strict=True):
            torch.addcmul(shift, source, factor, out=out)
        ctx.save_for_backward(x, weight, mean, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """dx = scale (dy - mean(dy) - z mean(dy z)) with z = (x - mean) / sqrt(var + eps)."""
        x, weight, mean, inverse = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
        rows = Rows(x)
        total, product = rows.gradient_sums(dy, mean)
        scale = weight * inverse
        slope = -scale * inverse.square() * product / rows.voxels
        offset = -scale * total / rows.voxels - slope * mean
        dx = torch.empty_like(x)
        scale, slope, offset = rows.spread(scale), rows.spread(slope), rows.spread(offset)
        for source, gradient, out in zip(rows.pieces(x), rows.pieces(dy), rows.pieces(dx), strict=True):
            torch.addcmul(torch.addcmul(offset, source, slope), gradient, scale, out=out)
        return dx, (product * inverse).sum(0), total.sum(0), None


class Rows:
    """Views of channels_last tensors of one shape (B, C, *S) as (B, rows, k C), k voxels to a row, in pieces."""

    def __init__(self, x: Tensor) -> None:
        self.batch, self.channels = x.shape[:2]
        self.voxels = x[0, 0].numel()
        self.k = 1
        while self.k * self.channels < ROW and self.voxels % (2 * self.k) == 0:
            self.k *= 2
        self.source = x

    def pieces(self, tensor: Tensor) -> tuple[Tensor, ...]:
        folded = tensor.movedim(1, -1).view(self.batch, self.voxels // self.k, self.k * self.channels)
        return folded.split(max(1, PIECE // (self.batch * self.k * self.channels)), 1)

    def spread(self, values: Tensor) -> Tensor:
        """(B, C) -> (B, 1, k C), to be used with pieces."""
        return values.repeat(1, self.k)[:, None]

    def sum(self, piece: Tensor) -> Tensor:
        """Sum over the voxels of a piece: (B, C)."""
        return piece.sum(1).view(self.batch, self.k, self.channels).sum(1)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over voxels, (B, C) each, put together from those of the pieces (Chan et al. 1979)."""
        means, squares, counts = [], [], []
        for piece in self.pieces(self.source):
            count = piece.shape[1] * self.k
            means.append(self.sum(piece) / count)
            squares.append(self.sum((piece - self.spread(means[-1])).square_()))
            counts.append(count / self.voxels)
        if len(means) == 1:
            return means[0], squares[0] / self.voxels
        stacked, share = torch.stack(means), self.source.new_tensor(counts)[:, None, None]
        mean = (share * stacked).sum(0)
        between = (share * (stacked - mean).square()).sum(0)
        return mean, torch.stack(squares).sum(0) / self.voxels + between

    def gradient_sums(self, dy: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over voxels of dy and of dy (x - mean): (B, C) each."""
        center, totals, products = self.spread(mean), [], []
        for source, gradient in zip(self.pieces(self.source), self.pieces(dy), strict=True):
            totals.append(self.sum(gradient))
            products.append(self.sum((source - center).mul_(gradient)))
        return torch.stack(totals).sum(0), torch.stack(products).sum(0)
