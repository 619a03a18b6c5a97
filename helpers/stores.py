"""Model files that are on this disk already: Ollama's store, LM Studio's folder, the hub's cache, others. Reads only.

Every tool keeps the same GGUF files, under other names. Ollama's have none at all: `manifests/` says which file in
`blobs/` belongs to which tag. Its format, and the folders of LM Studio, GPT4All and Jan, are taken from their
documentation; none of these programs was run by the authors.
"""

import contextlib
import hashlib
import html
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import download, fit, formats, hardware, memory, units

OLLAMA_REGISTRY, OLLAMA_LIBRARY = "registry.ollama.ai", "library"
OLLAMA_KIND = "application/vnd.ollama.image."
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
NO_WEIGHTS = "a cloud model runs on Ollama's computers; other formats exist too"
MOST_MANIFEST_BYTES = units.MIB
MOST_FILES = 20_000  # a folder with more is somebody's whole disk
SAMPLE_BYTES, SAMPLES = 64 * units.KIB, 16
FILE_TYPES = {row.file_type: row.name for row in formats.QUANTIZATIONS.values()}
CARD_STYLE = "text-align:left; vertical-align:top; padding: 2px 10px 2px 0"


@dataclass(frozen=True)
class Place:
    """A folder in which a tool keeps its models; `kind` is "ollama", "hub" or "folder"."""

    tool: str
    folder: Path
    kind: str = "folder"


@dataclass(frozen=True)
class OllamaModel:
    """One tag of Ollama's store: `path` is the blob with the weights, `parameters` what its Modelfile sets."""

    name: str
    path: Path
    sha256: str
    size_bytes: int
    parameters: dict = field(default_factory=dict)
    vision_path: Path | None = None
    note: str = ""

    def __str__(self):
        note = self.note and f": {self.note}"
        return units.printable(f"{self.name} ({units.show(self.size_bytes)}) is {self.path.name}{note}")


@dataclass(frozen=True)
class LocalModel:
    """One model file, wherever it lies: `known_as` are (tool, its name there), `paths` the copies on this disk.

    `size_bytes` is one copy's length, all parts of a split model included. `quantization` is "" where the file does
    not say. `verdict` is None for a file that is no language model, or that cannot be read; `note` says why.
    """

    name: str
    paths: tuple[Path, ...]
    known_as: tuple[tuple[str, str], ...]
    size_bytes: int
    n_copies: int = 1
    quantization: str = ""
    architecture: str = ""
    n_ctx_train: int = 0
    sha256: str = ""
    verdict: object = field(default=None, repr=False)
    note: str = ""

    @property
    def path(self):
        """The file to load (the first part of a split model)."""
        return self.paths[0]

    @property
    def wasted_bytes(self):
        """What further copies of the same content take on the disk."""
        return (self.n_copies - 1) * self.size_bytes

    def cells(self):
        """The row of the table: name, size, quantization, where, verdict."""
        where = ", ".join(dict.fromkeys(tool for tool, _ in self.known_as))
        copies = f" ({self.n_copies} copies)" if self.n_copies > 1 else ""
        says = f"{fit.SIGNS[self.verdict.status]} {fit.SAYS[self.verdict.status]}" if self.verdict else ""
        cells = self.name, units.show(self.size_bytes), self.quantization or "?", where + copies, says or self.note
        return tuple(units.printable(cell, 1000) for cell in cells)

    def __str__(self):
        return "  ".join(self.cells())


