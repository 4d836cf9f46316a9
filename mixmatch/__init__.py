"""MixMatch (Berthelot et al., NeurIPS 2019, arXiv:1905.02249): the method, its data, and the run around it.

    import mixmatch

    config = mixmatch.load_config("configs/digits.yml", ["seed=2"])
    results = mixmatch.train(config, "runs/mine")
    model = mixmatch.load_model("runs/mine")
    print(results["test_accuracy"], model.classes, model.predict(images))

How the parts hang together: docs/design.md.
"""

import importlib

# Names and where they are: fetched when first asked for, since torch takes seconds to load.
_PUBLIC = {
    "load_config": "mixmatch.config",
    "build_config": "mixmatch.config",
    "train": "mixmatch.training.loop",
    "load_model": "mixmatch.inference",
    "Classifier": "mixmatch.inference",
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
