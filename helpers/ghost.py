"""Ghost models: GGUF files with metadata and tensor descriptions but no weights, for llama.cpp's dry runs.

The file is truncated to its full length, so it is sparse: a 70B model takes 45 KB of disk.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from . import architectures, formats


def write(spec, types, path):
    """Write the ghost of `spec` to `path`; `types` maps tensor names to ggml types. Returns the file's bytes.

    `tokenizer.ggml.model = "none"` with a vocabulary size avoids the vocabulary itself.
    """
    import gguf
    import numpy

    writer = gguf.GGUFWriter(path, spec.architecture, use_temp_file=False)
    for key, value in metadata(spec).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, tuple):
            writer.add_array(key, list(value))
        else:
            writer.add_uint32(key, value)
    n_data, dtypes = 0, {"F32": numpy.float32, "F16": numpy.float16}
    for tensor in architectures.tensors(spec):
        kind = gguf.GGMLQuantizationType[types[tensor.name]]
        n_bytes = formats.tensor_bytes(kind.name, tensor.shape)
        shape, dtype = tensor.shape, dtypes.get(kind.name, numpy.uint8)
        if dtype is numpy.uint8:  # the writer wants to know such tensors by the bytes of a row
            shape = (formats.row_bytes(kind.name, shape[0]), *shape[1:])
        writer.add_tensor_info(tensor.name, tuple(reversed(shape)), dtype, n_bytes, raw_dtype=kind)
        n_data += -(-n_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    n_header = -(-Path(path).stat().st_size // 32) * 32
    _make_sparse(path)
    os.truncate(path, n_header + n_data)
    return n_header + n_data


def _make_sparse(path):
    if sys.platform == "win32":  # NTFS reserves the whole length unless told otherwise; never run by the authors
        import subprocess

        subprocess.run(["fsutil", "sparse", "setflag", str(path)], check=False, capture_output=True)


def metadata(spec):
    """The metadata llama.cpp needs to build the graph, without the `<architecture>.` prefix's repetition."""
    n_head_kv = spec.n_head_kv if isinstance(spec.n_head_kv, int) else tuple(spec.n_head_kv)
    shape = {
        "block_count": spec.n_layer,
        "context_length": spec.n_ctx_train,
        "embedding_length": spec.n_embd,
        "feed_forward_length": spec.n_ff,
        "attention.head_count": spec.n_head,
        "attention.head_count_kv": n_head_kv,
        "attention.key_length": spec.n_embd_head_k,
        "attention.value_length": spec.n_embd_head_v,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": spec.n_rot or spec.n_embd_head_k,
        "vocab_size": spec.n_vocab,
    }
    if spec.n_swa and spec.swa_pattern:
        shape["attention.sliding_window"] = spec.n_swa
        shape["attention.sliding_window_pattern"] = spec.swa_pattern
    optional = {
        "expert_count": spec.n_expert,
        "expert_used_count": spec.n_expert_used,
        "expert_shared_count": spec.n_expert_shared,
        "expert_feed_forward_length": spec.n_ff_exp,
        "leading_dense_block_count": spec.n_layer_dense_lead,
        "attention.kv_lora_rank": spec.kv_lora_rank,
        "attention.key_length_mla": spec.n_embd_head_k_mla,
        "attention.value_length_mla": spec.n_embd_head_v_mla,
    }
    shape |= {key: value for key, value in optional.items() if value}
    if spec.architecture == "qwen2vl":  # how the positions of text, height and width share a head
        shape["rope.dimension_sections"] = (16, 24, 24, 0)
    if spec.architecture == "gptneox":
        shape["use_parallel_residual"] = True
    if spec.architecture == "deepseek2":
        shape["attention.q_lora_rank"] = 0  # one query matrix, as the Lite models have it
    prefixed = {f"{spec.architecture}.{key}": value for key, value in shape.items()}
    return {**prefixed, "tokenizer.ggml.model": "none"}


@contextlib.contextmanager
def place():
    """A path for one ghost. Nothing is left of it afterwards; on Linux not even when the process is killed."""
    if hasattr(os, "memfd_create"):  # a file in memory that has no name in any folder
        number = os.memfd_create("ghost")
        try:
            yield Path(f"/proc/self/fd/{number}")
        finally:
            os.close(number)
        return
    number, path = tempfile.mkstemp(prefix="ghost-", suffix=".gguf")
    os.close(number)
    try:
        yield Path(path)
    finally:
        os.unlink(path)
