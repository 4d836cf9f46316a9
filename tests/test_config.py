"""The configuration: defaults, files, overrides, and one line for whatever is invalid."""

import pickle

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixmatch.config import (
    Config,
    apply_overrides,
    build_config,
    differing_keys,
    differing_pseudo_label_keys,
    flatten,
    load_config,
    merge_for_resume,
    to_yaml,
)
from mixmatch.errors import UserError
from mixmatch.settings import list_keys
from tests.helpers import FUZZ, ROOT

CONFIGS = sorted((ROOT / "mixmatch" / "configs").rglob("*.yml"))
DEFAULTS = load_config(None)
KEYS = [key for key, _ in list_keys(type(DEFAULTS))]


def test_config_yml_lists_every_default_with_its_description():
    text = (ROOT / "config.yml").read_text()
    assert load_config(ROOT / "config.yml") == DEFAULTS
    values = yaml.safe_load(text)
    lines = [line.strip() for line in text.splitlines()]
    for key, field in list_keys(type(DEFAULTS)):
        section, _, name = key.rpartition(".")
        assert name in (values[section] if section else values)
        assert any(line.startswith(f"{name}:") and line.endswith(f"# {field.description}") for line in lines), key


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_contain_only_what_differs_and_read_back(path, tmp_path):
    config = load_config(path)
    given = set()
    for key, value in yaml.safe_load(path.read_text()).items():
        given |= {f"{key}.{name}" for name in value} if isinstance(value, dict) else {key}
    differing = differing_keys(DEFAULTS, config) + differing_pseudo_label_keys(DEFAULTS, config)
    assert given - {"device"} <= {entry.split(" ")[0] for entry in differing} | {"data.root", "data.image_size"}
    (tmp_path / "config.yml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yml") == config == pickle.loads(pickle.dumps(config))


def test_overrides_replace_values_of_the_file():
    config = load_config("digits", ["data.num_labeled=all", "seed=2", "train.lr=1e-3", "name=x"])
    assert (config.data.num_labeled, config.seed, config.train.lr, config.name) == ("all", 2, 0.001, "x")
    assert config.data.dataset == "digits" and config.run_name() == "x-seed2"
    assert load_config(None, ["method=supervised"]).run_name() == "cifar10-250-supervised-seed1"
    assert load_config(None, ["method=supervised", "name=semi-supervised-2"]).run_name() == "semi-supervised-2-seed1"
    assert (
        load_config(None, ["method=supervised", "name=semisupervised"]).run_name() == "semisupervised-supervised-seed1"
    )


def test_later_configs_are_laid_over_earlier_ones(tmp_path):
    config = load_config(["cifar100", "fixmatch"], ["seed=2"])
    assert (config.data.dataset, config.model.width) == ("cifar100", 8.4375)
    assert (config.method, config.train.lr) == ("fixmatch", 0.03)
    assert config.run_name() == "cifar100-10000-fixmatch-seed2"
    assert load_config(["folder", "digits"]) == load_config("digits", ["data.image_size=32"])
    (tmp_path / "wrong.yml").write_text("train: 3\n")
    with pytest.raises(UserError, match="train: "):
        load_config(["digits", tmp_path / "wrong.yml"])


def test_another_network_by_override_drops_the_keys_of_the_former_one():
    config = load_config(ROOT / "config.yml", ["model.network=resnet", "model.bn_momentum=0.5"])
    assert config.model.bn_momentum == 0.5 and config.model.network == "resnet"
    assert apply_overrides(config, ["model.network=wide_resnet"]).model.bn_momentum == 0.5


def test_only_the_used_method_has_its_keys_flattened_and_compared():
    config = build_config({"method": "fixmatch", "fixmatch": {"threshold": 0.9}, "mixmatch": {"alpha": 0.5}})
    assert config.method_settings == build_config({"fixmatch": {"threshold": 0.9}}).fixmatch
    assert flatten(config)["fixmatch.threshold"] == 0.9 and "mixmatch.alpha" not in flatten(config)
    other = apply_overrides(config, ["mixmatch.alpha=0.75", "fixmatch.threshold=0.8", "device=cpu"])
    assert differing_keys(config, other) == ["fixmatch.threshold (0.9 there, 0.8 now)"]


