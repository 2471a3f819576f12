from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from nnunetv2_metadcseg.optimizer_state import adam, load_adam


def trained(fused: bool) -> tuple[nn.Linear, torch.optim.Adam]:
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1, fused=fused)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("fused", [False, True])
def test_a_state_of_another_device_goes_on_as_this_one_does(fused):
    layer, before = trained(fused)
    again = nn.Linear(2, 1)
    again.load_state_dict(layer.state_dict())
    optimizer = adam(again.parameters(), 0.1)
    load_adam(optimizer, deepcopy(before.state_dict()))
    assert [group["fused"] for group in optimizer.param_groups] == [False]  # on the CPU
    assert all(values["step"].device.type == "cpu" for values in optimizer.state.values())
    for network, its in ((layer, before), (again, optimizer)):
        its.zero_grad()
        (2 * network(torch.ones(1, 2)).sum()).backward()
        its.step()
    torch.testing.assert_close(again.weight, layer.weight)
