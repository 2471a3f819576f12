from __future__ import annotations

import inspect
import pickle

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_metadcseg import variants
from nnunetv2_metadcseg.baselines import nnUNetTrainerL2B, nnUNetTrainerMixed, nnUNetTrainerTrustedOnly
from nnunetv2_metadcseg.cli import ext_path
from nnunetv2_metadcseg.self_trusted import nnUNetTrainerMetaDCSegSelfTrusted
from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg

MAIN = [
    nnUNetTrainerMetaDCSeg,
    nnUNetTrainerMetaDCSegSelfTrusted,
    nnUNetTrainerTrustedOnly,
    nnUNetTrainerMixed,
    nnUNetTrainerL2B,
]
EPOCHS = {"1epoch": 1, "5epochs": 5, "10epochs": 10, "20epochs": 20, "50epochs": 50, "100epochs": 100, "250epochs": 250}
ABLATIONS = ["NoMeta", "NoDCD", "MeanTeacher", "HeadInfluence", "NetworkInfluence"]
ABLATIONS += ["NoGivenHead", "NoGivenOpinion", "AllGivenLabels", "NoCaseWeights", "NoContext"]
NAMES = [t.__name__ for t in MAIN] + [f"{t.__name__}_{e}" for t in MAIN for e in EPOCHS]
NAMES += [f"nnUNetTrainerMetaDCSeg{a}" for a in ABLATIONS]


def trainer_class(name: str) -> type:
    return getattr(variants, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_trainer_of_that_name_with_nnunets_signature(name):
    trainer = trainer_class(name)
    assert trainer.__name__ == name
    assert issubclass(trainer, nnUNetTrainer)
    assert list(inspect.signature(trainer.__init__).parameters) == [
        *("self", "plans", "configuration", "fold", "dataset_json", "device")
    ]
    assert trainer.__doc__
    assert pickle.loads(pickle.dumps(trainer)) is trainer  # worker processes may need it


@pytest.mark.parametrize("name", [t.__name__ for t in MAIN])
def test_epoch_variants_set_the_epochs_and_nothing_else(name, monkeypatch):
    for ending, epochs in EPOCHS.items():
        trainer = trainer_class(f"{name}_{ending}")
        monkeypatch.setattr(nnUNetTrainer, "__init__", lambda self, *arguments: setattr(self, "given", arguments))
        made = trainer("plans", "3d_fullres", 0, "dataset", "cpu")
        assert made.num_epochs == epochs
        assert made.given == ("plans", "3d_fullres", 0, "dataset", "cpu")
        assert made.config == trainer_class(name).config


@pytest.mark.parametrize(
    ("ablation", "setting", "value"),
    [
        ("NoMeta", "influence", "none"),
        ("NoDCD", "dcd_strength", 0.0),
        ("MeanTeacher", "teacher", True),
        ("NoGivenOpinion", "given_opinion", False),
        ("AllGivenLabels", "skip_doubted", False),
        ("HeadInfluence", "influence", "head"),
        ("NetworkInfluence", "influence", "network"),
        ("NoGivenHead", "given_head", 0.0),
        ("NoCaseWeights", "case_weighting", False),
        ("NoContext", "context", False),
    ],
)
def test_an_ablation_changes_one_setting(ablation, setting, value):
    config = trainer_class(f"nnUNetTrainerMetaDCSeg{ablation}").config
    assert getattr(config, setting) == value
    changed = [k for k, v in vars(config).items() if v != getattr(nnUNetTrainerMetaDCSeg.config, k)]
    assert set(changed) <= {setting}


def test_nnunet_finds_every_name(monkeypatch):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", str(ext_path()))
    for name in NAMES[:: len(NAMES) // 3]:  # every look-up imports the folder again
        assert recursive_find_trainer_class_by_name(name) is trainer_class(name)
