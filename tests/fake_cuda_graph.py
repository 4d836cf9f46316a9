"""A recorded step without a GPU: a stand-in for torch.cuda.CUDAGraph that does a step's operators again.

Whatever a step takes from Python is frozen in it, as in a real graph; what reads from the device is refused.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mixmatch.training.trainer
from mixmatch.training.muon import Muon
from tests.factories import make_toy_trainer

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Tape(TorchDispatchMode):
    """Keeps the operators that are called while it is entered, undoes what they did, and replays them."""

    def __init__(self):
        super().__init__()
        self.operators, self.before = [], []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator in READS:
            raise RuntimeError(f"{operator} reads from the device while recording")
        self.before += [(tensor, tensor.clone()) for tensor in written(operator, args)]
        result = operator(*args, **(kwargs or {}))
        self.operators.append((operator, args, kwargs or {}, result))
        return result

    def __exit__(self, *exception):
        super().__exit__(*exception)
        with torch.no_grad():
            for tensor, value in reversed(self.before):
                tensor.copy_(value)

    def replay(self):
        with torch.no_grad():
            for operator, args, kwargs, result in self.operators:
                aliases = [value.alias_info is not None for value in operator._schema.returns]
                if aliases and all(aliases) and not written(operator, args):
                    continue  # a view stays one
                again = operator(*args, **kwargs)
                results = result if isinstance(result, tuple | list) else (result,)
                news = again if isinstance(again, tuple | list) else (again,)
                for i, (old, new) in enumerate(zip(results, news, strict=True)):
                    if isinstance(old, torch.Tensor) and not (i < len(aliases) and aliases[i]):
                        old.copy_(new)
                    elif isinstance(old, tuple | list):
                        for kept, value in zip(old, new, strict=True):
                            kept.copy_(value)


def written(operator, args):
    """The tensors among the arguments that an operator changes."""
    found = []
    for value, argument in zip(args, operator._schema.arguments, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += value if isinstance(value, tuple | list) else [value]
    if operator is torch.ops.aten.native_batch_norm.default:  # whose schema does not tell of the running statistics
        found += [value for value in args[3:5] if value is not None]
    return found


def record(step, state, generator, keep_graph=False):
    """Record as ``capture`` does, on the CPU. What the first step creates starts at zero."""
    seed = generator.initial_seed()
    before = {name: value.clone() for name, value in state().items()}
    step()
    with torch.no_grad():
        for name, value in state().items():
            value.copy_(before[name]) if name in before else value.zero_()
    tape = Tape()
    with tape:
        step()
    generator.manual_seed(seed)
    return tape


@contextmanager
def optimizers_of_a_gpu():
    """Make optimizers as for a GPU: with the learning rate in a tensor, and nothing read back."""
    make = mixmatch.training.trainer.make_optimizer

    def capturable(settings, parameters, device):
        lr = torch.tensor(settings.lr)
        if settings.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=lr, fused=True)
        if settings.optimizer == "muon":
            return Muon(parameters, lr, settings.muon_lr / settings.lr, settings.momentum, fused=True)
        return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)

    mixmatch.training.trainer.make_optimizer = capturable
    try:
        yield
    finally:
        mixmatch.training.trainer.make_optimizer = make


def recorded_trainer(mode, **sections):
    """A toy trainer on the CPU with optimizers as on a GPU, whose recorded steps are on a tape."""
    with optimizers_of_a_gpu():
        trainer = make_toy_trainer(**sections)
    trainer.capture = record
    trainer.use(mode)
    return trainer
