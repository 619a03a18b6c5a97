"""`helpers.quality`: the numbers against an independent computation, the quantizer, the cache, lost workers.

Most tests use a llama of random weights that is made here; its tokens are the 256 bytes.
"""

import json
import math
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import download, formats, hardware, memory, quality, quality_child
from helpers.child import Refused
from helpers.quality import QualityError, Requantized, Row, Unfinished

N_CTX = 64
RANDOM_TEXT = "".join(chr(c) for c in np.random.default_rng(5).integers(33, 127, 5 * N_CTX + 20))
SHAPE = {"width": 64, "heads": 4, "kv_heads": 2, "ff": 128, "layers": 2}


def tiny_weights(seed, width, heads, kv_heads, ff, layers):
    random = np.random.default_rng(seed)
    kv = width // heads * kv_heads
    shapes = {"token_embd": (259, width), "output": (259, width)}
    for i in range(layers):
        shapes |= {f"blk.{i}.attn_q": (width, width), f"blk.{i}.attn_k": (kv, width), f"blk.{i}.attn_v": (kv, width)}
        shapes |= {f"blk.{i}.attn_output": (width, width), f"blk.{i}.ffn_down": (width, ff)}
        shapes |= {f"blk.{i}.ffn_gate": (ff, width), f"blk.{i}.ffn_up": (ff, width)}
    found = {name: random.normal(0, 0.15, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("output_norm", *(f"blk.{i}.{part}_norm" for i in range(layers) for part in ("attn", "ffn"))):
        found[name] = random.uniform(0.7, 1.3, width).astype(np.float32)
    return found


def write_tiny(path, weights, width, heads, kv_heads, ff, layers, kind="F32"):
    import gguf
    from gguf import quants

    wanted = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(formats.quantization(kind).file_type)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(259)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))])
    writer.add_token_scores([0.0] * 259)
    writer.add_token_types([2, 3, 3] + [6] * 256)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    for name, values in weights.items():
        if kind == "F32" or values.ndim == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            writer.add_tensor(f"{name}.weight", quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two files of one shape, the second with slightly other weights: {name: (path, weights)}."""
    pytest.importorskip("gguf")
    folder, found = tmp_path_factory.mktemp("tiny"), {}
    first = tiny_weights(1, **SHAPE)
    noise = tiny_weights(2, **SHAPE)
    second = {n: v if v.ndim == 1 else v + 0.2 * noise[n] for n, v in first.items()}
    for name, values in (("first", first), ("second", second)):
        found[name] = (write_tiny(folder / f"{name}.gguf", values, **SHAPE), values)
    return found


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HELPERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "quality"


# --- an independent computation ---------------------------------------------------------------------------------


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def turned(x):
    """Rotary positions: pairs of neighbours turn by position times 10000^(-2i/d). x: (tokens, heads, d)."""
    n, _, d = x.shape
    angle = np.arange(n)[:, None] * 10000.0 ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def log_probabilities(weights, ids):
    """The forward pass of a llama in float64: (tokens, vocabulary)."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    n, d, group = len(ids), SHAPE["width"] // SHAPE["heads"], SHAPE["heads"] // SHAPE["kv_heads"]
    x = w["token_embd"][ids]
    future = np.triu(np.full((n, n), -np.inf), 1)
    for i in range(SHAPE["layers"]):
        at = f"blk.{i}."
        h = norm(x, w[at + "attn_norm"])
        q, k, v = ((h @ w[f"{at}attn_{c}"].T).reshape(n, -1, d) for c in "qkv")
        q, k, v = turned(q), turned(k).repeat(group, 1), v.repeat(group, 1)
        seen = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(d) + future
        share = np.exp(seen - seen.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", share, v).reshape(n, -1) @ w[at + "attn_output"].T
        h = norm(x, w[at + "ffn_norm"])
        gate = h @ w[at + "ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[at + "ffn_up"].T)) @ w[at + "ffn_down"].T
    logits = norm(x, w["output_norm"]) @ w["output"].T
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def by_hand(reference, other):
    """The statistics of the second half of every chunk, written down anew: (number, what it should be)."""
    tokens = [1, *(3 + byte for byte in RANDOM_TEXT.encode())]
    p, q, said = [], [], []
    for start in range(0, len(tokens) - N_CTX + 1, N_CTX):
        chunk = tokens[start : start + N_CTX]
        scored = slice(N_CTX // 2, N_CTX - 1)
        p.append(log_probabilities(reference, [1, *chunk[1:]])[scored])
        q.append(log_probabilities(other, [1, *chunk[1:]])[scored])
        said += chunk[N_CTX // 2 + 1 :]
    p, q, n = np.concatenate(p), np.concatenate(q), len(said)
    nll, nll_p = -q[range(n), said], -p[range(n), said]
    kld = (np.exp(p) * (p - q)).sum(1)
    dp = np.exp(-nll) - np.exp(-nll_p)
    error = lambda values: np.std(values, ddof=1) / math.sqrt(n)  # noqa: E731
    return {
        "n_tokens": n,
        "perplexity": math.exp(nll.mean()),
        "perplexity_error": math.exp(nll.mean()) * error(nll),
        "kld_mean": kld.mean(),
        "kld_mean_error": error(kld),
        "kld_median": np.median(kld),
        "kld_q99": np.percentile(kld, 99),
        "top1_agreement": (p.argmax(1) == q.argmax(1)).mean(),
        "rms_dp": math.sqrt((dp**2).mean()),
        "mean_dp": dp.mean(),
        "ln_ratio": (nll - nll_p).mean(),
        "ln_ratio_error": error(nll - nll_p),
    }, math.exp(nll_p.mean())


def test_numbers_agree_with_an_independent_computation(tiny, cache):
    (first, weights), (second, others) = tiny["first"], tiny["second"]
    found = quality.compare([second], RANDOM_TEXT, reference=first, n_ctx=N_CTX, max_chunks=None, progress=False)
    expected, reference_perplexity = by_hand(weights, others)
    row = found["second"]
    assert found.reference.perplexity == pytest.approx(reference_perplexity, rel=1e-3)
    assert row.n_tokens == expected.pop("n_tokens") == 5 * 31
    for name, value in expected.items():  # llama.cpp keeps keys and values in 16 bits
        assert getattr(row, name) == pytest.approx(value, rel=0.01, abs=2e-5), name
    assert row.kld_mean > 0.01
    assert (row.quantization, row.source, row.fallback_share) == ("F32", "measured", 0)

    start = time.perf_counter()  # the second time nothing is loaded; the row is read
    again = quality.compare({"<b>": second}, RANDOM_TEXT, reference=first, n_ctx=N_CTX, max_chunks=None)
    assert again.rows[0].kld_mean == row.kld_mean and again.rows[0].seconds == row.seconds
    assert time.perf_counter() - start < 60
    page = again._repr_html_()
    assert "&lt;b&gt;" in page and "<b>" not in page


# --- without llama.cpp ------------------------------------------------------------------------------------------


def row(name, size, kld, **more):
    zeros = dict.fromkeys(("kld_mean_error", "kld_median", "kld_q99", "rms_dp", "mean_dp", "perplexity_error"), 0.0)
    known = {"quantization": name, "bits_per_weight": 4.5, "perplexity": 10.0, "top1_agreement": 1.0, "n_tokens": 10}
    return Row(**{**zeros, **known, "name": name, "file_bytes": size, "kld_mean": kld, "seconds": 1.0, **more})


def test_the_front_holds_what_nobody_beats():
    rows = (row("big", 9, 0.0), row("good", 5, 0.1), row("beaten", 6, 0.2), row("twin", 5, 0.1), row("small", 1, 0.5))
    found = quality.Comparison(rows, row("ref", 20, 0.0), "a text", 512)
    assert found.pareto() == ("big", "good", "twin", "small")
    assert str(found).splitlines()[1].startswith("ref (reference)")
    assert "good *" in str(found) and "beaten *" not in str(found)
    with pytest.raises(KeyError, match="no row 'x'; there are big, good, beaten, twin, small, ref"):
        found["x"]


def test_texts_are_there_with_their_origin():
    assert len(quality.TEXTS) >= 5
    for name, known in quality.TEXTS.items():
        assert known.works and known.source and known.public_domain
        assert quality.text(name).strip() in quality.text()
    with pytest.raises(ValueError, match="no text 'klingon'.*english"):
        quality.text("klingon")


def test_published_rows_say_whose_they_are():
    rows = quality.published()
    assert len(rows) > 80 and {row.source for row in rows} == {"published"}
    assert all(row.url.startswith("https://") and row.table for row in rows)
    llama = {row.quantization: row for row in quality.published("Llama-3-8B") if not row.imatrix}
    assert llama["Q4_K_M"].kld_mean == 0.031273 and llama["Q4_K_M"].rms_dp == pytest.approx(0.05519)
    (misprint,) = (row for row in quality.published("Llama-2-7B") if row.quantization == "Q2_K")
    assert misprint.perplexity is None and "misprint" in misprint.note and misprint.top1_agreement == 0.85584
    with pytest.raises(ValueError, match="Llama-3-8B"):
        quality.published("GPT-9")


def test_errors_of_tensors_are_what_one_can_work_out(tiny, tmp_path):
    first, weights = tiny["first"]
    eight = write_tiny(tmp_path / "eight.gguf", weights, **SHAPE, kind="Q8_0")
    values = weights["blk.1.ffn_down"]
    assert np.array_equal(quality.weights(first, "blk.1.ffn_down.weight"), values)
    blocks = values.reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float32)
    stored = scale.astype(np.float16).astype(np.float32)
    rounded = (np.round(blocks / scale) * stored).reshape(values.shape)
    assert np.allclose(quality.weights(eight, "blk.1.ffn_down.weight"), rounded, atol=1e-6)
    found = {error.name: error for error in quality.tensor_errors(first, eight, progress=False)}
    assert len(found) == 2 + 7 * SHAPE["layers"]  # matrices only
    error = found["blk.1.ffn_down.weight"]
    assert (error.layer, error.role, error.type) == (1, "ffn_down", "Q8_0")
    assert error.rms == pytest.approx(math.sqrt(((rounded - values) ** 2).mean()), rel=1e-4)
    assert error.relative_rms == pytest.approx(error.rms / math.sqrt((values**2).mean()), rel=1e-4)
    with pytest.raises(QualityError, match="no tensor 'blk.1.ffn_dwn.weight'. Similar: blk.1.ffn_down.weight"):
        quality.weights(first, "blk.1.ffn_dwn.weight")


def test_what_cannot_be_compared_is_said(tiny, tmp_path, cache):
    first = tiny["first"][0]
    for wrong, message in (
        ({"paths": []}, "nothing to compare"),
        ({"paths": [tmp_path / "no.gguf"]}, "There is no file .*no.gguf"),
        ({"paths": [first], "n_ctx": 4}, "n_ctx=4 must be"),
        ({"paths": [first], "max_chunks": 0}, "max_chunks=0 must be"),
        ({"paths": [first], "text": " "}, "must be the text itself"),
    ):
        with pytest.raises(QualityError, match=message):
            quality.compare(**wrong)
    with pytest.raises(QualityError, match="Unknown quantization 'Q4_K_X'.*Did you mean"):
        quality.requantize(first, "Q4_K_X")
    with pytest.raises(QualityError, match="first.gguf cannot be written over itself. Pass out="):
        quality.requantize(first, "Q8_0", out=first)
    with pytest.raises(QualityError, match="exists already.*force=True"):
        quality.requantize(first, "Q8_0", out=__file__)
    with pytest.raises(QualityError, match=f"{tmp_path.name} is a folder.*out=.*first-Q8_0.gguf"):
        quality.requantize(first, "Q8_0", out=tmp_path)
    with pytest.raises(QualityError, match="needs an importance matrix.*blk.0.attn_q.weight would get IQ2_XXS"):
        quality._check_imatrix({"blk.0.attn_q.weight": "IQ2_XXS"}, "IQ2_XXS")
    with pytest.raises(QualityError, match="importance matrix"):
        quality._check_imatrix({"blk.0.attn_q.weight": "Q2_K"}, "Q2_K_S")
    quality._check_imatrix({"blk.0.attn_q.weight": "Q2_K", "output.weight": "IQ3_XXS"}, "Q2_K")


def test_a_reference_of_the_same_name_is_another_file(tiny, tmp_path, cache, monkeypatch):
    twin = tmp_path / "first.gguf"
    twin.write_bytes(tiny["second"][0].read_bytes())
    monkeypatch.setattr(quality, "work", lambda job, tell: row(job.name, 1, 0.0, bits_per_weight=len(job.path)))
    found = quality.compare([tiny["first"][0]], RANDOM_TEXT, reference=twin)
    assert found.reference.name == "first (2)" and [row.name for row in found] == ["first"]
    assert found.reference.bits_per_weight == len(str(twin.resolve()))


def test_part_of_a_model_is_refused(tmp_path, monkeypatch):
    class Header:
        metadata, n_params = {}, 0

    words = tmp_path / "words.gguf"
    words.touch()
    monkeypatch.setattr("helpers.gguf.read_header", lambda path, progress: Header)
    with pytest.raises(QualityError, match="words.gguf holds no weights.*Give the file of a whole model"):
        quality.compare([words])
    Header.metadata, Header.n_params = {"split.count": 3}, 1024
    with pytest.raises(QualityError, match="one of 3 parts.*llama-gguf-split --merge"):
        quality.requantize(words, "Q8_0")


def test_the_scores_count_as_memory(monkeypatch):
    from helpers import models

    header = SimpleNamespace(spec=models.get("gemma-3-1b"), tensor_types="Q8_0")
    rows = N_CTX // 2 * 4 * header.spec.n_vocab
    needs = memory.estimate(header.spec, "Q8_0", n_ctx=N_CTX, n_outputs_max=N_CTX // 2).total_bytes
    job = SimpleNamespace(name="gemma", n_ctx=N_CTX)
    monkeypatch.setattr(hardware, "detect", lambda: SimpleNamespace(ram_available_bytes=needs + rows))
    with pytest.raises(QualityError, match="gemma was not loaded.*Close other programs"):
        quality._check_memory(job, header)
    monkeypatch.setattr(hardware, "detect", lambda: SimpleNamespace(ram_available_bytes=needs + 7 * rows))
    quality._check_memory(job, header)


def test_scores_that_are_no_numbers_are_refused_and_what_can_never_come_is_not():
    scores = quality_child.Scores(None)
    scores.add(np.full((2, 4), np.nan, np.float32), [1, 2], 0)
    with pytest.raises(Refused, match="not numbers"):
        scores.result()
    logits = np.array([[1.0, 2.0, -np.inf, 0.5]] * 3, np.float32)
    reference = SimpleNamespace(log_probabilities=lambda start, end: np.array([[-1.0, -0.6, -17.0, -2.0]] * 3))
    scores = quality_child.Scores(reference)
    scores.add(logits, [0, 1, 3], 0)
    assert 0 < scores.result()["kld_mean"] < 1


def test_a_copy_gets_the_quantization_into_its_name():
    assert quality._beside(Path("a/SmolLM2.Q4_1.gguf"), "Q2_K") == Path("a/SmolLM2-Q2_K.gguf")
    assert quality._beside(Path("model-q4_k_m.gguf"), "Q8_0") == Path("model-Q8_0.gguf")
    assert quality._beside(Path("model.gguf"), "Q8_0") == Path("model-Q8_0.gguf")


def test_short_rows_fall_back(monkeypatch):
    class Header:
        metadata = {"general.file_type": formats.quantization("Q4_K_M").file_type}
        tensors = [
            quality_tensor("token_embd.weight", (576, 100), "Q8_0"),
            quality_tensor("blk.0.attn_q.weight", (576, 576), "Q5_0"),
            quality_tensor("blk.0.ffn_down.weight", (1536, 576), "Q6_K"),
            quality_tensor("blk.0.attn_norm.weight", (576,), "F32"),
        ]

    assert quality._fallback_share(Header) == pytest.approx(2 / 3)


def quality_tensor(name, shape, kind):
    from helpers.gguf import TensorInfo

    return TensorInfo(name, shape, kind, 0, formats.tensor_bytes(kind, shape))


def test_the_disk_is_checked_before(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 300 * 2**20})()
    monkeypatch.setattr(quality.shutil, "disk_usage", lambda _: usage)
    quality._check_disk(tmp_path / "x.gguf", 90 * 2**20, "x")
    with pytest.raises(QualityError, match="Not enough disk space for x: it needs 101.0 MiB"):
        quality._check_disk(tmp_path / "x.gguf", 101 * 2**20, "x")


def test_a_failed_write_leaves_nothing(tmp_path):
    target = tmp_path / "row.json"
    with pytest.raises(KeyboardInterrupt), quality.atomically(target) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    quality._save(row("a", 1, 0.5), target)
    assert quality._saved(target) == row("a", 1, 0.5)
    target.write_text(json.dumps({"name": "from another version"}))
    assert quality._saved(target) is None


def test_the_cache_is_where_one_says(tmp_path, monkeypatch, cache):
    assert quality.cache_folder() == cache
    assert quality.cache_folder(tmp_path) == tmp_path / "quality"
    monkeypatch.delenv("HELPERS_CACHE")
    assert quality.cache_folder().name == "quality"
    monkeypatch.setenv("HELPERS_CACHE", str(tmp_path / "cache"))
    quality._save(row("a", 1, 0.5), cache / "rows" / "a.json")
    assert quality.kept_bytes() > 100
    assert quality.forget() > 100
    assert quality.kept_bytes() == 0 and not cache.exists()


def test_files_may_go_while_the_cache_is_measured(cache, monkeypatch):
    for name in ("a", "b"):
        quality._save(row(name, 1, 0.5), cache / "rows" / f"{name}.json")
    kept, walk = quality.kept_bytes(), os.walk

    def slowly(folder):
        for parent, folders, names in walk(folder):
            if "b.json" in names:
                (cache / "rows" / "b.json").unlink()  # another process moves its finished file
            yield parent, folders, names

    monkeypatch.setattr(os, "walk", slowly)
    assert quality.kept_bytes() == kept / 2


def test_what_could_not_be_deleted_is_not_free(cache, monkeypatch):
    quality._save(row("a", 1, 0.5), cache / "rows" / "a.json")
    monkeypatch.setattr(quality.shutil, "rmtree", lambda *_, **__: None)  # as on Windows, where a file is in use
    assert quality.forget() == 0


# --- executors, without llama.cpp -------------------------------------------------------------------------------


def jobs_of(folder, names):
    return [quality.Job(n, f"{n}.gguf", str(folder / f"{n}.json"), "base", "", 64, 0, 1) for n in names]


def test_a_lost_job_is_tried_again_and_no_finished_one_is_lost(tmp_path, monkeypatch):
    tried = []

    def work(job):
        tried.append(job.name)
        if job.name == "lost":
            raise ConnectionError("the worker is gone")
        if job.name in ("once", "late") and tried.count(job.name) == 1:
            raise ConnectionError("the worker is gone")
        if job.name == "bad":
            raise QualityError("bad cannot be loaded")
        if job.name == "saved" or (job.name == "late" and tried.count("late") == 2):  # lost on the way back
            quality._save(row(job.name, 1, 0.1), job.row)
            raise ConnectionError("the worker is gone")
        return row(job.name, 1, 0.1)

    monkeypatch.setattr(quality, "work", work)
    jobs = jobs_of(tmp_path, ["good", "lost", "once", "bad", "saved", "late"])
    with ThreadPoolExecutor(1) as pool:
        finished, failed = quality._spread(pool, jobs, print)
    assert sorted(finished) == ["good", "late", "once", "saved"]
    assert failed == {"lost": "ConnectionError: the worker is gone", "bad": "bad cannot be loaded"}
    assert (tried.count("lost"), tried.count("bad"), tried.count("once")) == (2, 1, 2)


def test_a_broken_pool_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "work", lambda job: row(job.name, 1, 0.0))
    setting = quality._Setting("text", 64, None, 1, tmp_path)

    class Closing(ThreadPoolExecutor):
        """Takes the reference and one job, then no more."""

        taken = 0

        def submit(self, *args):
            self.taken += 1
            if self.taken > 2:
                raise RuntimeError("cannot schedule new futures after shutdown")
            return super().submit(*args)

    first, *jobs = jobs_of(tmp_path, ["ref", "a", "b"])
    with Closing(1) as pool, pytest.raises(Unfinished, match="1 of 2 files .* are kept; .*b: RuntimeError") as caught:
        quality._run(first, jobs, pool, False, (), setting)
    assert [row.name for row in caught.value.comparison] == ["a"]
    assert list(caught.value.failed) == ["b"]
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.comparison == caught.value.comparison and again.failed == caught.value.failed


def test_a_text_with_half_a_character_has_a_name_in_the_cache_too(tmp_path):
    assert quality._Setting("half \udc80", 64, None, 1, tmp_path).text == "half ?"


def test_jobs_and_errors_travel(tmp_path):
    (job,) = jobs_of(tmp_path, ["a"])
    assert pickle.loads(pickle.dumps((quality.work, job)))[1] == job
    error = pickle.loads(pickle.dumps(QualityError("no", "log")))
    assert (str(error), error.log) == ("no", "log")


# --- the quantizer ----------------------------------------------------------------------------------------------


class Interrupt:
    """A progress function that presses Ctrl-C, or kills the child, at the first tensor."""

    def __init__(self, monkeypatch, kill=False):
        self.children, self.kill = [], kill
        real = quality.Child

        def remembered(*args, **kwargs):
            self.children.append(real(*args, **kwargs))
            return self.children[-1]

        monkeypatch.setattr(quality, "Child", remembered)

    def __call__(self, fraction, tensor):
        if not self.kill:
            raise KeyboardInterrupt
        os.kill(self.children[-1].pid, signal.SIGKILL)


def test_the_child_is_gone_before_its_unfinished_file_is_deleted(tmp_path, monkeypatch):
    """Windows deletes no file that a living process has open."""
    closed = []

    class Busy:
        log_tail = send = lambda self, *_: ""

        def __init__(self, *_, **__):
            pass

        def receive(self, _):
            raise KeyboardInterrupt

        def close(self):
            closed.append(sorted(path.suffix for path in tmp_path.iterdir()))

    monkeypatch.setattr(quality, "Child", Busy)
    with (
        pytest.raises(KeyboardInterrupt),
        quality._llama("x") as ask,
        quality.atomically(tmp_path / "x.gguf") as part,
    ):
        ask({"do": "quantize", "out": str(part)})
    assert closed[0] == [".part"] and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_quantizer(tiny, tmp_path, cache, monkeypatch):
    source, weights = tiny["first"]
    out = tmp_path / "made" / "eight.gguf"
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the source is F32: nothing to warn of
        made = quality.requantize(source, "q8_0", out=out, progress=lambda *told: seen.append(told))
    assert made == out and list(out.parent.iterdir()) == [out]
    assert seen and seen[0][1] == "output.weight" and all(0 <= fraction < 1 for fraction, _ in seen)
    own = write_tiny(tmp_path / "own.gguf", weights, **SHAPE, kind="Q8_0")
    name = "blk.0.attn_q.weight"
    assert np.allclose(quality.weights(out, name), quality.weights(own, name), atol=1e-3)
    with pytest.warns(Requantized, match="a lesson, not a practice"):
        quality.requantize(out, "Q4_0", out=tmp_path / "four.gguf", progress=False)

    before = sorted(tmp_path.iterdir())
    interrupt = Interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        quality.requantize(source, "Q4_0", out=tmp_path / "five.gguf", progress=interrupt)
    assert sorted(tmp_path.iterdir()) == before and not interrupt.children[-1].alive
    if sys.platform != "win32":
        with pytest.raises(QualityError, match="eight.gguf|first.gguf: llama.cpp's process ended: killed by SIGKILL"):
            quality.requantize(source, "Q4_0", out=tmp_path / "five.gguf", progress=Interrupt(monkeypatch, kill=True))
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_matrix_of_importance_is_asked_for_and_other_models_are_refused(tiny, tmp_path, cache):
    wide = {**SHAPE, "width": 256, "ff": 256, "layers": 1}
    path = write_tiny(tmp_path / "wide.gguf", tiny_weights(3, **wide), **wide)
    with pytest.raises(QualityError, match="IQ2_XXS needs an importance matrix.*IQ4_XS, IQ3_S and Q2_K"):
        quality.requantize(path, "IQ2_XXS", progress=False)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(QualityError):
        quality.compare([broken], RANDOM_TEXT, n_ctx=N_CTX)
    with pytest.raises(QualityError, match="the text has 6 tokens for this model, one chunk needs 64.*longer text"):
        quality.compare([path], "Hello", n_ctx=N_CTX)


@pytest.mark.slow
def test_a_ladder_goes_on_where_it_was(tiny, cache):
    source, settings = tiny["first"][0], {"text": RANDOM_TEXT, "n_ctx": N_CTX, "max_chunks": 2}

    def interrupt(fraction, text):
        if text.startswith("Q4_0") and fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quality.ladder(source, ("Q8_0", "Q4_0"), progress=interrupt, **settings)
    rows = {path: path.stat().st_mtime_ns for path in (cache / "rows").iterdir()}
    assert len(rows) == 2  # the reference and Q8_0
    found = quality.ladder(source, ("Q8_0", "Q4_0"), progress=False, **settings)
    assert [row.quantization for row in found] == ["Q8_0", "Q4_0"]
    assert len(found.notes) == 1 and "quality.forget() deletes it" in found.notes[0]  # the source is F32
    assert 0 < found["Q8_0"].kld_mean < found["Q4_0"].kld_mean
    assert {path: path.stat().st_mtime_ns for path in rows} == rows
    assert not list(cache.rglob("*.part"))


@pytest.mark.slow
def test_a_cluster_of_two_workers_one_of_which_dies(tiny, cache, tmp_path):
    """Results are kept as they finish; the job of a killed worker is done by the other or by its successor."""
    distributed = pytest.importorskip("distributed")
    source = tiny["first"][0]
    long_text = RANDOM_TEXT * 40
    finished_before, dead, over = {}, [], threading.Event()

    def kill_a_busy_worker(client, pids):
        rows = []
        while len(rows) < 2 and not over.wait(0.02):  # the reference and one more
            rows = list((cache / "rows").glob("*.json"))
        while not dead and not over.wait(0.02):
            busy = [address for address, tasks in client.processing().items() if tasks]
            if busy:
                finished_before.update((path, path.stat().st_mtime_ns) for path in rows)
                os.kill(pids[busy[0]], signal.SIGKILL)
                dead.append(busy[0])

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        killer = threading.Thread(target=kill_a_busy_worker, args=(client, client.run(os.getpid)), daemon=True)
        killer.start()
        wanted = ("Q8_0", "Q5_0", "Q4_0", "Q5_1", "Q4_1")
        found = quality.ladder(
            source, wanted, long_text, executor=client.get_executor(), n_ctx=N_CTX, max_chunks=None, progress=False
        )
        over.set()
        killer.join(10)
        now = client.scheduler_info()["workers"]
    assert len(dead) == 1 and dead[0] not in now, "a worker was to die while it had a job"
    assert [row.quantization for row in found] == list(wanted)
    assert found["Q8_0"].kld_mean < found["Q5_0"].kld_mean < found["Q4_0"].kld_mean
    assert len(finished_before) >= 2
    assert all(path.stat().st_mtime_ns == changed for path, changed in finished_before.items())


@pytest.mark.slow
@pytest.mark.model
def test_a_rung_of_the_packaged_model(cache):
    with pytest.warns(Requantized, match="Q4_1, 5.74 bits a weight"):
        found = quality.ladder(quantizations=("Q8_0",), max_chunks=1, progress=False)
    row = found["Q8_0"]
    assert row.n_tokens == 255 and 0 < row.kld_mean < 0.02 and row.top1_agreement > 0.9
    assert row.bits_per_weight == pytest.approx(8.506, abs=0.001) and row.fallback_share == 0
    assert "itself quantized (Q4_1" in found.notes[0] and "itself quantized" in str(found)
    assert found.reference.name == download.default_model().stem
