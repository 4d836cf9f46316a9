"""MixMatch (Berthelot et al., NeurIPS 2019, arXiv:1905.02249): the method, its data, and the run around it.

    import mixmatch

    config = mixmatch.load_config("configs/digits.yml", ["seed=2"])
    results = mixmatch.train(config, "runs/mine")
    model = mixmatch.load_model("runs/mine")
    print(results["test_accuracy"], model.classes, model.predict(images))

How the parts hang together: docs/design.md.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path


class _NetworksBeside:
    """Finds ``mixmatch.models`` in the folder beside this package, where it is in the checkout."""

    folder = Path(__file__).parent.parent / "models"

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name != "mixmatch.models":
            return None
        return spec_from_file_location(name, cls.folder / "__init__.py", submodule_search_locations=[str(cls.folder)])


if not Path(__file__).with_name("models").exists():  # once installed it is a part of the package
    sys.meta_path.append(_NetworksBeside)

# Names and where they are: fetched when first asked for, since torch takes seconds to load.
_PUBLIC = {
    "load_config": "mixmatch.config",
    "build_config": "mixmatch.config",
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
