"""Write files whole or not at all: to a temporary name beside the target, then rename."""

import hashlib
import json
import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path

from emo.errors import EmoError


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    The temporary name keeps the suffix, because writers such as `np.save` and `cv2` look at it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    temporary.touch(exist_ok=False)  # a folder that can't be written to is refused before the work
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path):
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        yield temporary
        if path.is_dir():
            path.rmdir()  # raises when it is not empty: nothing of the user's is overwritten
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path, value):
    """Write `value` as indented JSON; NaN is refused, because it is not JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


def read_json(path):
    """Read a JSON file; raise `EmoError` with its name when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise EmoError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EmoError(f"{path} is not readable as JSON ({error}); write it again") from None


def sha256(path):
    """Return the SHA-256 of a file as a hexadecimal string."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
