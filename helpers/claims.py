"""An article about local models, claim by claim: what it says, what the kit calculates, and a verdict.

The claims are data (data/claims.toml); a check is a small pure function of the catalogue and the formulas. What cannot
be calculated, such as who made a model, carries its source.
"""

import functools
import html
import sys
from dataclasses import dataclass, field
from pathlib import Path

from . import memory, models, units

DATA = Path(__file__).with_name("data") / "claims.toml"
VERDICTS = ("true", "approximate", "rule", "false")
SIGNS = {"true": "✓", "approximate": "≈", "rule": "!", "false": "✕"}
# How far a printed number may be from the calculated one: (true, approximate); wider where the article says "about".
EXACT, ABOUT = (0.01, 0.05), (0.05, 0.20)
N_CTX = 4096  # the article never says how long the text is; llama.cpp's own examples use this
CONSTANT_GB = 2.5  # what TheBloke's model cards add to every file as "max RAM required"
TABLES = ("article", "parameters", "hardware")


@dataclass(frozen=True)
class Claim:
    """One sentence of the article, with what its check needs in `given`."""

    name: str
    says: str
    where: str
    check: str
    given: dict = field(default_factory=dict, repr=False)
    source: str = ""


@dataclass(frozen=True)
class Finding:
    """What became of a claim: the verdict, the fact, how we know it, and quoted / calculated where both are numbers."""

    claim: Claim
    verdict: str
    fact: str
    source: str
    ratio: float | None = None

    def __str__(self):
        ratio = f" (article / kit = {self.ratio:.2f})" if self.ratio is not None else ""
        return f"{SIGNS[self.verdict]} {self.verdict:11} {self.claim.says}. {self.fact}{ratio}"

    def _repr_html_(self):
        return str(Findings((self,))._repr_html_())


