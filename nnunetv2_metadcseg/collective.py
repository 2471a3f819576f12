"""The few reductions that keep all DDP ranks on the same meta network, centers and influence direction."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist


class Collective:
    """Sums, means and gathers over ranks; does nothing in a single process.

    Every rank must make the same calls with tensors of the same shape, also when it has nothing to add.
    """

    @property
    def world_size(self) -> int:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, same shape."""
        if self.world_size > 1:
            tensor = tensor.contiguous().clone()
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over ranks, same shape."""
        return self.sum(tensor) / self.world_size if self.world_size > 1 else tensor

    def first(self, tensor: Tensor) -> Tensor:
        """That of the first rank, same shape."""
        if self.world_size > 1:
            tensor = tensor.detach().contiguous().clone()
            dist.broadcast(tensor, 0)
        return tensor

    @torch.no_grad()
    def start_alike(self, module: nn.Module) -> None:
        """Give a new module the first rank's weights: nnU-Net's ranks have different seeds."""
        for parameter in module.parameters():
            parameter.copy_(self.first(parameter))

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenation along the first axis, in rank order."""
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)
