"""The learner's own record: answers and predictions in one small JSON file beside the notebook.

Nothing leaves the machine. A damaged file is set aside, never overwritten; in a folder that cannot be written the
record lives as long as the kernel does.
"""

import contextlib
import json
import os
import threading
import time
from pathlib import Path

FILE_NAME = ".progress.json"
LOCK_WAIT_S = 5.0  # a stopped kernel may hold the lock for ever: after this, go on without it
LEFTOVER_S = 60  # a draft this old belongs to a process that was killed while it wrote

_threads = threading.RLock()
_unsaved = {}  # path -> record that could not be written
_told = set()


def path():
    """The progress file: beside the notebook, or where HELPERS_PROGRESS says (a file or a folder)."""
    chosen = os.environ.get("HELPERS_PROGRESS", "").strip()
    if chosen:
        chosen = Path(chosen).expanduser()
        return chosen / FILE_NAME if chosen.is_dir() else chosen
    try:
        return Path.cwd() / FILE_NAME
    except FileNotFoundError:  # the folder was removed under the running kernel
        return Path(FILE_NAME)


def read():
    """The whole record, for reading: {"exercises": {...}, "predictions": {...}}."""
    with _threads:
        target = path()
        with _between_processes(target):
            return _load(target)[0]


def update(change):
    """Apply `change(record)` to the record and keep it; returns what `change` returns.

    Two kernels may do this at once: each reads, changes and replaces the file under a lock.
    """
    with _threads:
        target = path()
        with _between_processes(target):
            record, may_write = _load(target)
            result = change(record)
            if may_write:
                _save(target, record)
            else:
                _unsaved[target] = record
            return result


def _empty():
    return {"version": 1, "exercises": {}, "predictions": {}}


def _load(target):
    """(record, whether the file may be replaced)."""
    record, may_write = _from_file(target)
    for part in ("exercises", "predictions"):
        record[part].update(_unsaved.get(target, {}).get(part, {}))
    return record, may_write


def _from_file(target):
    try:
        text = target.read_bytes()
    except FileNotFoundError:
        return _empty(), True
    except OSError as error:
        _tell(target, f"{target.name} could not be read ({error.strerror})")
        return _empty(), False
    try:
        return _checked(json.loads(text)), True
    except (ValueError, RecursionError) as error:
        return _empty(), _set_aside(target, error)


def _checked(record):
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__} where a table of answers should be")
    record = {**_empty(), **record}
    for part in ("exercises", "predictions"):
        if not isinstance(record[part], dict) or not all(isinstance(row, dict) for row in record[part].values()):
            raise ValueError(f"its part {part!r} is not a table")
    return record


def _set_aside(target, error):
    """Rename a file that cannot be understood; True when its place is free now."""
    numbers = range(1, 10_000)
    aside = next(p for n in numbers if not (p := target.with_name(f"{target.stem}.damaged-{n}.json")).exists())
    try:
        os.replace(target, aside)
    except OSError:
        _tell(target, f"{target.name} is damaged ({error}) and cannot be moved")
        return False
    print(f"{target.name} was damaged ({error}). It is kept as {aside.name}; a new record begins.")
    return True


def _save(target, record):
    """Replace the file in one step: whoever is killed half-way leaves the old file whole."""
    draft = target.with_name(f"{target.name}.{os.getpid()}.draft")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
        _unsaved.pop(target, None)
    except OSError as error:
        _unsaved[target] = record
        with contextlib.suppress(OSError):
            draft.unlink()
        _tell(target, f"{target.name} cannot be written here ({error.strerror})")


def _tell(target, what):
    if target not in _told:
        _told.add(target)
        print(f"{what}: progress is kept only until the kernel stops.")


@contextlib.contextmanager
def _between_processes(target):
    """Hold the neighbour file `.lock`; where locks do not work, go on without one."""
    try:
        file = target.with_name(f"{target.name}.lock").open("a+b")
    except OSError:
        yield
        return
    with file:  # closing the file lets go of the lock, and so does being killed
        if _lock(file):
            _sweep(target)
        yield


def _lock(file):
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            try_lock(file)
            return True
        except (BlockingIOError, PermissionError):  # held elsewhere: POSIX says the first, Windows the second
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        except (OSError, ImportError, AttributeError):  # some network drives, and Python in a browser, have no locks
            return False


def try_lock(file):
    if os.name == "nt":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(target):
    for draft in target.parent.glob(f"{target.name}.*.draft"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > LEFTOVER_S:
                draft.unlink()
