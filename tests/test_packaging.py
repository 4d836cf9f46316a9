"""What is installed: pyproject.toml, environment.yml, the lock files and CITATION.cff agree."""

import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import mixmatch
from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if "==" in line]
    return {re.split("[=;]", line)[0].strip(): Version(line.split(";")[0].split("==")[1].strip()) for line in lines}


def requirements():
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for name in extras for line in extras[name] if "mixmatch[" not in line]
    return [Requirement(line) for line in lines]


def test_conda_installs_the_dependencies_of_pyproject():
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip["pip"] == PROJECT["dependencies"]


def test_the_lock_has_a_version_that_is_allowed_of_every_dependency():
    versions = pinned("requirements.lock")
    assert all(requirement.specifier.contains(versions[requirement.name.lower()]) for requirement in requirements())


def test_the_oldest_versions_are_the_lower_bounds():
    versions = pinned("requirements-oldest.lock")
    for requirement in requirements():
        (bound,) = requirement.specifier
        assert bound.operator == ">=" and versions[requirement.name.lower()] >= Version(bound.version)
        assert str(versions[requirement.name.lower()]).startswith(bound.version), requirement


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mixmatch.__version__
    assert f"## {mixmatch.__version__} " in (ROOT / "CHANGELOG.md").read_text()
