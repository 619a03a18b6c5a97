"""The catalogue (data/models.toml) -> ModelSpec: shapes, licences, names elsewhere, the source of every figure."""

import difflib
import functools
import sys
from dataclasses import fields
from pathlib import Path

from .architectures import ModelSpec

DATA = Path(__file__).with_name("data")
FIELDS = {field.name for field in fields(ModelSpec)}


@functools.cache
def _toml(name):
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((DATA / name).read_text(encoding="utf-8"))


def _tables():
    return _toml("models.toml")


@functools.cache
def _specs():
    return {name: _spec(name, table) for name, table in _tables().items()}


def _spec(name, table):
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items() if key in FIELDS}
    return ModelSpec(name=name, **known)


def names():
    """All model names of the catalogue, smallest first.

    >>> names()[0]
    'smollm2-135m'
    """
    return list(_sorted_names())


@functools.cache
def _sorted_names():
    return sorted(_specs(), key=lambda name: _specs()[name].n_params)


def get(name):
    """The `ModelSpec` called `name` (any case; spaces, underscores and hyphens alike), or by its Ollama tag.

    Raises `KeyError`: for a name that means no model it says which one is meant, and why; else the near matches.

    >>> get("llama-3.1-8b").n_params
    8030261312
    >>> get("qwen2.5:7b").name
    'qwen2.5-7b'
    """
    spec, explanation, is_wrong = _look_up(name)
    if is_wrong:
        raise KeyError(f"There is no model called {name!r}. {explanation} Type models.get({spec.name!r}).")
    return spec


def resolve(name):
    """`(ModelSpec, explanation)`: as `get`, but a wrong name gives the right model and says why.

    >>> resolve("Gemma 2 4B")[0].name
    'gemma-2-2b'
    >>> resolve("mistral:7b")[1]
    "mistral:7b is Ollama's name for Mistral 7B v0.3; it serves Q4_K_M."
    """
    return _look_up(name)[:2]


def _look_up(name):
    """(spec, explanation, whether the name was wrong)."""
    key = _key(name)
    if key in _specs():
        return _specs()[key], "", False
    tags = _ollama_tags()
    if key in tags:
        spec = tags[key]
        serves = f"; it serves {spec.ollama_quantization}" if spec.ollama_quantization else ""
        note = f"; {spec.ollama_note}" if spec.ollama_note else ""
        return spec, f"{str(name).strip()} is Ollama's name for {spec.title}{serves}{note}.", False
    for wrong, table in _toml("names.toml").items():
        if key in map(_key, (wrong, *table.get("also", ()))):
            return _specs()[table["means"]], table["why"], True
    near = difflib.get_close_matches(key, _specs(), n=3, cutoff=0.4)
    hint = f"Near matches: {', '.join(near)}." if near else "models.names() lists them all."
    raise KeyError(f"No model called {name!r} in the catalogue. {hint}")


def _key(name):
    return str(name).strip().lower().replace("_", "-").replace(" ", "-")


@functools.cache
def _ollama_tags():
    return {_key(spec.ollama): spec for spec in _specs().values() if spec.ollama}


def published_params(name):
    """The exact parameter count that somebody published and where it was read, or None when none was found.

    >>> published_params("tinyllama-1.1b")[0]
    1100048384
    """
    table = _tables()[get(name).name]
    return (table["n_params"], table["n_params_from"]) if "n_params" in table else None


def published_loss(quantization):
    """How much worse a model predicts text at a quantization than at 16 bits, as a share (0.03: 3 %), or None.

    Formula: perplexity / perplexity at F16 - 1, of published figures of one model, Llama 3 8B, on one text.
    *When it misleads*: other models lose differently, small ones more; `published_quality` names the source.

    >>> round(published_loss("Q4_K_M"), 4)
    0.0279
    >>> published_loss("IQ1_S") is None
    True
    """
    figures = published_quality()["perplexity"]
    return figures[quantization] / figures["F16"] - 1 if quantization in figures else None


def published_quality():
    """The published figures behind `published_loss`: "perplexity" by quantization, "imatrix", "model", "source".

    >>> published_quality()["model"]
    'Llama 3 8B'
    """
    return _toml("quality.toml")
