"""Safe writing and distrustful reading."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mixmatch.errors import UserError
from mixmatch.files import DamagedFile, load_tensors, save_tensors, write_atomically

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.tensor(3.5), "empty": torch.empty(0)}
META = {"step": 7, "history": [{"x": 0.1}, {"x": None}]}


def test_tensors_and_meta_come_back_exactly(tmp_path):
    save_tensors(tmp_path / "x", TENSORS, META)
    tensors, meta = load_tensors(tmp_path / "x")
    assert meta == META and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_byte_and_any_cut_is_noticed(tmp_path, data):
    path = tmp_path / "x"
    if not path.exists():
        save_tensors(path, TENSORS, META)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    damaged = tmp_path / "y"
    damaged.write_bytes(content)
    try:
        tensors, meta = load_tensors(damaged)
    except DamagedFile:
        return
    # The header is JSON: a changed blank, or the order of its keys, may mean the same.
    assert meta == META and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_in_a_file_is_run(tmp_path):
    trap = tmp_path / "sprung"
    (tmp_path / "pickle").write_bytes(pickle.dumps(Malice(trap)))
    torch.save({"x": Malice(trap)}, tmp_path / "torch")
    for name in ("pickle", "torch"):
        with pytest.raises(DamagedFile):
            load_tensors(tmp_path / name)
    assert not trap.exists()


def test_other_files_and_other_versions_are_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(DamagedFile, match="version None"):
        load_tensors(tmp_path / "foreign")
    save_file({"a": torch.ones(2)}, tmp_path / "newer", metadata={"version": "99", "meta": json.dumps({})})
    with pytest.raises(DamagedFile, match="version '99'"):
        load_tensors(tmp_path / "newer")
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "missing")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="x: cannot be written \\(No space left on device\\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