@pytest.mark.parametrize(
    "overrides, reached, message",
    [
        (["train.steps=100"], 100, "train.steps (1048576 there, 100 now); it is at step 100 already; use another run"),
        (["device=cpu", "train.eval_every=5", "train.steps=2000000"], 100, None),
        (["train.steps=50"], 100, "train.steps (1048576 there, 50 now); it is at step 100 already; use another run"),
        (["seed=2"], 0, "seed (1 there, 2 now); use another run directory"),
        (["seed=2", "train.steps=200"], 100, "seed (1 there, 2 now), train.steps (1048576 there, 200 now); use"),
    ],
)
def test_resuming_with_another_config(overrides, reached, message):
    config = load_config(None, overrides)
    if message is None:
        merged = merge_for_resume(DEFAULTS, config, reached, is_finished=False)
        assert (merged.device, merged.train.eval_every, merged.train.steps) == ("auto", 5, 2000000)
        return
    with pytest.raises(UserError) as raised:
        merge_for_resume(DEFAULTS, config, reached, is_finished=False)
    assert message in str(raised.value)


@pytest.mark.parametrize("setting", ["mixmatch.ramp_up_steps=null", "train.lr_schedule=cosine"])
def test_a_run_whose_schedules_depend_on_its_length_keeps_it(setting):
    stored = load_config(None, [setting])
    with pytest.raises(UserError, match=r"its schedules depend on its length.*init_from=RUN"):
        merge_for_resume(stored, apply_overrides(stored, ["train.steps=2000000"]), 0, is_finished=False)


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.lr=-1", "config: train.lr: must be greater than 0, got -1"),
        ("train.lr=fast", "train.lr: must be a valid number, got 'fast'"),
        ("train.lr=.nan", "train.lr: must be a finite number, got nan"),
        ("train.stps=3", "train.stps: unknown key; did you mean train.steps?"),
        ("lr=3", "lr: unknown key; did you mean train.lr?"),
        (".lr=1", ".lr=1: not an override"),
        ("zzz=3", "zzz: unknown key; --help lists the keys"),
        ("a.b.c.d=1", "a: unknown key"),
        ("seed=true", "seed: must be a valid integer, got True"),
        ("seed=1.5", "seed: must be a valid integer, got 1.5"),
        ("seed=" + "1" * 5000, "not valid YAML"),
        ("seed=" + "[" * 3000, "not valid YAML"),
        ("method=flexmatch", "method: must be 'mixmatch', 'supervised', 'remixmatch', 'fixmatch', 'freematch' or"),
        ("pseudo_label.method=flexmatch", "pseudo_label.method: must be 'mixmatch', 'supervised'"),
        ("data.num_labeled=some", "data.num_labeled: must be a valid integer or 'all', got 'some'"),
        ("data.num_labeled=0", "data.num_labeled: must be greater than or equal to 1 or 'all', got 0"),
        ("model.depth=27", "model.depth: must be 6n + 4: 10, 16, 22, 28, ... up to 1000, got 27"),
        ("model.depth=4", "model.depth: must be 6n + 4"),
        ("model.width=1.01", "model.width: must be a multiple of 0.0625"),
        ("data={dataset: folder, background: purple}", "data.background: "),
        ("data={dataset: folder, background: '#12345'}", "data.background: "),
        ("data={dataset: folder, background: 'white;'}", "data.background: "),
        ("device=gpu", "device: must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("name=../x", "name: must be up to 100 letters, digits"),
        ("data=3", "data: must be a section with keys such as data.dataset, got 3"),
        ("data.dataset=cats", "data.dataset: must be 'cifar10', 'cifar100', 'digits', 'fashion_mnist', 'mnist'"),
        ("data.dataset.x=3", "data.dataset: must be a valid string, got {'x': 3}"),
        (
            "model.network=vgg",
            "model.network: must be 'wide_resnet', 'resnet' or 'timm', got 'vgg'; --import FILE brings",
        ),
        ("train.lr_decay_steps=[1, x]", "train.lr_decay_steps: must be a valid integer, got 'x'"),
        ("train={lr: -1, momentum: 2, zzz: 1}", "train.lr: must be greater than 0, got -1 (and 2 more: train.mom"),
        ("train={optimizer: sgd, momentum: 0}", "train: nesterov needs a momentum above 0"),
        (
            "freematch={min_threshold: 0.9, max_threshold: 0.5}",
            "freematch: min_threshold is above max_threshold; lower it",
        ),
        ("seed", "seed: not an override; write key=value, such as train.lr=0.03"),
        ("=3", "not an override"),
        ("data.root=", "data.root: must not be empty; write data.root=VALUE"),
        ("init_from=", "init_from: must not be empty; write init_from=VALUE or null"),
        ("seed=[1", "not valid YAML"),
        ("seed=!!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor"),
        ("seed=2000-99-99", "not valid YAML: 'month must be in 1..12"),
        ("data={root: a, root: b}", "key 'root' is given twice"),
    ],
)
def test_an_invalid_override_is_a_one_line_error(override, message):
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"seed: 1\nseed: 2\n", "line 2: not valid YAML: key 'seed' is given twice"),
        (b"seed: [1\n", "line 2: not valid YAML"),
        (b"- 1\n- 2\n", "must contain 'key: value' lines"),
        (b"train:\n  steps: 1\n  nested: {a: 1}\n", "train.nested: unknown key"),
        (b"1: 2\n", "Keys should be strings, got 1"),
        (b"\x00", "not valid YAML"),
        (b"\xff\xfe\x00", "is not UTF-8 text; give a YAML file"),
        (None, "no such file; give a YAML file"),
    ],
)
def test_an_invalid_file_is_a_one_line_error(tmp_path, content, message):
    path = tmp_path / "my.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


