"""Write files whole or not at all: to a temporary name beside the target, then rename."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from emo import EmoError


@contextmanager
def clear_errors(path):
    """Turn what the file system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        fault = f"cannot write {path} ({error.strerror or error})"
        raise EmoError(f"{fault}; make room or choose another place, then do it again") from error


@contextmanager
def atomic_path(path, folder=False):
    """Yield a temporary file or folder beside `path`; rename it to `path` if the block succeeds.

    Raises `EmoError` where the disk is full or must not be written. The temporary name keeps the
    suffix, because writers such as `np.save` and `cv2` look at it.
    """
    path = Path(os.path.abspath(path))  # even "." has a name
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.part{path.suffix}")
    try:
        with clear_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            (temporary.mkdir if folder else temporary.touch)()  # refused here, before the work
            yield temporary
            if folder and path.is_dir():
                path.rmdir()  # raises when it is not empty: nothing of the user's is overwritten
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # nothing there, or a read-only disk
            shutil.rmtree(temporary, True) if folder else temporary.unlink()


@contextmanager
def claim(folder):
    """Own `folder` during the block: remove what a killed process left half written there.

    Raises `EmoError` while another process owns it.
    """
    folder = Path(folder).resolve()
    name = hashlib.sha256(f"{Path.home()} {folder}".encode()).hexdigest()[:16]
    # The lock lies on this machine's own disk: network disks may know none.
    lock = FileLock(Path(tempfile.gettempdir(), f"emo-{name}.lock"), is_singleton=True)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        fault = f"another process is working on {folder}"
        raise EmoError(f"{fault}; wait for it, or choose another folder") from None
    with held:
        half = f"-{'[0-9a-f]' * 8}.part"
        beside = folder.parent.glob(f".{escape(folder.stem)}{half}{escape(folder.suffix)}")
        for left in [*beside, *folder.glob(f".*{half}*")]:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)
        yield


def require_space(target, needed, cure="free some or use another disk"):
    """Raise `EmoError` when the disk of `target` has no room for so many bytes."""
    free = shutil.disk_usage(next(folder for folder in target.parents if folder.exists())).free
    if free < needed:
        sizes = f"{needed / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free"
        raise EmoError(f"not enough space for {target}: {sizes}; {cure}")


def write_json(path, value):
    """Write `value` as indented JSON; NaN is refused, because it is not JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


def read_json(path):
    """Read a JSON object; raise `EmoError` with its name when it is missing or damaged."""
    try:
        return dict(json.loads(Path(path).read_text("utf-8")).items())
    except FileNotFoundError:
        raise EmoError(f"{path} does not exist") from None
    except (ValueError, AttributeError, RecursionError) as error:  # a list has no items
        raise EmoError(f"{path} is not readable as JSON ({error}); write it again") from None


def user_cache():
    """Return the folder below which `emo` may keep files for this user."""
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "emo"


def work_folder(root):
    """Return where things derived from the data in `root` lie: `root/.emo` if that is writable."""
    here = Path(root).resolve() / ".emo"
    if os.access(here if here.is_dir() else here.parent, os.W_OK):
        return here
    return user_cache() / hashlib.sha256(str(here).encode()).hexdigest()[:16]
