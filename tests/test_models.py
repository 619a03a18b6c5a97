"""`helpers.models`: the catalogue."""

import pytest

from helpers import architectures, models

ASKED_FOR = {
    "smollm2-135m", "smollm2-360m", "smollm2-1.7b", "tinyllama-1.1b", "qwen2.5-0.5b", "qwen2.5-7b", "qwen3-0.6b",
    "qwen3-1.7b", "qwen3-8b", "llama-3.1-8b", "mistral-7b-v0.3", "gemma-2-2b", "gemma-3-1b", "phi-3-mini",
}  # fmt: skip


def test_the_models_a_course_needs_are_there():
    assert set(models.names()) >= ASKED_FOR


def test_smallest_first():
    counts = [models.get(name).n_params for name in models.names()]
    assert counts == sorted(counts)


@pytest.mark.parametrize("name", models.names())
def test_an_entry_is_complete(name):
    spec = models.get(name)
    architectures.check(spec)
    assert spec.name == name == name.lower()
    assert spec.title and spec.license and spec.languages
    assert spec.sources and all(source.strip() for source in spec.sources)
    assert spec.tokenizer in ("bpe", "spm")
    assert hash(spec) == hash(models.get(name))


@pytest.mark.parametrize("name", models.names())
def test_an_entry_has_no_misspelt_key(name):
    assert set(models._tables()[name]) <= models.FIELDS | {"n_params", "n_params_from"}


def test_a_published_count_has_its_source():
    for name in models.names():
        if models.published_params(name):
            count, source = models.published_params(name)
            assert count > 0 and source.strip()


@pytest.mark.parametrize("spelling", ["llama-3.1-8b", "Llama 3.1 8B", "LLAMA_3.1_8B", "  llama-3.1-8b "])
def test_spellings(spelling):
    assert models.get(spelling).name == "llama-3.1-8b"


@pytest.mark.parametrize("name", ["llama-3.1-8bb", "llama31-8b"])
def test_near_matches_are_named(name):
    with pytest.raises(KeyError, match="llama-3.1-8b"):
        models.get(name)


@pytest.mark.parametrize("name", ["", "zzzzzz", None, 7])
def test_far_names_say_where_to_look(name):
    with pytest.raises(KeyError, match=r"models\.names\(\)|Near matches"):
        models.get(name)


WRONG = {"Gemma 2 4B": "gemma-2-2b", "gemma2:7b": "gemma-7b", "deepseek-coder-v2:6.7b": "deepseek-coder-6.7b",
         "llama3:8b-instruct": "llama-3-8b", "qwen3:1.7b-fp8": "qwen3-1.7b"}  # fmt: skip


@pytest.mark.parametrize("wrong, right", WRONG.items())
def test_a_name_that_means_no_model_is_explained(wrong, right):
    spec, why = models.resolve(wrong)
    assert spec.name == right and len(why) > 40
    with pytest.raises(KeyError, match=right):
        models.get(wrong)


def test_every_wrong_name_means_a_model_and_has_a_source():
    for table in models._toml("names.toml").values():
        assert table["means"] in models.names() and table["why"].endswith((".", ")")) and table["source"]


def test_ollamas_names_resolve_to_one_model_each():
    tags = [models.get(name).ollama for name in models.names() if models.get(name).ollama]
    assert len(tags) == len(set(tags))
    for tag in tags:
        assert models.get(tag).ollama == tag
    assert models.resolve("smollm2:1.7b")[1].endswith("it serves Q8_0.")
