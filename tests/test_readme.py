"""What the README says of the code is so."""

import re

from tests.runs import ROOT

README = (ROOT / "README.md").read_text()


def test_every_promise_names_tests_that_exist():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    promises = README[README.index("## Promises") : README.index("## Results")]
    named = set(re.findall(r"`(test_\w+)`", promises))
    assert len(named) > 20
    assert not {name for name in named if f"def {name}(" not in tests}


def test_every_file_it_points_to_exists():
    targets = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"(?:configs|benchmarks)/[\w-]+\.\w+", README)
    assert len(targets) > 15
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_it_has_no_words_left_to_be_replaced():
    assert not re.findall(r"\b[A-Z]{6,}TEXT\b|TODO|FIXME", README)


def test_notes_of_measurements_name_scripts_that_exist():
    for file in (ROOT / "benchmarks" / "results").glob("*.md"):
        assert not [name for name in re.findall(r"benchmarks/\w+\.\w+", file.read_text()) if not (ROOT / name).exists()]


def test_the_map_of_the_code_is_complete():
    modules = {f"{path.parent.name}/{path.name}" for path in (ROOT / "mixmatch").glob("*.py")} - {
        "mixmatch/__init__.py"
    }
    assert not {module for module in modules - {"mixmatch/errors.py"} if f"({module})" not in README}
