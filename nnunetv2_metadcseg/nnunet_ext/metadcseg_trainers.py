"""Re-exports every trainer of this package; nnUNet_extTrainer points at the folder of this file.

nnU-Net imports each module of that folder as a top-level module and purges it from sys.modules afterwards, so the
classes themselves live in the installed package, where they stay importable and picklable. Keep this the only module.
"""

from __future__ import annotations

from nnunetv2_metadcseg import baselines, primus, self_trusted, trainer, variants

PACKAGE = "nnunetv2_metadcseg."

for _module in (trainer, self_trusted, variants, primus, baselines):
    for _name, _object in vars(_module).items():
        # nnU-Net looks in its own package first: re-exporting its classes would serve nobody.
        if _name.startswith("nnUNetTrainer") and getattr(_object, "__module__", "").startswith(PACKAGE):
            globals()[_name] = _object
