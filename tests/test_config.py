"""The configuration: what is accepted, and what one line says of what is not."""

import difflib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixmatch.config import Config, differing_keys, differing_keys_of_rounds, load_config, to_yaml
from mixmatch.errors import UserError
from mixmatch.settings import list_keys
from tests.helpers import DEEP, FUZZ, NASTY

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yml"))
DEFAULTS = load_config(None)


def test_config_yml_spells_out_every_default_with_its_explanation():
    text = (ROOT / "config.yml").read_text()
    assert load_config(ROOT / "config.yml") == DEFAULTS
    values = yaml.safe_load(text)
    lines = [line.strip() for line in text.splitlines()]
    for key, field in list_keys(type(DEFAULTS)):
        section, _, name = key.rpartition(".")
        assert name in (values[section] if section else values)
        assert any(line.startswith(f"{name}:") and line.endswith(f"# {field.description}") for line in lines), key


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_say_only_what_differs(path):
    given = yaml.safe_load(path.read_text())
    flat = {}
    for key, value in given.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    config = load_config(path)
    differing = differing_keys(DEFAULTS, config) + differing_keys_of_rounds(DEFAULTS, config)
    different = {entry.split(" ")[0] for entry in differing}
    assert set(flat) - {"device"} <= different | {"data.root", "data.image_size"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_resolved_config_reads_back(path, tmp_path):
    config = load_config(path)
    (tmp_path / "config.yml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yml") == config
    assert not differing_keys(load_config(tmp_path / "config.yml"), config)


def test_overrides_are_laid_over_the_file():
    config = load_config(ROOT / "configs" / "digits.yml", ["data.num_labeled=all", "seed=2", "train.lr=1e-3", "name=x"])
    assert (config.data.num_labeled, config.seed, config.train.lr, config.name) == ("all", 2, 0.001, "x")
    assert config.data.dataset == "digits" and config.run_name() == "x-seed2"
    assert load_config(None, ["method=supervised"]).run_name() == "cifar10-250-supervised-seed1"


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.lr=-1", "train.lr: must be greater than 0, got -1"),
        ("train.lr=fast", "train.lr: must be a valid number, got 'fast'"),
        ("train.lr=.nan", "train.lr: must be a finite number, got nan"),
        ("train.stps=3", "train.stps: unknown key; did you mean train.steps?"),
        ("lr=3", "lr: unknown key; did you mean train.lr?"),
        ("zzz=3", "zzz: unknown key; main.py --help lists the keys"),
        ("seed=true", "seed: must be a valid integer, got True"),
        ("seed=1.5", "seed: must be a valid integer, got 1.5"),
        (
            "method=flexmatch",
            "method: must be 'mixmatch', 'supervised', 'remixmatch', 'fixmatch', 'freematch' or 'softmatch', "
            "got 'flexmatch'; --import FILE brings others",
        ),
        ("data.num_labeled=some", "data.num_labeled: must be a valid integer or 'all', got 'some'"),
        ("data.num_labeled=0", "data.num_labeled: must be greater than or equal to 1 or 'all', got 0"),
        ("model.depth=27", "model.depth: must be 6n + 4: 10, 16, 22, 28, ... up to 1000, got 27"),
        ("model.width=1.01", "model.width: 16 times it must be a whole number of channels, got 1.01"),
        ("device=gpu", "device: must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("name=../x", "name: must be up to 100 letters"),
        ("data=3", "data: must be a section with keys such as data.dataset, got 3"),
        (
            "data.dataset=cats",
            "data.dataset: must be 'cifar10', 'cifar100', 'digits', 'fashion_mnist', 'mnist'",
        ),
        ("data.dataset.x=3", "data.dataset: must be a valid string, got {'x': 3}"),
        ("model.network=vgg", "model.network: must be 'wide_resnet' or 'resnet', got 'vgg'"),
        ("train.lr_decay_steps=[1, x]", "train.lr_decay_steps: must be a valid integer, got 'x'"),
        ("mixmatch.temperature=0", "mixmatch.temperature: must be greater than or equal to 0.01, got 0"),
        ("seed", "'seed': not understood; overrides look like train.lr=0.03"),
        ("=3", "not understood"),
        ("seed=[1", "not valid YAML"),
        (
            "seed=!!python/object/apply:os.getcwd []",
            "not valid YAML: tags ('tag:yaml.org,2002:python/object",
        ),
        ("seed={a: &x 1, b: *x}", "aliases"),
        ("data={root: a, root: b}", "key 'root' is given twice"),
        ("seed=" + "[" * 3000, "nested too deeply"),
    ],
)
def test_what_is_not_allowed_is_named_in_one_line(override, message):
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    text = str(caught.value)
    assert message in text and "\n" not in text


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: 1\nseed: 2\n", "key 'seed' is given twice"),
        ("seed: [1\n", "line 2 not valid YAML"),
        ("- 1\n- 2\n", "must hold 'key: value' lines"),
        ("train:\n  steps: 1\n  nested: {a: 1}\n", "train.nested: unknown key"),
        ("1: 2\n", "a key must be text"),
        ("\x00", "not valid YAML"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    path = tmp_path / "my.yml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_binary_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "none.yml")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "binary.yml")
    with pytest.raises(UserError, match="directory"):
        load_config(tmp_path)


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "empty.yml").write_text("")
    assert load_config(tmp_path / "empty.yml") == DEFAULTS


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
keys = (
    st.sampled_from([key for key, _ in list_keys(type(DEFAULTS))] + ["data", "train", "x", "train.x"])
    | st.text()
    | DEEP
)


@FUZZ
@given(
    text=st.text()
    | NASTY
    | st.tuples(keys, NASTY).map(": ".join)
    | st.dictionaries(keys, values).map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)),
    overrides=st.lists(st.tuples(keys, st.text() | NASTY | values.map(str)).map("=".join), max_size=3),
)
def test_any_yaml_and_any_override_is_a_config_or_one_line(tmp_path, text, overrides):
    path = tmp_path / "any.yml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(load_config(path, overrides), Config)
    except UserError as error:
        assert str(error) and str(error).isprintable()


@given(
    st.sampled_from([key for key, _ in list_keys(type(DEFAULTS))]),
    st.integers(0, 50),
    st.characters(min_codepoint=97, max_codepoint=122),
)
def test_a_slip_in_a_key_is_recognized(key, place, letter):
    slip = key[: place % len(key)] + letter + key[place % len(key) + 1 :]
    known = {k for k, _ in list_keys(type(DEFAULTS))}
    if slip in known or "." not in key or slip.count(".") != key.count("."):
        return
    if slip.split(".")[0] != key.split(".")[0]:
        return
    with pytest.raises(UserError, match="did you mean ") as caught:
        load_config(None, [f"{slip}=1"])
    suggestion = str(caught.value).split("did you mean ")[1].rstrip("?")
    ratio = difflib.SequenceMatcher(None, slip, suggestion).ratio()
    assert ratio >= difflib.SequenceMatcher(None, slip, key).ratio()
