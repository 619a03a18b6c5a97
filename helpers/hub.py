"""The model hub: which GGUF repositories there are, what is in one, and what of it this computer can hold.

All of it before a download: sizes come from the hub's list of files, the model's shape from the header of one file, of
which only some MB are fetched. Requests are `huggingface_hub`'s own, so mirrors (`HF_ENDPOINT`), tokens, proxies and
the offline mode count here too.
"""

import html
import re
import threading
import time
from dataclasses import dataclass, field, replace

from . import download, fit, hardware, memory, units

ANSWER_WITHIN_S = 20
MAX_HEADERS = 6  # of one repository; each costs 2 to 10 MB of the line
TICK_S = 0.1
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q[1-9]|TQ[12])(?:_(?:K|\d|XXS|XS|NL|XXL|XL|S|M|L)(?![A-Za-z0-9]))+|B?F16|FP16|FP?32|MXFP4)"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
PIECE = re.compile(r"\.gguf[.-](?:split-?[a-z]+|part-?\d+of\d+)$", re.IGNORECASE)
KINDS = {  # kind: what it is for, in words
    "model": "",
    "vision": "vision part (mmproj): reads images or sound for the model, loaded beside it",
    "imatrix": "importance matrix: for making quantizations, not for running",
    "adapter": "adapter (LoRA): changes a model, is none",
    "piece": "a piece of a file that was cut: all pieces must be joined by hand first",
}
EXPAND = ["downloads", "gated", "gguf", "lastModified", "likes", "siblings"]
# A repository may hold models of several sizes. A shape read from one file is taken for another one only when it
# explains that file's size; quantizations of the same name differ by less than this between publishers.
SAME_MODEL_WITHIN = 0.15
OFFLINE = (
    "HF_HUB_OFFLINE switches the network off, so the hub was not asked. Unset it, or see what is on this computer: "
    "download.installed_models()."
)


class HubError(RuntimeError):
    """The hub could not be asked, or gave no usable answer; the message says why and what to do next."""


@dataclass(frozen=True)
class Repo:
    """A GGUF repository of the hub. `n_params` and `n_ctx_train` are what the hub says, 0 when it does not."""

    id: str
    downloads: int = 0
    likes: int = 0
    gated: bool = False
    n_params: int = 0
    n_ctx_train: int = 0
    architecture: str = ""
    modified: str = ""
    quantizations: tuple[str, ...] = ()

    def __str__(self):
        return _text_table([self])


@dataclass(frozen=True)
class File:
    """One thing to download: a GGUF file, or all parts of a split one; bytes are those of all parts.

    `verdict` is a `fit.Verdict` for this machine; None when nothing can be said. `source` says how we know:
    "header" (this file's own), "size" (its size, and the shape from another file of the repository), or "".
    """

    repo: str
    revision: str
    names: tuple[str, ...]
    size_bytes: int
    kind: str = "model"
    quantization: str = ""
    sha256: dict = field(default_factory=dict, repr=False)
    sizes: dict = field(default_factory=dict, repr=False)
    estimate: memory.Estimate | None = field(default=None, repr=False)
    verdict: fit.Verdict | None = None
    source: str = ""
    note: str = ""

    @property
    def name(self):
        return self.names[0]

    def __str__(self):
        return _text_table([self])


class Table(list):
    """Rows with a text and an HTML form; `note` stands below them."""

    def __init__(self, rows=(), note=""):
        super().__init__(rows)
        self.note = units.printable(note)

    def __str__(self):
        return "\n".join(filter(None, [_text_table(self) if self else "", self.note]))

    __repr__ = __str__

    def _repr_html_(self):
        note = "".join(f"<p>{html.escape(line)}</p>" for line in self.note.splitlines())
        return (_html_table(self) if self else "") + note


