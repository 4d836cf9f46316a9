"""The pages in docs/: links, commands, and the reference of config keys."""

import re
import runpy
import shlex

import pytest

from mixmatch.cli import compare, label, predict, pseudo_label, train
from mixmatch.cli.common import import_file
from mixmatch.config import INTERVAL_KEYS, RESUMABLE_KEYS, all_keys, load_config
from mixmatch.data.split import MIN_LABELS_WITH_AUTO
from mixmatch.pseudo_labels.start import check_overrides
from mixmatch.training.execution import STEPS_WORTH_COMPILING
from reproduce import command as reproduce
from reproduce.tables import find_table, plan, read_table
from tests.helpers import ROOT

DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
PARSERS = {
    "train": train.make_parser,
    "pseudo-label": pseudo_label.make_parser,
    "predict": predict.make_parser,
    "compare": compare.make_parser,
    "label": label.make_parser,
}
SCRIPTS = {"main.py": "train", "pseudo_label.py": "pseudo-label", "predict.py": "predict"}


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```(?s:.*?)```|^    .*$", "", text, flags=re.MULTILINE))


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text):
    """The command lines of a page, in code blocks and inline: command and arguments."""
    pattern = r"(?:python3 |torchrun .*?)(\w+\.py)|mixmatch ([\w-]+)"
    lines = re.findall(rf"^ *(?:{pattern})\b(.*)$", text.replace("\\\n", " "), re.MULTILINE)
    lines += re.findall(rf"`(?:{pattern}) ([^`]+)`", text)
    found = [(SCRIPTS.get(script, command), arguments.strip()) for script, command, arguments in lines]
    return [(command, arguments) for command, arguments in found if command in PARSERS and arguments != "--help"]


COMMANDS = [(name, *command) for name, page in PAGES.items() for command in commands(page.read_text())]


def test_the_reference_of_config_keys_is_current():
    page = (DOCS / "configuration.md").read_text()
    script = runpy.run_path(str(DOCS / "make_configuration.py"))
    assert script["make_page"](page) == page, "run python3 docs/make_configuration.py"
    assert all(f"\n| `{key}` | " in page for key, _ in all_keys())
    prose = page.partition(script["START"])[0]
    assert all(f"`{key}`" in prose for key in (*RESUMABLE_KEYS, *INTERVAL_KEYS))
    assert all(f" {number:,} " in prose for number in (MIN_LABELS_WITH_AUTO, STEPS_WORTH_COMPILING))


def test_every_key_that_can_be_auto_is_explained():
    page = (DOCS / "configuration.md").read_text()
    (section,) = re.findall(r"## How `auto` is resolved\n(.*?)\n## ", page, re.DOTALL)
    assert re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE) == re.findall(
        r"^\| `([\w.]+)` \| [^|]* \| [^|]*`auto`[^|]* \|", page.partition("## The run")[2], re.MULTILINE
    )


@pytest.mark.parametrize("name", PAGES)
def test_links_point_to_files_and_headings(name):
    page, broken = PAGES[name], []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_the_index_has_every_page():
    index = (DOCS / "README.md").read_text()
    assert not [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"]({page.name}" not in index]


@pytest.mark.parametrize(
    ("name", "command", "arguments"), COMMANDS, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(COMMANDS)]
)
def test_commands_have_valid_arguments(name, command, arguments, registries, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "my_method.py" in arguments:
        pytest.skip("README's own method: tests/test_readme.py")
    words = shlex.split(arguments.replace("...", ""), comments=True)
    for file in [words[i + 1] for i, word in enumerate(words) if word == "--import"]:
        import_file(ROOT / file)
    options = PARSERS[command]().parse_intermixed_args(words)
    if hasattr(options, "overrides"):
        config = load_config(getattr(options, "config", None), options.overrides)
        if command == "pseudo-label":
            check_overrides(config, options.overrides)


def test_commands_for_tables_are_valid():
    lines = re.findall(r"^    python3 -m reproduce (.*)$", (DOCS / "tables.md").read_text(), re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        options = reproduce.make_parser().parse_args(shlex.split(line, comments=True))
        assert options.table in (None, "my-table.yml") or find_table(options.table)


def test_the_examples_of_table_files_are_valid(tmp_path):
    examples = re.findall(r"```yaml\n(.*?)```", (DOCS / "tables.md").read_text(), re.DOTALL)
    (tmp_path / "my.yml").write_text("data: {dataset: digits, num_labeled: 20}\n")
    for example, lengths in zip(examples, ([3, 3, 2, 3], [3, 3, 3, 3]), strict=True):
        (tmp_path / "my-table.yml").write_text(example)
        assert [len(row) for row in plan(read_table(tmp_path / "my-table.yml"))] == lengths


@pytest.mark.parametrize("name", PAGES)
def test_keys_in_the_text_exist(name):
    keys = {key for key, _ in all_keys()}
    sections = "|".join({key.partition(".")[0] for key in keys if "." in key})
    found = re.findall(rf"`((?:{sections})\.\w+)(?:=[^`]*)?`", PAGES[name].read_text())
    assert not {*found} - keys - {"mixmatch.train", "model.onnx", "model.safetensors", "pseudo_label.py"}


def test_commands_are_found():
    assert len(COMMANDS) > 30
    assert {command for _, command, _ in COMMANDS} >= {"train", "pseudo-label", "predict", "compare"}
