"""Lessons -> notebooks. `lessons/NN_slug.py` is the truth; every notebook is derived from it.

python lessons/build.py             build all, into notebooks/ (learner copies) and notebooks/solved/
python lessons/build.py --only 07   build one lesson
python lessons/build.py --check     compare bytes, write nothing; exit code 1 names each stale file and what to type
python lessons/build.py --prune     build, and remove the notebooks this program made from lessons that are gone
python lessons/build.py --student-zip kit.zip
                                    pack what learners need, without solved copies; writes nothing else

A notebook that somebody worked in is neither overwritten nor removed.

`lessons/TEMPLATE.py` shows the format and explains the tags and the `# stub` / `# solution` markers.
"""

import argparse
import ast
import contextlib
import hashlib
import os
import re
import sys
import unicodedata
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import jupytext
import nbformat
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
TAGS = {"solution": "solution", "fails": "raises-exception", "network": "network", "model": "model"}
MAX_CODE_LINES = 12
MAX_CODE_WIDTH = 96  # what JupyterLab shows at 1280x720 beside its file list
MAX_CODE_CELLS = 25
MINUTES = range(5, 41)
TITLE_FIELDS = ("Promise", "Needs", "Minutes")
NAMED_CALLS = {"check.predict", "check.number", "check.choice", "check.true"}
# What learners get beside their notebooks; folders whole.
STUDENT_FILES = (
    "start.py",
    "environment.yml",
    "pyproject.toml",
    "requirements.lock",
    "README.md",
    "LICENSE",
    "helpers",
)
STUDENT_FILES += ("helpers", "lessons/glossary.md", ".github/panel.png")
LESSON_NAME = re.compile(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*\.py")
# comment_magics would uncomment ordinary remarks such as "# cat is a word" or "# why?"
PERCENT = {"extension": ".py", "format_name": "percent", "comment_magics": False}
MARKDOWN = MarkdownIt("commonmark").enable("table")  # tables are read only so that they can be refused
# What Jupyter leaves in a notebook that was run or saved. Looked for as text: a file may be damaged and still be work.
WORKED_IN = re.compile(
    rb'(?<!\\)"(output_type|codemirror_mode|application/vnd\.jupyter\.widget-state\+json)(?<!\\)"\s*:'
    rb'|(?<!\\)"execution_count"\s*:\s*[1-9]'
)
SMALL_EMOJI = "✅❌❗❓⚠⭐✨⚡☝✍\ufe0f"  # those outside the emoji planes; ✓ △ ○ are ordinary signs
FOREIGN_MARKDOWN = (
    (re.compile(r"^:::"), "a ::: directive"),
    (re.compile(r"\{[a-z][a-z:_-]*\}`"), "a {role}"),
    (re.compile(r"\[![A-Z]+\]"), "a [!NOTE] box"),
    (re.compile(r"\[\^[^\]]+\]"), "a [^footnote]"),
    (re.compile(r"(?<!\\)\$.*(?<!\\)\$", re.S), "text between two dollar signs, which JupyterLab shows as a formula,"),
)


@dataclass(frozen=True)
class Cell:
    kind: str
    source: str
    tags: tuple[str, ...]
    line: int  # where the source begins in the lesson file


@dataclass(frozen=True)
class Lesson:
    path: Path
    cells: tuple[Cell, ...]

    @property
    def number(self):
        return self.path.name[:2]


@dataclass(frozen=True)
class Problem:
    path: Path
    line: int
    words: str

    def __str__(self):
        return f"{self.path.parent.name}/{self.path.name}:{self.line}: {self.words}"


class LessonError(ValueError):
    """A lesson that cannot be built; `.problems` names each place."""

    def __init__(self, problems):
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


# Reading


def read_lesson(path):
    """The cells of a percent-format file, each with the line it begins at."""
    text = path.read_text(encoding="utf-8")
    first = next((n for n, line in enumerate(text.splitlines(), 1) if line.strip()), 1)
    if not text.splitlines()[first - 1 : first] or not text.splitlines()[first - 1].startswith("# %%"):
        raise LessonError([Problem(path, first, "a lesson begins with a title cell: # %% [markdown]")])
    try:
        cells = jupytext.reads(text, fmt=PERCENT).cells
        lines = [cell.metadata.get("line") for cell in jupytext.reads(_number_markers(text), fmt=PERCENT).cells]
    except Exception as error:  # whatever the reader trips over, the author needs the file's name
        raise LessonError([Problem(path, 1, f"could not be read as percent format: {error}")]) from error
    problems, found = [], []
    for cell, line in zip(cells, lines, strict=True):
        problems += [Problem(path, line, words) for words in _marker_problems(cell)]
        stripped = cell.source.lstrip("\n")
        start = line + 1 + len(cell.source) - len(stripped)
        found.append(Cell(cell.cell_type, stripped.rstrip("\n"), tuple(cell.metadata.get("tags", ())), start))
    if problems:
        raise LessonError(problems)
    return Lesson(path, tuple(found))


def _number_markers(text):
    """The same text with each marker's line number in its metadata: the reader itself does not tell lines."""
    lines = text.splitlines()
    return "\n".join(f"{line} line={n}" if line.startswith("# %%") else line for n, line in enumerate(lines, 1))


def _marker_problems(cell):
    if cell.cell_type == "raw":
        yield "a cell is code or markdown, not raw"
    if "cell_marker" in cell.metadata:
        yield 'markdown is written as "# " comment lines, not in triple quotes'
    if not cell.source.strip():
        yield "the cell is empty: remove it, or fill it"
    for key in set(cell.metadata) - {"tags", "lines_to_next_cell", "cell_marker"}:
        yield f'after # %% only [markdown] and tags=["..."] are read, not {key}={cell.metadata[key]!r}'
    for tag in cell.metadata.get("tags", ()):
        if tag not in TAGS:
            yield f"unknown tag {tag!r}: the tags are {', '.join(TAGS)}"


# The two copies


def copy_of(lesson, solved):
    """The lesson's cells as one of its two readers sees them."""
    cells, problems = [], []
    for cell in lesson.cells:
        if "solution" in cell.tags and not solved:
            continue
        if cell.kind == "code":
            source, wrong = choose_region(cell.source, solved)
            problems += [Problem(lesson.path, cell.line + n, words) for n, words in wrong]
            cell = replace(cell, source=source)
        elif solved:
            cell = replace(cell, source=_one_folder_deeper(cell.source))
        cells.append(cell)
    if problems:
        raise LessonError(problems)
    return cells


def choose_region(source, solved):
    """Keep the stub or the solution of each `# stub` / `# solution` / `# end solution` region; drop the markers.

    Returns the text and a list of (line offset, what is wrong).

    >>> region = "# stub\\nx = ____\\n# solution\\nx = 8\\n# end solution\\nx"
    >>> choose_region(region, solved=False)
    ('x = ____\\nx', [])
    >>> choose_region(region, solved=True)
    ('x = 8\\nx', [])
    """
    steps = {"# stub": ("text", "stub"), "# solution": ("stub", "solution"), "# end solution": ("solution", "text")}
    kept, wrong, where, opened, filled = [], [], "text", 0, True
    for n, line in enumerate(source.split("\n")):
        before, after = steps.get(line.strip(), (None, None))
        if before is None:
            filled = filled or bool(line.strip())
            if where in ("text", "solution" if solved else "stub"):
                kept.append(line)
            continue
        if where != before:
            wrong.append((n, f"{line.strip()!r} is out of order: # stub, then # solution, then # end solution"))
        elif not filled:
            wrong.append((n, f"the {where} above {line.strip()!r} is empty"))
        where, filled, opened = after, after == "text", n if after == "stub" else opened
    if where != "text":
        wrong.append((opened, "this # stub is not followed by # solution and # end solution"))
    return "\n".join(kept).strip("\n"), wrong


def _one_folder_deeper(source):
    """Relative addresses are written as seen from notebooks/; solved copies stand one folder deeper."""
    outward = {url for _, url in addresses(source) if _is_relative(url) and not _is_notebook(url)}
    return re.sub(r"\]\(([^)\s]+)", lambda m: f"](../{m[1]}" if m[1] in outward else m[0], source)


# Markdown


def addresses(source):
    """(line offset, address) of each distinct link and image in a markdown text."""
    found = {}
    for token in _inline(source):
        for child in token.children:
            url = child.attrGet("href" if child.type == "link_open" else "src")
            if url is not None:
                found.setdefault(url, token.map[0])
    return [(line, url) for url, line in found.items()]


def _inline(source):
    return [token for token in MARKDOWN.parse(source) if token.type == "inline"]


def _is_relative(url):
    return not re.match(r"[a-z][a-z0-9+.-]*:|#|/", url, re.I)


def _is_notebook(url):
    """A sibling notebook: it has a sibling in notebooks/solved too, so the address holds in both folders."""
    return re.fullmatch(r"\d\d_\w+\.ipynb(#.*)?", url) is not None


def markdown_problems(cell, lesson, root):
    """What of a markdown cell would not show everywhere, offline, or to a screen reader."""
    for token in MARKDOWN.parse(cell.source):
        line = cell.line + (token.map[0] if token.map else 0)
        if token.type == "html_block":
            yield line, "HTML is not shown everywhere: use plain CommonMark"
        if token.type == "table_open":
            yield line, "a table is not plain CommonMark: print it from a code cell, or use a list"
        if token.type == "fence" and token.info.startswith("{"):
            yield line, f"{token.info.split()[0]} is MyST: use plain CommonMark"
    for token in _inline(cell.source):
        line = cell.line + token.map[0]
        for child in token.children:
            if child.type == "html_inline":
                yield line, f"HTML is not shown everywhere: use plain CommonMark instead of {child.content}"
            if child.type == "image" and not child.content.strip():
                yield line, f"the image {child.attrGet('src')} has no alt text: say in words what it shows"
            if child.type == "image" and not _is_relative(child.attrGet("src")):
                yield line, f"the image {child.attrGet('src')} is blank offline: make it a file of the kit"
        plain = "".join("`" if child.type == "code_inline" else child.content for child in token.children)
        for pattern, name in FOREIGN_MARKDOWN:
            if pattern.search(plain):
                yield line, f"{name} is not plain CommonMark"
        for sign in sorted(set(filter(_is_emoji, plain))):
            yield line, f"{sign} is an emoji: a word says it to everybody"
    yield from _address_problems(cell, lesson, root)


def _is_emoji(sign):
    return sign in SMALL_EMOJI or (ord(sign) >= 0x1F000 and unicodedata.category(sign) in ("So", "Sk"))


def _address_problems(cell, lesson, root):
    for offset, url in addresses(cell.source):
        line = cell.line + offset
        target = unquote(url.split("#")[0])
        if url.startswith(("/", "file:")):
            yield line, f"{url} is a place on one machine: write it as seen from notebooks/"
        if not _is_relative(url) or not target:
            continue
        if f"]({url}" not in cell.source:
            yield line, f"write the link to {url} as [text]({url})"
        elif _is_notebook(url):
            if not (lesson.path.parent / target).with_suffix(".py").exists():
                yield line, f"{target} has no lesson lessons/{target[:-6]}.py"
        elif not target.startswith("../"):
            yield line, f"write {target} as ../notebooks/{target}: learners' copies stand in a folder beside notebooks/"
        elif not Path(os.path.normpath(root / "notebooks" / target)).exists():
            yield line, f"{target} does not exist: addresses are written as seen from notebooks/"


# Checks of a whole lesson


def lesson_problems(lesson, root):
    """Everything that would make this lesson a bad notebook."""
    places = set(_title_problems(lesson.cells[0]))
    for cell in lesson.cells:
        if cell.kind == "markdown":
            places |= set(markdown_problems(cell, lesson, root))
    for solved in (False, True):
        places |= set(_code_problems(copy_of(lesson, solved), lesson.number))
    return [Problem(lesson.path, line, words) for line, words in sorted(places)]


def _title_problems(cell):
    if cell.kind != "markdown" or not re.match(r"# \S", cell.source):
        yield cell.line, "the first cell is the title: markdown that begins with '# '"
        return
    for field in TITLE_FIELDS:
        match = re.search(rf"^- \*\*{field}:\*\* (\S.*)$", cell.source, re.M)
        if not match:
            yield cell.line, f"the title cell lacks the line '- **{field}:** ...'"
        elif field == "Minutes" and not (match[1].strip().isdecimal() and int(match[1]) in MINUTES):
            yield cell.line, f"Minutes is a whole number from {MINUTES[0]} to {MINUTES[-1]}, not {match[1]!r}"


def _code_problems(cells, number):
    code = [cell for cell in cells if cell.kind == "code"]
    if len(code) > MAX_CODE_CELLS:
        extra = code[MAX_CODE_CELLS]
        yield extra.line, f"{len(code)} code cells; a lesson has at most {MAX_CODE_CELLS}"
    for cell in code:
        length = len(cell.source.split("\n"))
        if length > MAX_CODE_LINES:
            yield cell.line, f"this code cell has {length} lines; at most {MAX_CODE_LINES} fit a screen and a head"
        width = max(map(len, cell.source.split("\n")))
        if width > MAX_CODE_WIDTH:
            yield cell.line, f"a line of this code cell has {width} characters; at most {MAX_CODE_WIDTH} fit"
        try:
            tree = compile(cell.source, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            yield (
                cell.line,
                f"not plain Python (% and ! lines are not either): {error.msg}, line {error.lineno} of the cell",
            )
            continue
        for name in _exercise_names(tree):
            if not name.startswith(f"{number}-"):
                yield cell.line, f"the exercise {name!r} must be named after its lesson: '{number}-...'"


def _exercise_names(tree):
    """The literal names in check.number("07-kv", ...) and its like."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in NAMED_CALLS]
    for call in calls:
        if call.args and isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value)


# Writing


def notebook_bytes(cells, lesson_name):
    """A notebook file: the same cells give the same bytes, today and on any machine."""
    seen, made = Counter(), []
    for cell in cells:
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:12]
        seen[digest] += 1
        new = nbformat.v4.new_code_cell if cell.kind == "code" else nbformat.v4.new_markdown_cell
        metadata = {"tags": [TAGS[tag] for tag in cell.tags]} if cell.tags else {}
        made.append(new(cell.source, id=f"{digest}-{seen[digest]}", metadata=metadata))
    metadata = {
        "built_from": f"lessons/{lesson_name}",
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook = nbformat.v4.new_notebook(cells=made, metadata=metadata)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return (nbformat.writes(notebook).rstrip("\n") + "\n").encode()


def build_lesson(path, root=ROOT):
    """{path relative to `root`: bytes} of a lesson's two notebooks; `LessonError` names what is wrong and where."""
    lesson = read_lesson(path)
    problems = lesson_problems(lesson, root)
    if problems:
        raise LessonError(problems)
    return {
        Path("notebooks", *folder, f"{path.stem}.ipynb"): notebook_bytes(copy_of(lesson, bool(folder)), path.name)
        for folder in ((), ("solved",))
    }


def find_lessons(root=ROOT):
    """The lesson files in order; a file that starts with a digit must have a proper lesson name."""
    paths = sorted((root / "lessons").glob("[0-9]*.py"))
    misnamed = [p for p in paths if not LESSON_NAME.fullmatch(p.name)]
    problems = [Problem(p, 1, "a lesson is named NN_slug.py, in lower case") for p in misnamed]
    numbers = Counter(p.name[:2] for p in paths)
    problems += [Problem(p, 1, f"two lessons have the number {p.name[:2]}") for p in paths if numbers[p.name[:2]] > 1]
    if problems:
        raise LessonError(problems)
    return paths


def build_all(root=ROOT, only=()):
    """{relative path: bytes} of every notebook there should be; all problems of all lessons at once."""
    lessons = find_lessons(root)
    unknown = sorted(set(only) - {path.name[:2] for path in lessons})
    if unknown:
        raise LessonError([Problem(root / "lessons" / f"{n}_*.py", 1, "there is no such lesson") for n in unknown])
    wanted, problems = {}, []
    for path in lessons:
        if only and path.name[:2] not in only:
            continue
        try:
            wanted.update(build_lesson(path, root))
        except LessonError as error:
            problems += error.problems
    if problems:
        raise LessonError(problems)
    return wanted


def orphans(root, wanted):
    """Notebooks that no lesson makes: [(relative path, whether this program made it)]."""
    found = []
    for folder in ("notebooks", "notebooks/solved"):
        for path in sorted((root / folder).glob("*.ipynb")):
            relative = path.relative_to(root)
            if relative not in wanted:
                found.append((relative, b'"built_from": "lessons/' in path.read_bytes()))
    return found


# The students' archive


def solution_lines(lesson):
    """The lines that only the solved copy shows, without those that the lesson shows elsewhere as well."""
    solved, shown = set(), set()
    for cell in lesson.cells:
        where = solved if "solution" in cell.tags else shown
        for line in map(str.strip, cell.source.split("\n")):
            if line in ("# stub", "# solution", "# end solution"):
                where = solved if line == "# solution" else shown
            else:
                where.add(line)
    return {line for line in solved - shown if re.search(r"[^\W\d_]", line)}


def student_files(root=ROOT):
    """{name in the archive: bytes}: learner copies, made from the lessons, and what runs them.

    `LessonError` when a line of a solution is in any of them.
    """
    files = {path.as_posix(): content for path, content in build_all(root).items() if "solved" not in path.parts}
    for name in STUDENT_FILES:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                files[path.relative_to(root).as_posix()] = path.read_bytes()
    problems = [
        Problem(path, 1, f"its solution line {line!r} is in {name}: the students' archive would give it away")
        for path in find_lessons(root)
        for name, line in leaks(files, solution_lines(read_lesson(path)))
    ]
    if problems:
        raise LessonError(problems)
    return files


def leaks(files, secret):
    """(file, line) of every secret line that stands in a file of the archive."""
    for name, content in files.items():
        text = content.decode("utf-8", errors="replace")
        if name.endswith(".ipynb"):
            text = "\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells)
        for line in sorted(secret & set(map(str.strip, text.splitlines()))):
            yield name, line


def write_zip(path, files):
    """The same files give the same bytes: no times of today, no owner."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(f"{path.stem}/{name}", (2020, 1, 1, 0, 0, 0))
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, files[name])
        os.replace(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()


def pack(path, root):
    """Write the students' archive; the exit code."""
    if path.suffix != ".zip":
        print(f"The archive is called {path.name!r}; its name must end in .zip.", file=sys.stderr)
        return 1
    try:
        files = student_files(root)
    except LessonError as error:
        print(error, file=sys.stderr)
        return 1
    write_zip(path, files)
    print(f"wrote {path.name}: {len(files)} files, no solution among them.")
    return 0


def write(path, content):
    """Write through a neighbour file, so that a notebook is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()


def stale(root, wanted, whole=True):
    """Sentences: what differs from the lessons, and what to type."""
    for relative, content in wanted.items():
        path = root / relative
        how = "is missing" if not path.exists() else "differs from its lesson" if path.read_bytes() != content else ""
        if how:
            yield f"{relative.as_posix()} {how}. Type: python lessons/build.py --only {relative.name[:2]}"
    for relative, ours in orphans(root, wanted) if whole else ():
        cure = "Type: python lessons/build.py --prune" if ours else "Write its lesson, or move it out of notebooks/"
        yield f"{relative.as_posix()} has no lesson. {cure}"


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description="Build the notebooks from the lessons.")
    parser.add_argument("--check", action="store_true", help="compare bytes, write nothing, exit 1 when stale")
    parser.add_argument("--only", metavar="NN", action="append", default=[], help="only this lesson, such as 07")
    parser.add_argument("--prune", action="store_true", help="remove built notebooks whose lesson is gone")
    parser.add_argument("--student-zip", metavar="PATH", type=Path, help="pack what learners need, without solutions")
    options = parser.parse_args(arguments)
    if options.student_zip:
        return pack(options.student_zip, root)
    try:
        wanted = build_all(root, options.only)
    except LessonError as error:
        print(error, file=sys.stderr)
        return 1
    if options.check:
        sentences = list(stale(root, wanted, whole=not options.only))
        print("\n".join(sentences) or f"{len(wanted)} notebooks are what their lessons say.")
        return 1 if sentences else 0
    changed = [path for path, content in wanted.items() if not _same(root / path, content)]
    kept = [path for path in changed if worked_in(root / path)]
    for relative in changed:
        if relative not in kept:
            write(root / relative, wanted[relative])
            print(f"wrote {relative.as_posix()}")
    print(f"{len(wanted)} notebooks, {len(changed) - len(kept)} changed.")
    if not options.only:
        kept += _handle_orphans(root, wanted, options.prune)
    for relative in kept:
        print(
            f"{relative.as_posix()} was left alone: somebody worked in it (it was run or saved in Jupyter). Move it, "
            "for example into my-lessons/ under another name, or delete it; then build again.",
            file=sys.stderr,
        )
    return 1 if kept else 0


def _same(path, content):
    return path.exists() and path.read_bytes() == content


def worked_in(path):
    """Whether a notebook holds somebody's work: it was run, or saved by Jupyter."""
    return path.exists() and WORKED_IN.search(path.read_bytes()) is not None


def _handle_orphans(root, wanted, prune):
    """Remove (with `prune`) or name the notebooks without a lesson; those that hold somebody's work are returned."""
    kept = []
    for relative, ours in orphans(root, wanted):
        if prune and ours and worked_in(root / relative):
            kept.append(relative)
        elif prune and ours:
            (root / relative).unlink()
            print(f"removed {relative.as_posix()}")
        else:
            how = "--prune removes it" if ours else "not built here, so left alone"
            print(f"{relative.as_posix()} has no lesson ({how})")
    return kept


if __name__ == "__main__":
    sys.exit(main())
