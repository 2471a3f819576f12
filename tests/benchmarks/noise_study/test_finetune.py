from __future__ import annotations

import pytest
from finetune import first_finetuning_epoch
from settings import SettingsError


@pytest.mark.parametrize(("epochs", "first"), [(2, 1), (3, 2), (5, 4), (40, 32)])
def test_the_last_fifth_or_at_least_one_epoch(epochs, first):
    assert first_finetuning_epoch(epochs, 0.2) == first


def test_one_epoch_is_too_few():
    with pytest.raises(SettingsError, match="needs 2 epochs or more, got 1"):
        first_finetuning_epoch(1, 0.2)
