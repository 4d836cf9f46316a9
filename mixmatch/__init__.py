"""MixMatch (Berthelot et al., NeurIPS 2019, arXiv:1905.02249): the method, its data, and the run around it.

    import mixmatch

    config = mixmatch.load_config("configs/digits.yml", ["seed=2"])
    results = mixmatch.train(config, "runs/mine")
    model = mixmatch.load_model("runs/mine")
    print(results["test_accuracy"], model.classes, model.predict(images))

Imports run one way: commands -> training.loop -> training.prepare -> {rounds, trainer} -> {records, evaluation, config}
-> {methods, models, data} -> {section, files, ranks, errors}.
"""

import importlib
from pathlib import Path

# In the checkout the networks lie beside this package; installed, they lie in it.
if not Path(__file__).with_name("models").exists():
    __path__.append(str(Path(__file__).parent.parent))

# Names and where they are: fetched when first asked for, since torch takes seconds to load.
_PUBLIC = {
    "load_config": "mixmatch.config",
    "build_config": "mixmatch.config",
    "Config": "mixmatch.config",
    "train": "mixmatch.training.loop",
    "load_model": "mixmatch.classifier",
    "Classifier": "mixmatch.classifier",
    "METHODS": "mixmatch.methods",
    "MODELS": "mixmatch.models",
    "DATASETS": "mixmatch.data",
    "UserError": "mixmatch.errors",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