class Files(Table):
    """The rows of one repository, smallest first."""

    def __init__(self, rows=(), note="", repo="", revision="", gated=False):
        super().__init__(rows, note)
        self.repo, self.revision, self.gated = repo, revision, gated

    @property
    def models(self):
        return [row for row in self if row.kind == "model"]

    @property
    def best(self):
        """The largest model here that fits this machine, None when none does.

        *When it misleads*: the largest that fits is the slowest that fits, too.
        """
        return next((row for row in reversed(self.models) if row.verdict and row.verdict.status == "fits"), None)

    def find(self, quantization):
        """The row of a quantization, for example "Q4_K_M" (any case). Raises `HubError` naming those that are here."""
        for row in self.models:
            if row.quantization.upper() == quantization.upper():
                return row
        here = ", ".join(row.quantization or row.name for row in self.models) or "no model"
        raise HubError(f"{self.repo} has no {units.plain(quantization)}. It has {here}.")


# --- asking ---


def search(text="", limit=20):
    """GGUF repositories whose name contains the words of `text`, most downloaded first (a `Table` of `Repo`).

    Raises `HubError`: no network, offline mode, a hub that does not answer.

    *When it misleads*: downloads measure fame, not quality; parameters and context are what the repository claims.
    """
    words = " ".join(word for word in str(text).split() if word.lower() != "gguf")  # the filter says it already
    if not 1 <= limit <= 100:
        raise HubError(f"limit={limit} is no number of repositories: take 1 to 100.")
    api = _api()
    found = _asked(
        lambda: (
            _knock()
            or list(api.list_models(search=words or None, filter="gguf", sort="downloads", limit=limit, expand=EXPAND))
        ),
        f"the search for {units.plain(words)!r}",
    )
    rows = [_repo(info) for info in found if REPO.fullmatch(str(info.id))]
    if not rows:
        return Table(note=f"No GGUF repository has {units.plain(words)!r} in its name. Try fewer words.")
    return Table(rows, note="See what is in one: hub.files(rows[0].id)")


def files(repo_id, revision=None, machine=None, n_ctx=8192, headers="one", progress=True, **settings):
    """What is in a repository, what it needs at `n_ctx` tokens and whether this computer can hold it (`Files`).

    Parameters
    ----------
    repo_id : str
        "owner/name", or the address of its page.
    revision : str, optional
        A branch, tag or commit; without it the newest commit, whose 40 digits every row then has.
    machine : hardware.Machine, optional
        Another computer to judge by.
    n_ctx, **settings
        As in `memory.estimate`.
    headers : "one", "all" or "none"
        How many files' headers to read. One tells the shape; a file whose size it does not explain is read as well.

    Raises
    ------
    HubError
        With one sentence about what went wrong and one about what to do. A header that cannot be read (gated, no
        ranges) is no error: the rows then say what is known.

    Notes
    -----
    Weights are those of the tensors where this file's own header was read, else the file's size without its header; the
    rest is the formula of `memory`. *When it misleads*: free memory
    is read when you call; models with a vision part need its size on top.
    """
    if headers not in ("one", "all", "none"):
        raise HubError(f"headers={headers!r} is unknown: take 'one', 'all' or 'none'.")
    repo_id = _repo_name(repo_id)
    api = _api()
    info = _asked(
        lambda: api.model_info(repo_id, revision=revision, files_metadata=True, timeout=ANSWER_WITHIN_S),
        "its list of files",
        repo_id,
        revision,
    )
    if not download.COMMIT.fullmatch(str(info.sha)):
        raise HubError(f"The answer about {repo_id} names no commit. Is there a log-in page or a wrong HF_ENDPOINT?")
    rows, others = grouped(repo_id, info.sha, info.siblings or [])
    machine = machine or hardware.detect()
    notes = [gated_sentence(repo_id)] if info.gated else []
    if headers != "none" and any(row.kind == "model" for row in rows):
        rows, problem = _judged(rows, machine, headers == "all", progress, {"n_ctx": n_ctx, **settings})
        notes += [problem] if problem else []
    rows = [row if row.verdict else _by_size_alone(row, machine) for row in rows]
    if not rows:
        notes.append(f"{repo_id} has no GGUF file. Search for a repository that has: hub.search(...).")
    if others:
        notes.append(f"Not shown: {len(others)} other files, such as {units.plain(others[0])}.")
    return Files(rows, "\n".join(notes), repo_id, info.sha, bool(info.gated))


