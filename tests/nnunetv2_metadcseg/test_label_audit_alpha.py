"""What the audit reads of a MetaDCSeg checkpoint."""

from __future__ import annotations

from dataclasses import asdict

import torch

from nnunetv2_metadcseg.config import MetaDCSegConfig
from nnunetv2_metadcseg.label_audit_alpha import TrainerRecord
from nnunetv2_metadcseg.weighting import LabelWeighting


def test_the_record_is_the_disagreement_of_all_visits_by_that_of_right_labels():
    config = MetaDCSegConfig()
    trusted = torch.tensor([False, False, True])
    weighting = LabelWeighting(config, False, trusted)
    weighting.agreement.history[:2] = torch.tensor([[30.0, 10.0], [0.0, 0.0]])
    state = {"cases": ["a", "never seen", "c"], "weighting": weighting.state_dict()}
    record = TrainerRecord({"state": state, "config": asdict(config)}, ["c"], False, torch.device("cpu"))
    assert record.record("a") == 3
    assert record.record("never seen") is None and record.record("of another fold") is None