NAMES = ["2024", "on", "no", "007", "1e3", "0x1F", "2024-01-01", "1_000", "12:30", "true", ".5"]


@pytest.mark.parametrize("name", NAMES)
def test_a_key_that_holds_text_takes_it_as_it_is_written(tmp_path, name):
    config = load_config("folder", [f"data.root={name}", f"init_from={name}"])
    assert (config.data.root, config.init_from) == (name, name)
    (tmp_path / "mine.yml").write_text(f"init_from: {name} # a comment\ndata: {{dataset: folder, root: {name}}}\n")
    read = load_config(tmp_path / "mine.yml")
    assert (read.data.root, read.init_from) == (name, name)
    assert load_config(None, [f"data={{dataset: folder, root: {name}}}"]).data.root == name
    (tmp_path / "stored.yml").write_text(to_yaml(config))
    assert load_config(tmp_path / "stored.yml") == config


def test_paths_of_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config("folder", ["data.root=~/pictures", "data.cache=~/cache", "init_from=~/runs/a"])
    assert (config.data.root, config.data.cache) == ("/home/me/pictures", "/home/me/cache")
    assert config.init_from == "/home/me/runs/a"


def test_another_kind_of_data_set_has_another_root():
    assert load_config("folder", ["data.dataset=cifar10"]).data.root == "data"
    assert load_config("folder", ["data.dataset=cifar10", "data.root=x"]).data.root == "x"
    assert load_config("folder", ["name=x"]).data.root == "data/my-photographs"
    assert load_config(None, ["data.root=x", "data.dataset=folder"]).data.root == "x"


def test_null_is_text_only_where_a_key_needs_text():
    config = load_config("folder", ["data.root=null", "init_from=null", "data.labels=~", "data.split_file=a #b"])
    assert config.data.root == "null" and config.init_from is None
    assert (config.data.labels, config.data.split_file) == ("~", "a #b")
    assert apply_overrides(config, ["data.labels=null"]).data.labels is None


def test_an_empty_file_is_the_defaults_and_a_folder_an_error(tmp_path):
    (tmp_path / "empty.yml").write_text("")
    assert load_config(tmp_path / "empty.yml") == DEFAULTS
    with pytest.raises(UserError, match="directory; give a YAML file"):
        load_config(tmp_path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
keys = st.sampled_from([*KEYS, "data", "train", "x", "train.x"]) | st.text()


@pytest.mark.slow
@FUZZ
@given(
    text=st.text() | st.dictionaries(keys, values).map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)),
    overrides=st.lists(st.tuples(keys, st.text() | values.map(str)).map("=".join), max_size=3),
)
def test_any_yaml_and_any_override_is_a_config_or_one_line(tmp_path, text, overrides):
    path = tmp_path / "any.yml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(load_config(path, overrides), Config)
    except UserError as error:
        assert str(error) and str(error).isprintable()


def test_numbers_are_read_as_in_yaml_1_2(tmp_path):
    assert load_config("digits", ["train.steps=010"]).train.steps == 10
    assert load_config("digits", ["train.steps=1_000"]).train.steps == 1000
    with pytest.raises(UserError, match=r"train.steps: must be a valid integer"):
        load_config("digits", ["train.steps=1:30"])
    (tmp_path / "dotted.yml").write_text("train.steps: 3")
    with pytest.raises(UserError, match=r"train.steps: write train: and, indented below it, steps:"):
        load_config(tmp_path / "dotted.yml")