def fetch(row, dest=None, progress=True, confirm=None):
    """Download a row of `files`, all its parts, checked; the path that llama.cpp opens. See `download.fetch`."""
    return download.fetch_split(
        row.repo, row.name, row.revision, dest=dest, progress=progress, confirm=confirm, sha256=row.sha256,
        size_bytes=row.sizes,
    )  # fmt: skip


def gated_sentence(repo_id):
    """What to do about a repository whose owner wants to be asked."""
    page = f"{download.without_secrets(download.hub_address())}/{repo_id}"
    return (
        f"{repo_id} is gated: its owner wants you to agree first. Open {page} in a browser, log in, read, accept what "
        "is asked there; then type `hf auth login` in a terminal, once, and paste a token of yours with the right to "
        "read. (Its files are listed all the same; downloads are refused until then.)"
    )


def _api():
    hub = download.client("ask the model hub")
    if download.is_offline(None):
        raise HubError(OFFLINE)
    return hub.HfApi(endpoint=download.hub_address())


def _knock():
    """Raise at once what is wrong with the hub: its client's own search would try six times, for half a minute."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    address = f"{download.hub_address()}/api/models"
    hf_raise_for_status(get_session().get(address, params={"limit": 1}, headers=build_hf_headers(), timeout=10))


def _asked(act, what, repo_id="", revision=None):
    """What `act()` returns; it works in a thread, because the hub's client would wait for ever for a silent server."""
    outcome = []

    def work():
        try:
            outcome.append((act(), None))
        except Exception as error:
            outcome.append((None, error))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    until = time.monotonic() + ANSWER_WITHIN_S
    while worker.is_alive() and time.monotonic() < until:
        worker.join(TICK_S)
    hub = download.without_secrets(download.hub_address())
    if not outcome:
        raise HubError(f"{hub} did not answer within {ANSWER_WITHIN_S:g} s. Check the network and try again.")
    value, error = outcome[0]
    if error is not None:
        raise HubError(_explain(error, hub, what, repo_id, revision))
    return value