class LocalModels(tuple):
    """The model files on this disk; `notes` are sentences about what could not be read."""

    notes = ()

    def __str__(self):
        rows = [model.cells() for model in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines = lines or ["No GGUF file was found in the places where these tools keep them."]
        return "\n".join([line.rstrip() for line in lines] + [f"Note: {units.printable(note)}" for note in self.notes])

    __repr__ = __str__

    def _repr_html_(self):
        head = "".join(f'<th scope="col" style="{CARD_STYLE}">{title}</th>' for title in HEAD)
        cell = f'<td style="{CARD_STYLE}">'
        rows = (f"<tr>{''.join(f'{cell}{html.escape(text)}</td>' for text in model.cells())}</tr>" for model in self)
        notes = "".join(f"<p>Note: {html.escape(units.printable(note))}</p>" for note in self.notes)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        return (table if self else f"<p>{html.escape(str(LocalModels()))}</p>") + notes


HEAD = ("Model", "Size", "Quantization", "Where", "On this machine")


def places(environ=None, home=None, system=None):
    """The folders in which these tools keep models on this system, whether they exist or not.

    Variables that people set count first: `OLLAMA_MODELS`, `HF_HUB_CACHE`, `HF_HOME`, `LLAMA_CACHE`.

    >>> [str(place.folder) for place in places({}, Path("/home/ada"), "linux") if place.tool == "Ollama"]
    ['/home/ada/.ollama/models', '/usr/share/ollama/.ollama/models']
    """
    environ = os.environ if environ is None else environ
    home, system = Path.home() if home is None else Path(home), system or sys.platform
    shared, cache = _data_folder(environ, home, system), Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    found = [Place("Ollama", folder, "ollama") for folder in _ollama_folders(environ, home, system)]
    found += [Place("LM Studio", folder) for folder in lm_studio_folders(environ, home, system)]
    hub = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    hub = hub or Path(environ.get("HF_HOME") or cache / "huggingface") / "hub"
    found.append(Place("hub cache", Path(hub).expanduser(), "hub"))
    llama = {"darwin": home / "Library" / "Caches", "win32": Path(environ.get("LOCALAPPDATA") or home)}
    llama = environ.get("LLAMA_CACHE") or llama.get(system, cache) / "llama.cpp"
    found.append(Place("llama.cpp cache", Path(llama)))
    local = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local") if system == "win32" else shared
    found += [Place("GPT4All", local / "nomic.ai" / "GPT4All"), Place("GPT4All", home / ".cache" / "gpt4all")]
    jan = [shared / "Jan" / "data", home / ".config" / "Jan" / "data"]
    found += [Place("Jan", folder / "llamacpp" / "models") for folder in jan]
    found += [Place("Jan", folder / "models") for folder in (*jan, home / "jan")]
    return tuple(found)


def _data_folder(environ, home, system):
    if system == "darwin":
        return home / "Library" / "Application Support"
    if system == "win32":
        return Path(environ.get("APPDATA") or home / "AppData" / "Roaming")
    return Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")


def _ollama_folders(environ, home, system):
    if environ.get("OLLAMA_MODELS", "").strip("\"' "):
        return [Path(environ["OLLAMA_MODELS"].strip("\"' ")).expanduser()]
    service = [Path("/usr/share/ollama/.ollama/models")] if system.startswith("linux") else []
    return [home / ".ollama" / "models", *service]


def lm_studio_folders(environ=None, home=None, system=None):
    """Where LM Studio keeps models: what its settings name (`downloadsFolder`), or `models` in its home folder.

    Its home is the folder named in `~/.lmstudio-home-pointer`, else `~/.lmstudio`, formerly `~/.cache/lm-studio`.
    """
    environ = os.environ if environ is None else environ
    home, system = Path.home() if home is None else Path(home), system or sys.platform
    homes = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    with contextlib.suppress(OSError, UnicodeDecodeError, IndexError):
        homes.insert(0, Path((home / ".lmstudio-home-pointer").read_text("utf-8").strip().splitlines()[0].strip()))
    app = home / ".config" if system.startswith("linux") else _data_folder(environ, home, system)
    found = []
    for folder in (*homes, app / "LM Studio"):
        settings = _json(folder / "settings.json")
        chosen = settings.get("downloadsFolder") if isinstance(settings, dict) else None
        if isinstance(chosen, str) and chosen:
            found.append(Path(chosen).expanduser())
    return list(dict.fromkeys([*found, *(folder / "models" for folder in homes)]))


def _json(path):
    """What a small JSON file holds; None when it is missing, too large or damaged."""
    try:
        if path.stat().st_size > MOST_MANIFEST_BYTES:
            return None
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


# --- Ollama's store ------------------------------------------------------------------------------------------------


def ollama_models(folder=None):
    """What Ollama has downloaded, read from its store; its server may be off.

    Parameters
    ----------
    folder : path, optional
        The folder that holds `manifests` and `blobs`; default: `OLLAMA_MODELS`, or the usual places of this system.

    Returns
    -------
    list of OllamaModel
        By name. A tag whose weights are not here (a cloud model, an interrupted download) has a `note` that says so.
    """
    folders = _ollama_folders(os.environ, Path.home(), sys.platform) if folder is None else [Path(folder).expanduser()]
    found = {}
    for store in folders:
        for manifest in _manifests(store / "manifests"):
            model = _ollama_model(store, manifest)
            found.setdefault(model.name, model)
    return sorted(found.values(), key=lambda model: model.name)


def lay_out(path, folder, name):
    """Copy a GGUF file into `folder` as Ollama would keep it, under a name such as "smollm2:135m"; the manifest's path.

    For lessons and tests: Ollama's own store has more layers (template, parameters, licence), and is left alone.
    """
    sha256, (model, _, tag) = download.sha256_of(path), name.partition(":")
    blob = Path(folder, "blobs", f"sha256-{sha256}")
    manifest = Path(folder, "manifests", OLLAMA_REGISTRY, OLLAMA_LIBRARY, model, tag or "latest")
    for file in (blob, manifest):
        file.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}-partial")
    shutil.copyfile(path, part)
    part.replace(blob)
    layer = {"mediaType": f"{OLLAMA_KIND}model", "digest": f"sha256:{sha256}", "size": blob.stat().st_size}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}, indent=2), encoding="utf-8")
    return manifest


