"""Hostile GGUF files: each is read or refused with a sentence, fast, in little memory; the parent outlives all of them.

`fuzz_gguf.py` makes the files (20,000 of them when it runs by itself); here are a share of them, with the cases that
once failed. Every new failure becomes a kept case: its seed and number, or its bytes.
"""

import collections
import struct
import time
import tracemalloc

import fuzz_gguf
import pytest

from helpers import gguf, runner, units

FAST, SLOW = 300, 1_500


def written(document, path):
    raw, file_bytes = document.file()
    path.write_bytes(raw)
    with path.open("r+b") as file:
        file.truncate(file_bytes)
    return path


def test_the_seeds_are_sound(tmp_path):
    for document in fuzz_gguf.seeds(whole=False):
        path = written(document, tmp_path / "seed.gguf")
        fuzz_gguf.use(path, lambda step: None)


def test_a_header_taken_apart_and_put_together_is_the_same(tmp_path):
    tiny = fuzz_gguf.tiny()
    again = fuzz_gguf.document_of(tiny.header(), "again", tiny.file()[1], most_elements=10**6)
    assert again.header() == tiny.header()


def test_mutations_reach_both_sides(tmp_path):
    found, did = collections.Counter(), set()
    for outcome, document in tried(range(FAST), tmp_path):
        found[outcome] += 1
        did.update(document.did)
    assert found["read"] > FAST / 20 and found["refused"] > FAST / 4
    assert len(did) > 20


def tried(numbers, folder, seed="test"):
    """Outcome and document of each mutation of the two seeds that need no other package."""
    corpus = fuzz_gguf.seeds(whole=False)
    for i in numbers:
        document = fuzz_gguf.case(seed, i, corpus)
        outcome, problem, _ = fuzz_gguf.try_one(document, folder / "hostile.gguf")
        assert not problem, f"{seed}/{i} {document.did}: {problem}"
        yield outcome, document


@pytest.mark.slow
@pytest.mark.skipif(not fuzz_gguf.LINUX, reason="limits and peaks of memory as Linux has them")
def test_mutations_of_real_headers_in_a_limited_process():
    done, failures = fuzz_gguf.drive(seed=20_261_122, start=0, n=SLOW)
    assert failures == []
    assert sum(done["outcomes"].values()) == SLOW
    assert done["one_file_bytes"] < fuzz_gguf.MOST_GROWTH_BYTES and done["cpu_s"] < fuzz_gguf.MOST_SECONDS


def other_error(path):
    raise KeyError("x")


def no_sentence(path):
    raise gguf.GGUFError("no")


def slow(path):
    sum(range(6_000_000))
    return real_read_header(path)


def greedy(path):
    return b"x" * (250 * units.MIB) and real_read_header(path)


real_read_header = gguf.read_header
HARM = {other_error: "KeyError", no_sentence: "without a clear sentence", slow: " took ", greedy: " of memory"}


@pytest.mark.skipif(not fuzz_gguf.LINUX, reason="limits and peaks of memory as Linux has them")
@pytest.mark.parametrize("harm", HARM)
def test_the_fuzzer_sees_harm(harm, monkeypatch):
    """A guard that cannot fail guards nothing: each kind of harm, done on purpose."""
    monkeypatch.setattr(gguf, "read_header", harm)
    monkeypatch.setattr(fuzz_gguf, "MOST_SECONDS", 0.02 if harm is slow else 60)
    monkeypatch.setattr(fuzz_gguf, "check_seeds", lambda corpus, path: None)
    told = []
    fuzz_gguf.run("harm", 0, 1, told.append, [fuzz_gguf.tiny()])
    assert [message for message in told if HARM[harm] in message.get("problem", "")], told


# --- kept cases ----------------------------------------------------------------------------------------------------


def renamed(name):
    """The tiny model as one of another family."""
    document = fuzz_gguf.tiny()
    for part in document.entries:
        key = part.fields[1][1]
        if key == b"general.architecture":
            part.fields[3:] = fuzz_gguf.text_fields("text", name)
        elif key.startswith(b"llama."):
            part.fields[:2] = fuzz_gguf.text_fields("key", name + key[len(b"llama") :])
    return document


@pytest.mark.parametrize("name", [b"9" * 5000, b"\x1b[2J", "\u202e".encode(), b"a\0b"])
def test_a_family_name_that_is_none(name, tmp_path):
    """Found by the fuzzer: it stood, as long as it was, in the sentence about an unknown family."""
    header = gguf.read_header(written(renamed(name), tmp_path / "renamed.gguf"))
    with pytest.raises(gguf.GGUFError, match="which is no name of one") as error:
        _ = header.spec
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_a_new_family_is_still_read(tmp_path):
    assert gguf.read_header(written(renamed(b"llama-5.moe"), tmp_path / "new.gguf")).spec.architecture == "llama-5.moe"


def heavy_vocabulary():
    """The most steps that are allowed, one by one: texts that are empty."""
    n = gguf.MAX_SLOW_STEPS - 1
    document = fuzz_gguf.tiny()
    body = ["array", struct.pack("<IQ", fuzz_gguf.STRING, n) + bytes(8 * n)]
    document.entries.append(fuzz_gguf.Part([*fuzz_gguf.text_fields("key", "w"), ["type", struct.pack("<I", 9)], body]))
    return document


def many_parts():
    document = fuzz_gguf.tiny()
    document.entries += [fuzz_gguf.entry(f"{i:04}" + "k" * 100, fuzz_gguf.UINT32, i) for i in range(4_000)]
    document.tensors += [
        fuzz_gguf.tensor(f"{i:05}", (8,), 0, document.data_bytes + 32 * i) for i in range(gguf.MAX_TENSORS - 30)
    ]
    document.data_bytes += 32 * (gguf.MAX_TENSORS - 30)
    return document


def many_short_lists():
    document = fuzz_gguf.tiny()
    words = ["x" * 60] * gguf.SHORT_STRINGS
    document.entries += [fuzz_gguf.entry(f"list {i}", fuzz_gguf.ARRAY, (fuzz_gguf.STRING, words)) for i in range(800)]
    return document


HEAVY = {"vocabulary": heavy_vocabulary, "parts": many_parts, "lists": many_short_lists}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_the_heaviest_that_is_believed_stays_within_the_limits(name, tmp_path):
    path = written(HEAVY[name](), tmp_path / "heavy.gguf")
    began = time.process_time()
    gguf.read_header(path)
    assert time.process_time() - began < 2 * fuzz_gguf.MOST_SECONDS  # the limit, and a busy machine's share
    tracemalloc.start()
    fuzz_gguf.use(path, lambda step: None)
    assert tracemalloc.get_traced_memory()[1] < fuzz_gguf.MOST_GROWTH_BYTES
    tracemalloc.stop()


def test_a_text_of_a_few_megabytes_may_stand_anywhere(tmp_path):
    for key in fuzz_gguf.KEYS:
        document = fuzz_gguf.tiny()
        document.entries = [part for part in document.entries if part.fields[1][1] != key.encode()]
        document.entries.append(fuzz_gguf.entry(key, fuzz_gguf.STRING, b"\x1b<b>" * 500_000))
        outcome, problem, _ = fuzz_gguf.try_one(document, tmp_path / "long.gguf")
        assert outcome in ("read", "refused", "no shape") and not problem, (key, problem)


# --- through llama.cpp ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.model
def test_a_sample_through_llama_leaves_the_parent_alive(capsys):
    assert fuzz_gguf.through_llama(seed=7, n=6)
    assert "0 failures; the parent lives" in capsys.readouterr().out
    assert runner.loaded() == []
