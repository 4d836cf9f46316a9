"""MixMatch (Berthelot et al., NeurIPS 2019, arXiv:1905.02249) and its successors: few labels, many unlabeled images.

    import mixmatch

    config = mixmatch.load_config("digits", ["seed=2"])
    results = mixmatch.train(config, "runs/mine")
    model = mixmatch.load_model("runs/mine")
    print(results.test_accuracy, model.predict("image.png"))

``METHODS``, ``MODELS`` and ``DATASETS`` take methods, networks and data sets of your own; ``train`` takes a
``Callback``, and raises ``UserError`` for what the user can fix, ``Stopped`` after a signal, ``TimeUp`` after its
deadline, ``Diverged`` if the loss does.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from mixmatch.config import build_config as build_config
    from mixmatch.config import load_config as load_config
    from mixmatch.data import DATASETS as DATASETS
    from mixmatch.errors import Diverged as Diverged
    from mixmatch.errors import Stopped as Stopped
    from mixmatch.errors import TimeUp as TimeUp
    from mixmatch.errors import UserError as UserError
    from mixmatch.inference import Classifier as Classifier
    from mixmatch.inference import load_model as load_model
    from mixmatch.methods import METHODS as METHODS
    from mixmatch.models import MODELS as MODELS
    from mixmatch.training.callbacks import Callback as Callback
    from mixmatch.training.loop import train as train

# Imported at first use, since torch takes seconds to import.
_MODULES = {
    "Callback": "mixmatch.training.callbacks",
    "DATASETS": "mixmatch.data",
    "METHODS": "mixmatch.methods",
    "MODELS": "mixmatch.models",
    "Classifier": "mixmatch.inference",
    "Diverged": "mixmatch.errors",
    "Stopped": "mixmatch.errors",
    "TimeUp": "mixmatch.errors",
    "UserError": "mixmatch.errors",
    "build_config": "mixmatch.config",
    "load_config": "mixmatch.config",
    "load_model": "mixmatch.inference",
    "train": "mixmatch.training.loop",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - type checkers see the imports above
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