def _manifests(folder):
    """Files `<registry>/<namespace>/<name>/<tag>`."""
    with contextlib.suppress(OSError):
        yield from sorted(path for path in folder.glob("*/*/*/*") if path.is_file() and not path.name.startswith("."))


def _ollama_model(store, manifest):
    registry, namespace, name, tag = manifest.relative_to(store / "manifests").parts
    name = f"{name}:{tag}"
    if (registry, namespace) != (OLLAMA_REGISTRY, OLLAMA_LIBRARY):
        name = f"{namespace}/{name}"
    if registry != OLLAMA_REGISTRY:
        name = f"{registry}/{name}"
    layers = _layers(_json(manifest))
    if layers is None:
        return OllamaModel(name, manifest, "", 0, note="its manifest is damaged; `ollama pull` it again")
    weights = layers.get("model")
    if weights is None:
        return OllamaModel(name, manifest, "", 0, note=f"its manifest names no GGUF file ({NO_WEIGHTS})")
    path, sha256 = _blob(store, weights)
    parameters = _json(_blob(store, layers["params"])[0]) if "params" in layers else {}
    vision = _blob(store, layers["projector"])[0] if "projector" in layers else None
    note = "" if os.path.isfile(path) else "its weights are missing; `ollama pull` it again"
    size = path.stat().st_size if not note else 0
    return OllamaModel(name, path, sha256, size, parameters if isinstance(parameters, dict) else {}, vision, note)


def _layers(manifest):
    """Kind ("model", "template", "params", ...) -> digest; None for something that is no manifest."""
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return None
    found = {}
    for layer in layers:
        kind, digest = str(layer.get("mediaType", "")), DIGEST.fullmatch(str(layer.get("digest", "")))
        if kind.startswith(OLLAMA_KIND) and digest:  # only digests of this form: they become part of a path
            found.setdefault(kind.removeprefix(OLLAMA_KIND), digest[1])
    return found


def _blob(store, sha256):
    """(path, SHA-256) of a blob; stores from before 2024 have a colon in the name where there is now a hyphen."""
    new, old = store / "blobs" / f"sha256-{sha256}", store / "blobs" / f"sha256:{sha256}"
    return (old if os.path.exists(old) and not os.path.exists(new) else new), sha256


# --- every GGUF file on this disk ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    tool: str
    name: str
    path: Path
    size_bytes: int
    identity: tuple
    sha256: str = ""
    parts: int = 1


