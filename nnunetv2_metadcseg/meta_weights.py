"""Meta-weight network: how far to believe the given label (alpha) and the teacher's pseudo-label (beta) at a voxel.

alpha = sigmoid(prior + delta), beta = 1 - alpha, only where label and teacher disagree; elsewhere alpha = 1, beta = 0.
The prior is the log odds of `agreement.CaseAgreement`; delta is a small per-voxel network that learns from the trusted
patches through the influence (`influence.py`). Source: Meta-Weight-Net (arXiv 1902.07379), L2B (arXiv 2202.04291);
prior and restriction to disagreeing voxels: docs/method.md. Tensors only; V disagreeing voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.optimizer_state import adam, load_adam


class MetaWeightNetwork(nn.Module):
    """Per-voxel MLP giving delta, the correction of the prior's log odds; zero at the start.

    Args:
        num_inputs: number of input features F.
        hidden: width of its two hidden layers.
        max_correction: bound of |delta| (tanh), so that no voxel is lost beyond recovery.
    """

    def __init__(self, num_inputs: int, hidden: int = 32, max_correction: float = 4.0) -> None:
        super().__init__()
        self.max_correction = max_correction
        self.layers = nn.Sequential(
            nn.Linear(num_inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """(V, F) -> delta (V,)."""
        return self.max_correction * torch.tanh(self.layers(inputs)[:, 0] / self.max_correction)


class MetaWeights:
    """The meta-weight network with its optimiser and its update.

    Args:
        num_inputs, hidden, max_correction: of `MetaWeightNetwork`.
        learning_rate: of Adam; the caller scales it down over the training, so that what was learned early, while
            the influence is informative, is kept.
        pull: weight of mean(delta^2), which draws the weights to the prior.
        device: where the network lives; it is always fp32.
        collective: reductions over DDP ranks.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden: int = 32,
        max_correction: float = 4.0,
        learning_rate: float = 1e-3,
        pull: float = 0.05,
        device: torch.device | str = "cpu",
        collective: Collective | None = None,
    ) -> None:
        self.collective = collective or Collective()
        self.network = MetaWeightNetwork(num_inputs, hidden, max_correction).to(device)
        self.collective.start_alike(self.network)
        self.learning_rate, self.pull = learning_rate, pull
        self.optimizer = adam(self.network.parameters(), learning_rate, weight_decay=1e-4)
        # Largest mean |gain| so far, slowly forgotten: `pull` and the step then do not depend on its unit.
        self.scale: Tensor | None = None

    @torch.no_grad()
    def alpha(self, inputs: Tensor, prior: Tensor) -> Tensor:
        """Belief in the given label, (V,) in (0, 1), for inputs (V, F) and prior log odds (V,)."""
        return torch.sigmoid(prior + self.network(inputs))

    def objective(self, inputs: Tensor, prior: Tensor, gain: Tensor) -> Tensor:
        """J = -mean(alpha gain / scale) + pull mean(delta^2), the mean over the voxels of all DDP ranks: a scalar.

        Args:
            inputs: (V, F). prior: (V,). V may be zero.
            gain: (V,), influence of the given label minus that of the pseudo-label (beta = 1 - alpha, so only the
                difference counts).
        """
        total = self.collective.sum(torch.stack([gain.abs().sum(), gain.new_full((), len(gain))]))
        count = total[1].clamp_min(1)
        self._track_scale(total[0] / count)
        delta = self.network(inputs)
        alpha = torch.sigmoid(prior + delta)
        return (self.pull * delta.square() - alpha * gain / self.scale).sum() / count

    def step(self, objective: Tensor, rate: float = 1.0) -> None:
        """Lowers the objective; rate: share of the learning rate used now."""
        self.optimizer.zero_grad(set_to_none=True)
        objective.backward()
        for parameter in self.network.parameters():
            parameter.grad = self.collective.sum(parameter.grad)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate
        self.optimizer.step()

    def _track_scale(self, size: Tensor) -> None:
        """Largest mean |gain| so far, slowly forgotten: once the influence fades its steps fade too."""
        size = size.clamp_min(1e-12)
        self.scale = size if self.scale is None else torch.maximum(self.scale * 0.999, size)

    def state_dict(self) -> dict:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scale": self.scale,
        }

    def load_state_dict(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        load_adam(self.optimizer, state["optimizer"])
        self.scale = state["scale"]