@dataclass(frozen=True, repr=False)
class Findings:
    """Findings as lines of text or as a table."""

    rows: tuple

    def __str__(self):
        return "\n".join(map(str, self.rows))

    __repr__ = __str__

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def only(self, verdict):
        """The findings with one verdict."""
        return Findings(tuple(row for row in self.rows if row.verdict == verdict))

    def counts(self):
        """Verdict -> how many.

        >>> sum(check_all().counts().values()) == len(listed())
        True
        """
        return {verdict: len(self.only(verdict)) for verdict in VERDICTS}

    def _repr_html_(self):
        head = "".join(
            f'<th scope="col" style="text-align:left">{word}</th>'
            for word in ("verdict", "the article", "the kit", "ratio", "source")
        )
        body = "".join(f"<tr>{''.join(_cell(text) for text in _texts(row))}</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text):
    return f'<td style="text-align:left">{html.escape(text)}</td>'


def _texts(row):
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    says = f"{row.claim.says} ({row.claim.where})"
    return f"{SIGNS[row.verdict]} {row.verdict}", says, row.fact, ratio, row.source


@functools.cache
def _tables():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


def listed():
    """All claims, in the order of the article.

    >>> listed()[0].says
    '7 billion weights in FP16 take about 14 GB'
    """
    return tuple(_claim(name, table) for name, table in _tables().items() if name not in TABLES)


def _claim(name, table):
    own = {key: table[key] for key in ("says", "where", "check")}
    given = {key: value for key, value in table.items() if key not in (*own, "source")}
    return Claim(name, **own, given=given, source=table.get("source", ""))


def get(name):
    """The claim called `name`; `KeyError` lists the names."""
    found = {claim.name: claim for claim in listed()}
    if name not in found:
        raise KeyError(f"No claim called {name!r}. There are: {', '.join(found)}.")
    return found[name]


def check(claim):
    """The `Finding` of a claim (or of a claim's name).

    Notes
    -----
    A printed number is "true" within 1 % of the calculated one and "approximate" within 5 %; where the article says
    "about", within 5 % and 20 %. "rule" means a rule of thumb stands behind the number, not a measurement. *When it
    misleads*: the article names no context; the kit takes 4,096 tokens and a 16-bit cache, and longer texts need more.

    >>> print(check("llama-q2-file").verdict)
    true
    """
    claim = get(claim) if isinstance(claim, str) else claim
    verdict, fact, *ratio = CHECKS[claim.check](**claim.given)
    source = claim.source or ("formula" if claim.check != "fact" else "")
    return Finding(claim, verdict, fact, source, *ratio)


def check_all():
    """`Findings` of every claim, in the order of the article."""
    return Findings(tuple(map(check, listed())))


# The checks: (verdict, fact, quoted / calculated where there are numbers)


def meant(name):
    """(ModelSpec, why the name is wrong, or "" where it is right).

    >>> meant("gemma2:4b")[0].name, meant("gemma2:2b")[1]
    ('gemma-2-2b', '')
    """
    spec, why = models.resolve(name)
    try:
        models.get(name)
    except KeyError:
        return spec, why
    return spec, ""


def _judge(ratio, about):
    true, approximate = ABOUT if about else EXACT
    distance = abs(ratio - 1)
    return "true" if distance <= true else "approximate" if distance <= approximate else "false"


def _bits(billions, bits, quoted, about=False):
    gb = units.bytes_from_bits(billions * units.GB, bits) / units.GB
    return _judge(quoted / gb, about), f"{billions} billion x {bits} bits / 8 = {gb:.2f} GB.", quoted / gb


def _file(model, quantization, quoted, about=False):
    spec, wrong = meant(model)
    gb = memory.file_bytes(spec, quantization) / units.GB
    fact = f"The file of {spec.title} at {quantization} has {gb:.2f} GB."
    verdict = "false" if wrong else _judge(quoted / gb, about)
    return verdict, f"{wrong} {fact}".strip(), quoted / gb


def _need_gb(spec, quantization):
    return memory.estimate(spec, quantization, n_ctx=min(N_CTX, spec.n_ctx_train)).total_bytes / units.GB


def _need(model, quantization, quoted, about=False, fact=""):
    spec, _ = meant(model)
    gb = _need_gb(spec, quantization)
    own = f"{spec.title} at {quantization} needs {gb:.2f} GB at {min(N_CTX, spec.n_ctx_train):,} tokens."
    return _judge(quoted / gb, about), f"{own} {fact}".strip(), quoted / gb


def _need_between(model, quantization, least, most):
    spec, _ = meant(model)
    gb = _need_gb(spec, quantization)
    size = memory.file_bytes(spec, quantization) / units.GB
    verdict = "true" if least <= gb <= most else "approximate" if least <= size <= most else "false"
    fact = f"{spec.title} at {quantization}: the file has {size:.2f} GB, but it needs {gb:.2f} GB at {N_CTX:,} tokens."
    return verdict, fact, most / gb


def _constant(model, quantization, quoted, file):
    spec, _ = meant(model)
    gb = _need_gb(spec, quantization)
    added = quoted - file
    verdict = "rule" if abs(added - CONSTANT_GB) < 0.005 else _judge(quoted / gb, False)
    rule = f"It is the file plus {added:.2f} GB, whatever the model and the context."
    return verdict, f"{rule} By the formula it needs {gb:.2f} GB at {N_CTX:,} tokens.", quoted / gb


def _card(model, quantization, quoted):
    spec, _ = meant(model)
    needs = memory.estimate(spec, quantization, n_ctx=min(N_CTX, spec.n_ctx_train), n_gpu_layers=-1)
    gb = sum(needs.gpu_parts().values()) / units.GB
    fact = f"All layers on the GPU take {gb:.2f} GB there at {N_CTX:,} tokens."
    return "true" if gb <= quoted else "false", fact, quoted / gb


def _share(model, quantization, quoted, about=False):
    spec, _ = meant(model)
    share = 100 * memory.weights_bytes(spec, quantization) / memory.weights_bytes(spec, "F16")
    bits = units.bits_per_weight(memory.weights_bytes(spec, quantization), spec.n_params)
    fact = f"{spec.title} at {quantization} has {bits:.2f} bits a weight, {share:.1f} % of 16."
    return _judge(quoted / share, about), fact, quoted / share


def rule_of_thumb_range(names=("llama-3.1-8b", "phi-3-mini", "gemma-3-1b", "smollm2-135m"), contexts=(2048, 32768)):
    """Need / weights at Q4_K_M, (lowest, highest) over some models and contexts: what the "1.2" would have to be.

    >>> low, high = rule_of_thumb_range()
    >>> low < 1.2 < high
    True
    """
    ratios = []
    for name in names:
        needs = (memory.estimate(models.get(name), "Q4_K_M", n_ctx=n_ctx) for n_ctx in contexts)
        ratios += [one.total_bytes / one.weights_bytes for one in needs]
    return min(ratios), max(ratios)


def _rule_of_thumb():
    low, high = rule_of_thumb_range()
    return "rule", f"Over four models and two contexts the factor is {low:.2f} at the least and {high:.2f} at the most."


def _tag(model):
    spec, wrong = meant(model)
    if wrong:
        return "false", wrong
    return "true", models.resolve(model)[1] or f"It means {spec.title}."


def _means(model, quoted):
    spec, _ = meant(model)
    if spec.name == quoted:
        return "true", f"{model} is {spec.title}."
    return "false", f"{model} is {spec.title}, not {models.get(quoted).title}."


def _serves(model, quoted):
    spec, _ = meant(model)
    served = spec.ollama_quantization
    return "true" if served == quoted else "false", f"{model} is {served}."


def _window(model):
    spec, _ = meant(model)
    fact = f"{spec.title} has a window of {spec.n_swa:,} tokens." if spec.n_swa else f"{spec.title} has no window."
    return "true" if spec.n_swa else "false", fact


def _images(model):
    spec, _ = meant(model)
    sees = "images" in spec.uses or spec.n_params_vision > 0
    return "true" if sees else "false", f"{spec.title} {'has' if sees else 'has no'} part that sees images."


def _licence(model, quoted):
    spec, _ = meant(model)
    return "true" if spec.license == quoted else "false", f"The licence of {spec.title} is {spec.license}."


def _context(model, quoted):
    spec, _ = meant(model)
    fact = f"{spec.title} was trained for {spec.n_ctx_train:,} tokens."
    return "true" if spec.n_ctx_train >= quoted else "false", fact


def _chinese(named):
    specs = [models.get(name) for name in named]
    without = [spec for spec in specs if "chinese" not in spec.uses and "Chinese" not in spec.languages]
    if not without:
        return "true", "The makers of all of them name Chinese."
    return "false", f"Their makers do not name it for {', '.join(f'{s.title} ({s.languages})' for s in without)}."


def _fact(verdict, fact):
    return verdict, fact


CHECKS = {
    "bits": _bits,
    "file": _file,
    "need": _need,
    "need_between": _need_between,
    "constant": _constant,
    "card": _card,
    "share": _share,
    "rule_of_thumb": _rule_of_thumb,
    "tag": _tag,
    "means": _means,
    "serves": _serves,
    "window": _window,
    "images": _images,
    "licence": _licence,
    "context": _context,
    "chinese": _chinese,
    "fact": _fact,
}


# The article's tables


@dataclass(frozen=True)
class SizeRow:
    """A row of the article's table by parameters: its two columns in GB beside the kit's, for one model."""

    says: str
    theory_gb: float
    real_gb: tuple
    spec: object
    ours: bool  # the article names no model here; the kit chose one
    quantization: str
    weights_gb: float
    need_gb: float

    @property
    def theory_ratio(self):
        """The article's "theoretical" divided by the bytes of the weights."""
        return self.theory_gb / self.weights_gb

    @property
    def inside(self):
        """Whether the calculated need lies in the article's range."""
        return self.real_gb[0] <= self.need_gb <= self.real_gb[1]

    @property
    def real_ratio(self):
        """The middle of the article's range divided by the calculated need."""
        return sum(self.real_gb) / 2 / self.need_gb

    def __str__(self):
        low, high = self.real_gb
        real = f"{low:g} to {high:g}"
        left = f"{self.says:>4}: {self.theory_gb:5.1f} / {self.weights_gb:6.2f} = {self.theory_ratio:.2f}"
        return f"{left}   {real:>12} / {self.need_gb:6.2f} = {self.real_ratio:.2f}   {self.spec.title}"


def sizes(quantization="Q4_K_M", n_ctx=N_CTX):
    """The article's table by parameters, a tuple of `SizeRow`; models that come in MXFP4 only are taken so.

    >>> row = sizes()[0]
    >>> row.spec.name, row.theory_gb
    ('tinyllama-1.1b', 0.5)
    """
    return tuple(_size_row(table, quantization, n_ctx) for table in _tables()["parameters"])


def _size_row(table, quantization, n_ctx):
    spec = models.get(table["model"])
    name = "MXFP4" if spec.ollama_quantization == "MXFP4" else quantization
    needs = memory.estimate(spec, name, n_ctx=min(n_ctx, spec.n_ctx_train))
    real = tuple(table["real"])
    gb = needs.weights_bytes / units.GB, needs.total_bytes / units.GB
    return SizeRow(table["says"], table["theory"], real, spec, table.get("ours", False), name, *gb)


def hardware_rows():
    """The article's table by memory: (memory in GiB, the article's words, billions of weights it allows).

    >>> hardware_rows()[0]
    (8, 'up to 7B', 7)
    """
    return tuple((row["ram"], row["says"], row["billions"]) for row in _tables()["hardware"])