def local_models(folders=None, machine=None, n_ctx=4096, progress=True):
    """Every GGUF file on this disk that Ollama, LM Studio, the hub's clients, llama.cpp, GPT4All or Jan keep.

    Copies of the same content are one row. A SHA-256 that a tool put into the file's name is believed; files of equal
    length are compared by samples, and only those that still look alike are hashed in full.

    Parameters
    ----------
    folders : path or sequence of paths, optional
        Further folders to search, subfolders included.
    machine : hardware.Machine, optional
        The machine to judge by; default: this one.
    n_ctx : int
        Tokens of context for the verdict.
    progress : bool
        A bar when hashing takes over 2 s.

    Returns
    -------
    LocalModels
        A tuple of `LocalModel`, the largest first, that shows itself as a table; `.notes` says what was left out.

    Notes
    -----
    *When it misleads*: a model in a format other than GGUF (MLX, safetensors) is not seen, nor one in a folder that
    this user may not read. The verdict is the formula's, for the free memory of this moment.
    """
    machine = machine or hardware.detect()
    folders = [folders] if isinstance(folders, (str, Path)) else folders
    notes, found = [], _packaged()
    for place in (*places(), *(Place("folder", Path(folder).expanduser()) for folder in folders or ())):
        found += _search(place, notes)
        if place.tool == "folder" and not os.path.isdir(place.folder):
            notes.append(f"{place.folder} is no folder.")
    with download.late_bar(progress, "Comparing files of equal length") as tell:
        groups = _same_content(found, tell)
    models = LocalModels(
        sorted((_described(group, machine, n_ctx) for group in groups), key=lambda m: (-m.size_bytes, m.name))
    )
    models.notes = tuple(dict.fromkeys(notes))
    return models


def _packaged():
    try:
        path = download.default_model()
    except download.DownloadError:
        return []
    found = _file(Place("this kit", path.parent), path.stem, path, download.DEFAULT_SHA256)
    return [found] if found else []


def _search(place, notes):
    if not os.access(place.folder, os.R_OK | os.X_OK):
        try:
            is_there = bool(place.folder.stat())
        except OSError as error:  # closed may be the folder above, as the home of Ollama's own user is on Ubuntu
            is_there = isinstance(error, PermissionError)
        if is_there:
            notes.append(f"{place.tool}: {place.folder} may not be read by you; ask its owner for the right to read.")
        return []
    if place.kind == "ollama":
        stored = ollama_models(place.folder)
        notes += [f"Ollama: {model.name}: {model.note}." for model in stored if model.note]
        whole = [model for model in stored if not model.note]
        vision = [(f"{model.name} (vision)", model.vision_path, "") for model in whole if model.vision_path]
        rows = [(model.name, model.path, model.sha256) for model in whole] + vision
    else:
        rows = [(path.stem, path, "") for path in _gguf_files(place, notes)]
    return [found for name, path, sha256 in rows if (found := _file(place, name, path, sha256))]


