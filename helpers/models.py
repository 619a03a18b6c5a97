"""The catalogue (data/models.toml) -> ModelSpec: shapes, licences, names elsewhere, the source of every figure."""

import difflib
import functools
import sys
from dataclasses import fields
from pathlib import Path

from .architectures import ModelSpec

CATALOGUE = Path(__file__).with_name("data") / "models.toml"
FIELDS = {field.name for field in fields(ModelSpec)}


@functools.cache
def _tables():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))


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
    return sorted(_specs(), key=lambda name: _specs()[name].n_params)


def get(name):
    """The `ModelSpec` called `name` (any case; spaces, underscores and hyphens alike).

    Raises `KeyError` naming the near matches.

    >>> get("llama-3.1-8b").n_params
    8030261312
    """
    key = str(name).strip().lower().replace("_", "-").replace(" ", "-")
    if key in _specs():
        return _specs()[key]
    near = difflib.get_close_matches(key, _specs(), n=3, cutoff=0.4)
    hint = f"Near matches: {', '.join(near)}." if near else "models.names() lists them all."
    raise KeyError(f"No model called {name!r} in the catalogue. {hint}")


def published_params(name):
    """The exact parameter count that somebody published and where it was read, or None when none was found.

    >>> published_params("tinyllama-1.1b")[0]
    1100048384
    """
    table = _tables()[get(name).name]
    return (table["n_params"], table["n_params_from"]) if "n_params" in table else None
