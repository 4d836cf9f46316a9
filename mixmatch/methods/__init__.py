"""Methods, one file each. To add one: a ``Method`` in a file, registered in ``METHODS``."""

from typing import Any

from mixmatch.methods.base import Method
from mixmatch.methods.fixmatch import FixMatch
from mixmatch.methods.freematch import FreeMatch
from mixmatch.methods.mixmatch import MixMatch
from mixmatch.methods.remixmatch import ReMixMatch
from mixmatch.methods.softmatch import SoftMatch
from mixmatch.methods.supervised import Supervised

__all__ = ["METHODS", "Method"]

METHODS: dict[str, type[Method[Any]]] = {
    "mixmatch": MixMatch,
    "supervised": Supervised,
    "remixmatch": ReMixMatch,
    "fixmatch": FixMatch,
    "freematch": FreeMatch,
    "softmatch": SoftMatch,
}
