"""`helpers.ghost`: files with everything but the weights."""

import os
import sys

import pytest

from helpers import architectures, formats, gguf, ghost, mixes, models

QUANTIZATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_K_M", "IQ2_XS", "TQ1_0")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize(
    "name", ["smollm2-135m", "gemma-3-270m", "phi-3-mini", "qwen2.5-0.5b", "qwen3-0.6b", "gemma-2-2b"]
)
def test_a_ghost_says_what_it_would_hold(name, quantization, tmp_path):
    spec, path = models.get(name), tmp_path / "ghost.gguf"
    types = mixes.tensor_types(spec, quantization)
    n_bytes = ghost.write(spec, types, path)
    header = gguf.read_header(path)
    assert n_bytes == header.file_bytes == path.stat().st_size
    assert header.tensor_types == types
    assert {tensor.name: tensor.shape for tensor in header.tensors} == {
        tensor.name: tensor.shape for tensor in architectures.tensors(spec)
    }
    shape = ("architecture", "n_layer", "n_embd", "n_head", "n_head_kv", "n_embd_head_k", "n_ff", "n_vocab", "tied")
    for field in (*shape, "n_swa", "swa_pattern", "n_ctx_train"):
        assert getattr(header.spec, field) == getattr(spec, field), field


def test_the_gguf_packages_reader_agrees(tmp_path):
    from gguf import GGUFReader

    spec, path = models.get("smollm2-135m"), tmp_path / "ghost.gguf"
    ghost.write(spec, mixes.tensor_types(spec, "Q4_K_M"), path)
    reader = GGUFReader(path)
    for theirs, ours in zip(reader.tensors, architectures.tensors(spec), strict=True):
        assert (theirs.name, tuple(theirs.shape.tolist())) == (ours.name, ours.shape)
        assert theirs.n_bytes == formats.tensor_bytes(theirs.tensor_type.name, ours.shape)


@pytest.mark.skipif(sys.platform == "win32", reason="st_blocks is not known on Windows")
def test_a_ghost_of_a_large_model_takes_little_room(tmp_path):
    spec, path = models.get("llama-3.1-8b"), tmp_path / "ghost.gguf"
    ghost.write(spec, mixes.tensor_types(spec, "F16"), path)
    assert path.stat().st_size > 16_000_000_000
    assert path.stat().st_blocks * 512 < 200_000


def test_kv_heads_per_layer_are_written(tmp_path):
    import dataclasses

    spec = dataclasses.replace(models.get("smollm2-135m"), n_layer=3, n_head_kv=(9, 3, 1))
    ghost.write(spec, mixes.tensor_types(spec, "F16"), tmp_path / "ghost.gguf")
    assert gguf.read_header(tmp_path / "ghost.gguf").spec.n_head_kv == (9, 3, 1)


def test_a_place_is_gone_afterwards():
    with ghost.place() as path:
        spec = models.get("smollm2-135m")
        n_bytes = ghost.write(spec, mixes.tensor_types(spec, "Q8_0"), path)
        assert path.stat().st_size == n_bytes
    assert not path.exists()


def test_a_place_is_gone_after_an_error():
    with pytest.raises(ZeroDivisionError), ghost.place() as path:
        raise ZeroDivisionError
    assert not path.exists()


def test_a_place_where_memory_has_no_files(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ghost.place() as path:
        assert path.parent == tmp_path and path.exists()
    assert list(tmp_path.iterdir()) == []