def _gguf_files(place, notes):
    """GGUF files below a folder; links are followed, each folder once; of a split model the first part."""
    seen, count = set(), 0
    for folder, subfolders, names in os.walk(place.folder, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        count += len(names)
        if count > MOST_FILES:
            notes.append(f"{place.folder} holds more than {MOST_FILES:,} files: name a smaller folder.")
            return
        for name in sorted(names):
            if name.lower().endswith(".gguf") and name == download.split_names(name)[0]:
                yield Path(folder, name)


def _file(place, name, path, sha256):
    """A `_Found`, or None for something incomplete: a link to a blob that is gone, a split model without a part."""
    try:
        status, paths = path.stat(), _parts(path)
        size_bytes = sum(part.stat().st_size for part in paths)
        if place.kind == "hub" and len(paths) == 1:
            blob = path.resolve().name  # the hub names the blob of a large file after its content
            sha256 = blob if re.fullmatch(r"[0-9a-f]{64}", blob) else ""
            name = f"{download.repo_of(path, place.folder)}/{path.name}"
        identity = (status.st_dev, status.st_ino)
        return _Found(place.tool, name, path, size_bytes, identity, sha256, len(paths)) if path.is_file() else None
    except OSError:
        return None


def _parts(path):
    """All files of a model, whether they are there or not."""
    return [path.with_name(name) for name in download.split_names(path.name)]


def _same_content(found, tell):
    """Groups of `_Found` with the same content: the same file, the same SHA-256, else compared by reading."""
    by_file = {}
    for one in found:
        by_file.setdefault(one.identity, []).append(one)
    files = [_merged(group) for group in by_file.values()]
    by_size = {}
    for file in files:
        by_size.setdefault((file[0].size_bytes, file[0].parts), []).append(file)
    groups = []
    for alike in by_size.values():
        groups += _split_by_content(alike, tell) if len(alike) > 1 else [[alike[0]]]
    return groups


def _merged(group):
    sha256 = next((one.sha256 for one in group if one.sha256), "")
    return [replace(one, sha256=sha256) for one in group]


def _split_by_content(files, tell):
    """Files of one length, grouped by content; each is a list of `_Found` that are the same file on the disk."""
    by_content = {}
    for file in files:
        try:
            mark = _fingerprint(file[0].path)
        except OSError:  # it may not be read, or went away: like no other, and `_described` says what is wrong
            mark = file[0].path
        by_content.setdefault(mark, []).append(file)
    groups = []
    for alike in by_content.values():
        by_hash = {}
        for file in alike:
            sha256 = file[0].sha256 or (_sha256(file[0], tell) if len(alike) > 1 else "")
            by_hash.setdefault(sha256, []).append([replace(one, sha256=sha256) for one in file])
        groups += by_hash.values()
    return groups


def _fingerprint(path):
    """A hash of the start, the end and samples in between: different means different content, equal means perhaps."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek(max(size - SAMPLE_BYTES, 0) * i // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()


def _sha256(found, tell):
    """The SHA-256 of a file; for a split model, of all its parts one after the other."""
    digest = hashlib.sha256()
    for path in _parts(found.path):
        download.feed(digest, path, tell)
    return digest.hexdigest()


def _described(group, machine, n_ctx):
    """One `LocalModel` for a group of files with the same content."""
    from . import gguf  # with it comes numpy, which looking for servers does without

    everyone = [one for file in group for one in file]
    first = min(everyone, key=lambda one: (one.tool == "folder", one.tool, one.name))
    known_as = tuple(dict.fromkeys((one.tool, one.name) for one in everyone))
    paths = (first.path, *(file[0].path for file in group if first not in file))
    model = LocalModel(first.name, paths, known_as, first.size_bytes, len(group), sha256=first.sha256)
    try:
        header = gguf.read_header(first.path)
    except gguf.GGUFError as error:
        return replace(model, note=str(error))
    kind = header.metadata.get("general.type", "model")
    architecture = str(header.metadata.get("general.architecture", ""))
    model = replace(model, quantization=quantization_of(header), architecture=architecture)
    if architecture == "clip" or kind in ("mmproj", "adapter"):
        what = "an adapter (LoRA)" if kind == "adapter" else "the part of a model that sees images or hears"
        return replace(model, note=f"{what}, loaded beside a language model")
    try:
        verdict = fit.judge(_estimate(header, first.size_bytes, n_ctx), machine)
        return replace(model, verdict=verdict, n_ctx_train=header.spec.n_ctx_train)
    except (gguf.GGUFError, ValueError) as error:
        return replace(model, note=str(error))


def _estimate(header, size_bytes, n_ctx):
    """The closed form; for a family that it does not know, the weights and the process around them."""
    for known in (header.tensor_types, size_bytes):
        with contextlib.suppress(ValueError, KeyError):
            return memory.estimate(header.spec, known, n_ctx=n_ctx)
    note = f"No formula here knows the family {header.spec.architecture}: only its weights are counted, it needs more."
    return memory.Estimate(size_bytes, 0, 0, 0, memory.PROCESS_BYTES, "formula", assumptions=(note,), name=header.name)


def quantization_of(header):
    """What a GGUF file calls its quantization (`general.file_type`), "" when it does not say.

    *When it misleads*: the number is what the maker's program wrote; `header.tensor_types` says what each tensor has.
    """
    number = header.metadata.get("general.file_type")
    return FILE_TYPES.get(number, "") if isinstance(number, int) else ""
