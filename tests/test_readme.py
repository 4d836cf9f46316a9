"""What README and docs say of the code is so."""

import re

from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()
TEXTS = {path: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}


def test_every_promise_names_tests_that_exist():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", TEXTS[ROOT / "docs" / "reliability.md"]))
    assert len(named) > 20
    assert not {name for name in named if f"def {name}(" not in tests}


def test_every_file_that_a_text_points_to_exists():
    assert len(TEXTS) == 9
    count = 0
    for path, text in TEXTS.items():
        targets = [path.parent / target for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)]
        targets += [ROOT / name for name in re.findall(r"(?<![\w/])(?:configs|benchmarks|mixmatch)/[\w/-]+\.\w+", text)]
        assert not [target for target in targets if not target.exists()], path
        count += len(targets)
    assert count > 60


def test_no_words_are_left_to_be_replaced():
    assert not [path for path, text in TEXTS.items() if re.findall(r"\b[A-Z]{6,}TEXT\b|TODO|FIXME", text)]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 140


def test_notes_of_measurements_name_scripts_that_exist():
    for file in (ROOT / "benchmarks" / "results").glob("*.md"):
        assert not [name for name in re.findall(r"benchmarks/\w+\.\w+", file.read_text()) if not (ROOT / name).exists()]


def test_the_map_of_the_code_is_complete():
    text = TEXTS[ROOT / "docs" / "design.md"]
    files = [file for folder in ("mixmatch", "models", "reproduce") for file in (ROOT / folder).rglob("*.py")]
    names = {str(file.relative_to(ROOT)) for file in files if not file.name.startswith("__")}
    assert not {name for name in names - {"mixmatch/errors.py"} if f"(../{name})" not in text}


def test_figures_in_the_readmes_prose_are_those_of_tables():
    table = re.compile(r"<!-- table .*?<!-- end of table -->", re.DOTALL)
    prose, tables = table.sub("", README), "\n".join(table.findall(TEXTS[ROOT / "docs" / "results.md"]))
    figures, gains = re.findall(r"\d+\.\d+ ± \d+\.\d+", prose), re.findall(r"\+\d+\.\d+", prose)
    assert figures and all(f"| {figure} |" in tables for figure in figures)
    differences = re.findall(r"\| ([+-]\d+\.\d+) \[", tables)
    assert gains and set(gains) <= {f"{float(difference):+.1f}" for difference in differences}
