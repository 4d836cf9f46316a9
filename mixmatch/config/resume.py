"""The keys that may change when a run is resumed, and the comparison of a stored config with a requested one."""

from collections.abc import Iterable, Sequence

from mixmatch.config.load import flatten, value_of
from mixmatch.config.schema import Config, PseudoLabelSettings
from mixmatch.errors import UserError
from mixmatch.methods import METHODS
from mixmatch.settings import short_repr

# A run can be resumed on another machine and computed in another way. Its split file fixes the images, its
# checkpoints fix the precision.
RESUMABLE_KEYS = (
    "device",
    "data.root",
    "data.labels",
    "data.cache",
    "data.keep_on",
    "train.precision",
    "train.compile",
    "train.cuda_graph",
)
# These may change too; the stored config then gets the new values.
INTERVAL_KEYS = (
    "train.eval_every",
    "train.patience",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
)


def merge_for_resume(stored: Config, config: Config, reached: int, is_finished: bool) -> Config:
    """Return the stored config with the intervals and the length of the requested one.

    Args:
        stored: the config of the run.
        config: the requested one.
        reached: step of the newest checkpoint.
        is_finished: whether the run has results of the requested length.

    Raises:
        UserError: if the configs differ in other keys, or the run cannot get another length.
    """
    differing = differing_keys(stored, config, ignoring=(*INTERVAL_KEYS, "train.steps"))
    hint = ""
    if config.train.steps != stored.train.steps:
        depends_on_length = stored.train.lr_schedule != "constant" or METHODS[stored.method].depends_on_num_steps(
            stored.method_settings
        )
        if depends_on_length:
            hint = "; its schedules depend on its length: start a new run from its weights with init_from=RUN"
        elif config.train.steps < reached or (config.train.steps == reached and not is_finished):
            hint = f"; it is at step {reached} already"
        if hint or differing:
            differing += _differences(stored, config, ["train.steps"])
    if differing:
        raise UserError(
            f"contains a run with another config: {', '.join(differing)}{hint}; "
            "use another run directory (--run-dir DIRECTORY, or name=NAME)"
        )
    changed = {key.removeprefix("train."): value_of(config, key) for key in (*INTERVAL_KEYS, "train.steps")}
    return stored.model_copy(update={"train": stored.train.model_copy(update=changed)})


def differing_keys(a: Config, b: Config, ignoring: Sequence[str] = ()) -> list[str]:
    """Return the keys in which two configs describe different runs, as ``key (value in a, value in b)``.

    ``RESUMABLE_KEYS``, ``ignoring``, methods that neither uses and ``pseudo_label`` are left out.
    """
    ignored = (*RESUMABLE_KEYS, *ignoring)
    keys = [key for key in flatten(a) | flatten(b) if key not in ignored and not key.startswith("pseudo_label.")]
    return _differences(a, b, keys)


def differing_pseudo_label_keys(a: Config, b: Config, parent_method: str = "") -> list[str]:
    """Return the keys in which two configs describe different pseudo-label stages.

    Args:
        a: the config of a stage.
        b: the config of another.
        parent_method: the method of the run before the stage, if known. Where another method trains the stage, the
            settings of both are compared.
    """
    keys = [f"pseudo_label.{name}" for name in PseudoLabelSettings.model_fields if name not in ("enabled", "name")]
    method = a.pseudo_label.method
    if method is not None and method == b.pseudo_label.method:
        for name in dict.fromkeys((method, parent_method or method)):
            keys += [f"{name}.{key}" for key in METHODS[name].settings_type.model_fields]
    return _differences(a, b, keys)


def _differences(a: Config, b: Config, keys: Iterable[str]) -> list[str]:
    values = ((key, value_of(a, key), value_of(b, key)) for key in keys)
    return [f"{key} ({short_repr(x)} there, {short_repr(y)} now)" for key, x, y in values if x != y]
