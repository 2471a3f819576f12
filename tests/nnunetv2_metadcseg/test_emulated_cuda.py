"""What can be seen of CUDA without a GPU: placement of tensors, half precision, and how often the host waits."""

from __future__ import annotations

import math

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_metadcseg.baselines import nnUNetTrainerL2B, nnUNetTrainerMixed, nnUNetTrainerTrustedOnly
from nnunetv2_metadcseg.given_label_head import GivenLabelHead
from tests.nnunetv2_metadcseg import tiny_dataset
from tests.nnunetv2_metadcseg.emulated_cuda import CUDA, EmulatedTensor, emulated_cuda, waits
from tests.nnunetv2_metadcseg.test_self_trusted import Early
from tests.nnunetv2_metadcseg.test_trainer import ShortStart, ShortStartMeanTeacher, ShortStartNetwork, start, steps


@pytest.fixture
def cuda():
    with emulated_cuda():
        yield


@pytest.fixture
def start_on(tmp_path, monkeypatch, cuda):
    """Makes a trainer on the emulated device, ready to step, and its tiny data set in a folder of its own."""
    monkeypatch.setattr(nnUNetTrainer, "plot_network_architecture", lambda self: None)
    monkeypatch.setenv("nnUNet_compile", "f")

    def make(trainer_class: type, **settings):
        folder = tmp_path / trainer_class.__name__
        for name, value in tiny_dataset.environment(folder).items():
            monkeypatch.setenv(name, value)
        return start(tiny_dataset.make(folder, **settings), trainer_class, iterations=6, device="cuda")

    return make


def waits_per_step(trainer, count: int = 5) -> float:
    steps(trainer, 3)
    waits.clear()
    steps(trainer, count)
    return sum(waits.values()) / count


def tensors_in(state) -> list[torch.Tensor]:
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in tensors_in(value)]
    return [state] if isinstance(state, torch.Tensor) else []


class TestEmulation:
    def test_devices_do_not_meet(self, cuda):
        there, here = torch.ones(2, device=CUDA), torch.ones(2)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="into a tensor on cpu"):
            here[torch.tensor([0], device=CUDA)]
        with pytest.raises(RuntimeError, match="same device"):
            torch.stack([there.sum(), here.sum()])
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there * here.sum() + here.to(CUDA)).cpu().tolist() == [3, 3]

    def test_computes_and_learns_in_half_precision(self, cuda):
        layer = nn.Conv2d(1, 1, 3).to(CUDA)
        image = torch.randn(1, 1, 8, 8, device=CUDA)
        with torch.autocast("cuda"):
            out = layer(image)
        assert isinstance(out, EmulatedTensor) and out.dtype == torch.float16
        out.float().square().mean().backward()
        assert layer.weight.grad.device == CUDA and layer.weight.grad.dtype == torch.float32

    def test_counts_what_the_host_waits_for(self, cuda):
        numbers = torch.arange(3.0, device=CUDA)
        assert numbers.sum().item() == 3 and len(numbers[numbers > 0]) == 2
        assert sum(waits.values()) == 2


class TestTrainers:
    @pytest.mark.parametrize(
        "trainer, settings",
        [
            (ShortStart, {}),
            (ShortStart, {"kind": "regions and ignore", "residual": True}),
            (ShortStart, {"dim": 2, "kind": "ignore", "batch_size": 2}),
            (ShortStartMeanTeacher, {}),
            (ShortStartNetwork, {"kind": "regions"}),
            (Early, {"dim": 2}),
            (nnUNetTrainerL2B, {}),
            (nnUNetTrainerTrustedOnly, {"dim": 2, "kind": "regions"}),
        ],
        ids=lambda value: value.__name__ if isinstance(value, type) else ", ".join(map(str, value.values())),
    )
    def test_trains_on_the_device(self, start_on, trainer, settings):
        trainer = start_on(trainer, **settings)
        before = [p.detach().clone() for p in trainer.network.parameters()]
        steps(trainer, 7)  # three past the choice of the self-trusted trainer
        trainer.validation_step(next(trainer.dataloader_val))
        assert trainer.grad_scaler.is_enabled()
        assert any((p != old).any() for p, old in zip(trainer.network.parameters(), before, strict=True))
        kept = tensors_in(trainer.extra_state())
        assert all(tensor.device == CUDA for tensor in kept if tensor.dim() > 0)  # Adam's counters lie on the CPU

    def test_counters_of_a_checkpoint_on_the_device_wait_for_nothing(self, cuda):
        head = GivenLabelHead(2, 2, device=CUDA)
        head.step()
        state = head.state_dict()
        for values in state["optimizer"]["state"].values():
            values["step"] = values["step"].to(CUDA)  # as torch.load leaves them
        head.load_state_dict(state)
        waits.clear()
        head.step()
        assert not waits

    def test_waits_once_more_than_the_plain_trainer(self, start_on):
        """How many voxels disagree. (Another one is not CUDA's: the C++ part of the fused Adam sees the CPU.)"""
        plain = waits_per_step(start_on(nnUNetTrainerMixed))
        assert waits_per_step(start_on(ShortStart)) == plain + 1 + 1

    @pytest.mark.parametrize("trainer", [ShortStart, ShortStartMeanTeacher])
    def test_a_broken_image_does_not_stay(self, start_on, trainer):
        trainer = start_on(trainer)
        steps(trainer, 3)
        batch = next(trainer.dataloader_train)
        batch["data"][:, 0, 0, 0, 0] = math.inf
        assert not math.isfinite(trainer.train_step(batch)["loss"])
        steps(trainer, 2)
        assert all(tensor.isfinite().all() for tensor in tensors_in(trainer.extra_state()))

    @pytest.mark.parametrize("trainer", [ShortStart, ShortStartNetwork])
    def test_overflow_does_not_stay(self, start_on, trainer):
        trainer = start_on(trainer)
        trainer.grad_scaler._init_scale = 2.0**40  # no gradient is finite in half precision then
        steps(trainer, 4)
        assert trainer.grad_scaler.get_scale() == 2.0**36
        kept = tensors_in(trainer.weighting.state_dict()) + list((trainer.network_gain.direction or {}).values())
        assert kept and all(tensor.isfinite().all() for tensor in kept)
