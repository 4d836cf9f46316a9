"""Atomic writes, and tensor files that are checked when read."""

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mixmatch.errors import UserError
from mixmatch.files import DamagedFile, explain_os_errors, load_tensors, save_tensors, write_atomically

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b.c": torch.tensor(3.5),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "empty": torch.empty(0),
    "half": torch.arange(3.0).bfloat16(),
    "mask": torch.tensor([True, False]),
    "steps": torch.tensor(3),
    "transposed": torch.arange(6.0).view(2, 3).T,
}
META = {"step": 7, "history": [{"x": 0.1}, {"x": None}]}


def test_tensors_and_meta_are_read_back_exactly(tmp_path):
    save_tensors(tmp_path / "x", TENSORS, META)
    tensors, meta = load_tensors(tmp_path / "x")
    assert meta == META and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)
    save_tensors(tmp_path / "y", dict(reversed(TENSORS.items())), META)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_and_any_truncation_is_noticed(tmp_path, data):
    path = tmp_path / "x"
    save_tensors(path, TENSORS, META)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position:]
    path.write_bytes(content)
    try:
        tensors, meta = load_tensors(path)
    except DamagedFile:
        return
    # The header is JSON: other whitespace, or another order of its keys, can mean the same.
    assert meta == META and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_of_other_kinds_and_versions_are_refused_and_run_no_code(tmp_path):
    (tmp_path / "pickle").write_bytes(pickle.dumps(Malice(tmp_path / "sprung")))
    torch.save({"x": Malice(tmp_path / "sprung")}, tmp_path / "torch")
    save_file({"a": torch.ones(2)}, tmp_path / "foreign")
    save_file({"a": torch.ones(2)}, tmp_path / "newer", metadata={"mixmatch": '{"version": 99, "meta": {}}'})
    messages = {"pickle": "not a", "torch": "not a", "foreign": "version None", "newer": "version 99"}
    for name, message in messages.items():
        with pytest.raises(DamagedFile, match=message):
            load_tensors(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "missing")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="x: cannot be written \\(No space left on device\\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_errors_of_writing_name_the_file_and_a_closed_stdout_does_not():
    with pytest.raises(UserError, match="cannot be written"), explain_os_errors(Path("p.csv")):
        raise OSError(28, "No space left on device")
    with pytest.raises(BrokenPipeError), explain_os_errors(Path("p.csv")):
        raise BrokenPipeError