def _explain(error, hub, what, repo_id, revision):
    """What went wrong, without the error's own text: it may hold addresses with signatures."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    names = {type(e).__name__ for e in download.causes(error)}
    if "OfflineModeIsEnabled" in names:
        return OFFLINE
    if "HFValidationError" in names:
        return f"{units.plain(repo_id)!r} is not the name of a repository (owner/name)."
    if "GatedRepoError" in names:
        return gated_sentence(repo_id)
    if "RevisionNotFoundError" in names:
        return f"{repo_id} has no revision {units.plain(revision)!r}. Copy one from {hub}/{repo_id}/commits/main."
    if repo_id and status in (401, 403, 404):
        return (
            f"The hub does not show {repo_id} to you (status {status}): it does not exist, or is private. Check the "
            "spelling, or search: hub.search(...). If you may read it, log in with `hf auth login`."
        )
    if status in (401, 403):
        return f"The hub refused {what} (status {status}): your token may be out of date. Type `hf auth login` again."
    if status == 429:
        return "The hub says 'too many requests'. Wait some minutes, or log in with `hf auth login`."
    if status is not None:
        return f"The hub answered with status {status} for {what}. Try again later; nothing here is broken."
    if names & {"ConnectTimeout", "ReadTimeout", "PoolTimeout", "TimeoutError"}:
        return f"{hub} did not answer in time. Check the network and try again."
    if names & {"ConnectError", "ProxyError", "gaierror", "ReadError", "RemoteProtocolError", "ConnectionRefusedError"}:
        return f"{hub} cannot be reached. Check the network and the proxy, or set HF_ENDPOINT to a mirror."
    return (
        f"The answer of {hub} for {what} could not be understood ({type(error).__name__}). Is there a log-in page of "
        "the network in between, or a wrong HF_ENDPOINT?"
    )


def _repo_name(repo_id):
    """ "owner/name" from itself or from the address of its page."""
    text = str(repo_id).strip().removeprefix("hf://")
    text = re.sub(r"^(https?://[^/]+|hf\.co|huggingface\.co)/", "", text).rstrip("/")
    text = "/".join(text.split("/")[:2]).partition(":")[0]  # behind a colon: the tag that Ollama's users write
    if not REPO.fullmatch(text):
        raise HubError(f"{units.plain(repo_id)!r} is not the name of a repository (owner/name).")
    return text


def _repo(info):
    said = info.gguf if isinstance(info.gguf, dict) else {}
    names = [file.rfilename for file in info.siblings or [] if kind_of(file.rfilename) == "model"]
    return Repo(
        id=info.id,
        downloads=_count(info.downloads),
        likes=_count(info.likes),
        gated=bool(info.gated),
        n_params=_count(said.get("total")),
        n_ctx_train=_count(said.get("context_length")),
        architecture=units.plain(said.get("architecture") or "", 30),
        modified=info.last_modified.date().isoformat() if info.last_modified else "",
        quantizations=tuple(sorted({quantization_of(name) for name in names} - {""})),
    )


def _count(value):
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


# --- names ---


def quantization_of(name):
    """The quantization that a file's name speaks of, "" when it speaks of none.

    >>> quantization_of("Llama-3.2-1B-Instruct-Q4_K_M.gguf"), quantization_of("UD-Q2_K_XL/big-00001-of-00003.gguf")
    ('Q4_K_M', 'UD-Q2_K_XL')
    >>> quantization_of("model-fp16.gguf"), quantization_of("Q4you.gguf")
    ('F16', '')

    *When it misleads*: a name promises nothing; the header of the file decides.
    """
    for part in reversed(name.split("/")):
        if found := QUANTIZATION.findall(part):
            return re.sub(r"^FP", "F", found[-1].upper())
    return ""


def kind_of(name):
    """What a file of a repository is, by its name: a key of `KINDS`, or "" for something else.

    >>> kind_of("mmproj-model-f16.gguf"), kind_of("a.imatrix"), kind_of("a-Q8_0.gguf"), kind_of("README.md")
    ('vision', 'imatrix', 'model', '')
    """
    base = name.rsplit("/", 1)[-1].lower()
    if "imatrix" in base:
        return "imatrix"
    if PIECE.search(base):
        return "piece"
    if not base.endswith(".gguf"):
        return ""
    if "mmproj" in base:
        return "vision"
    return "adapter" if re.search(r"(?<![a-z])lora(?![a-z])", base) else "model"


def grouped(repo_id, commit, siblings):
    """The rows of a repository, the parts of a split file as one, smallest first; and the names of all other files."""
    groups, others = {}, []
    by_name = {file.rfilename: file for file in siblings}
    for name in by_name:
        kind = kind_of(name)
        if not kind:
            others.append(name)
        else:
            groups.setdefault((kind, *download.split_names(name)), []).append(name)
    rows = [_row(repo_id, commit, key[0], key[1:], here, by_name) for key, here in groups.items()]
    return sorted(rows, key=lambda row: (row.kind != "model", row.size_bytes, row.name)), sorted(others)


def _row(repo_id, commit, kind, names, here, by_name):
    sizes = {name: _count(by_name[name].size) for name in names if name in here}
    hashes = {name: by_name[name].lfs.sha256 for name in sizes if by_name[name].lfs}
    note = KINDS[kind]
    if len(names) > 1:
        note = f"in {len(names)} files" + (f"; {note}" if note else "")
    if len(here) < len(names):
        kind, note = "piece", f"only {len(here)} of its {len(names)} files are in the repository"
    return File(
        repo=repo_id,
        revision=commit,
        names=tuple(name for name in names if name in sizes),
        size_bytes=sum(sizes.values()),
        kind=kind,
        quantization=quantization_of(names[0]),
        sha256={name: value for name, value in hashes.items() if download.SHA256.fullmatch(str(value))},
        sizes={name: size for name, size in sizes.items() if size},
        note=note,
    )


# --- verdicts ---


def _judged(rows, machine, every, progress, settings):
    """The rows with estimate and verdict; and why there is none, as a sentence."""
    from . import gguf  # it brings numpy along

    known, problem, n_read = [], "", 0
    done = []
    for row in rows:
        if row.kind != "model":
            done.append(row)
            continue
        header = None if every else next((header for header in known if _explains(header, row)), None)
        own = header is None
        if own and not problem and n_read < MAX_HEADERS:
            n_read += 1
            try:
                header = gguf.read_header(f"hf://{row.repo}@{row.revision}/{row.name}", progress=progress)
                header.spec  # noqa: B018 - raises when it is no language model
                known.append(header)
            except gguf.GGUFError as error:
                header = None
                note = f"its header says: {error}"
                if not known:
                    problem = f"No verdict: a header could not be read. {error}"
                row = replace(row, note="; ".join(filter(None, [row.note, note])))
        done.append(_with_verdict(row, header, own, machine, settings) if header else row)
    return done, problem


def _explains(header, row):
    """Whether a file of this size and name can be the model of that header."""
    try:
        expected = memory.weights_bytes(header.spec, row.quantization.removeprefix("UD-")) + header.data_offset
    except ValueError:
        return False
    return abs(expected - row.size_bytes) <= SAME_MODEL_WITHIN * row.size_bytes


def _with_verdict(row, header, own, machine, settings):
    weights = header.tensor_types if own and len(row.names) == 1 else max(row.size_bytes - header.data_offset, 1)
    for known in (weights, max(row.size_bytes - header.data_offset, 1)):
        try:
            needs = memory.estimate(header.spec, known, **settings)
            verdict = fit.judge(needs, machine)
        except ValueError as error:
            problem = str(error)
            continue
        return replace(row, estimate=needs, verdict=verdict, source="header" if own else "size")
    return replace(row, note="; ".join(filter(None, [row.note, problem])))


def _by_size_alone(row, machine):
    """Without a shape only one thing is sure: a file that is larger than all the memory does not fit."""
    total = machine.ram_total_bytes
    if row.kind != "model" or not row.size_bytes or row.size_bytes <= total + machine.swap_free_bytes:
        return row
    sentence = f"The file alone has {units.show(row.size_bytes)}, the whole memory {units.show(total)}: does not fit."
    free = machine.ram_available_bytes
    return replace(row, verdict=fit.Verdict("no", sentence, "memory", row.size_bytes, free, total), source="size")


# --- tables ---


def cells(row):
    """Column name -> text of one row, the same for the text and the HTML form."""
    if isinstance(row, Repo):
        return {
            "repository": units.plain(row.id) + (" (gated)" if row.gated else ""),
            "weights": units.show_count(row.n_params) if row.n_params else "",
            "context": f"{row.n_ctx_train:,}" if row.n_ctx_train else "",
            "quantizations": units.plain(
                ", ".join(row.quantizations[:6]) + (", ..." if len(row.quantizations) > 6 else "")
            ),
            "downloads": f"{row.downloads:,}",
            "changed": units.plain(row.modified),
        }
    verdict = row.verdict
    return {
        "file": units.plain(row.name),
        "quantization": units.plain(row.quantization),
        "download": units.show_decimal(row.size_bytes) if row.size_bytes else "?",
        "needs": units.show(row.estimate.total_bytes) if row.estimate else "",
        "here": f"{fit.SIGNS[verdict.status]} {fit.SAYS[verdict.status]}" if verdict else "",
        "known by": units.plain(row.source),
        "note": units.plain(row.note, 160),
    }


def _text_table(rows):
    table = [cells(row) for row in rows]
    names = [name for name in table[0] if any(row[name] for row in table)]
    widths = {name: max(len(name), *(len(row[name]) for row in table)) for name in names}
    lines = ["  ".join(name.ljust(widths[name]) for name in names)]
    lines += ["  ".join(row[name].ljust(widths[name]) for name in names) for row in table]
    return "\n".join(line.rstrip() for line in lines)


def _html_table(rows):
    table = [cells(row) for row in rows]
    names = [name for name in table[0] if any(row[name] for row in table)]
    left = ' style="text-align:left"'
    head = "".join(f'<th scope="col"{left}>{html.escape(name)}</th>' for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td{left}>{html.escape(row[name])}</td>" for name in names) + "</tr>" for row in table
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
