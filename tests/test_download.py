"""Archives, Kaggle (a fake one on loopback) and the face model: what works, and what is refused."""

import base64
import errno
import hashlib
import json
import os
import re
import stat
import sys
import threading
import types
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from emo import EmoError, download
from emo.download import download_kaggle, face_model_path, has_kaggle_token, unpack_archive

TOKEN = "KGAT_0123456789abcdef"  # noqa: S105 - made up
FACES = {"happy/a.jpg": b"a" * 5000, "sad/a.jpg": b"b" * 300, "labels.csv": b"pth,label\n"}


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Keep the user's own tokens, cache and settings out of every test."""
    folder = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(("KAGGLE_", "EMO_"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setattr(download, "WAITS", (0, 0))
    return folder


def make_zip(path, members=FACES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return Path(path)


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name != download.MARKER
    }


# --- archives


def test_an_archive_is_unpacked_and_known_the_next_time(tmp_path, capsys):
    junk = {"__MACOSX/happy/._a.jpg": b"x", "happy/.DS_Store": b"x", "empty/": b""}
    archive = make_zip(tmp_path / "faces.zip", FACES | junk)
    dest = unpack_archive(archive, tmp_path / "data" / "faces")
    assert dest == tmp_path / "data" / "faces"
    assert tree(dest) == FACES
    assert json.loads((dest / ".emo-source.json").read_text())["files"] == 3
    assert os.listdir(dest.parent) == ["faces"]
    capsys.readouterr()
    before = (dest / "happy/a.jpg").stat().st_mtime_ns
    assert unpack_archive(str(archive), str(dest)) == dest
    assert "already holds faces.zip (3 files)" in capsys.readouterr().err
    assert (dest / "happy/a.jpg").stat().st_mtime_ns == before


def test_an_empty_folder_and_a_link_to_one_can_be_filled(tmp_path):
    archive = make_zip(tmp_path / "faces.zip")
    (tmp_path / "disk" / "faces").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "faces")
    unpack_archive(archive, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "disk" / "faces") == FACES


def test_names_with_backslashes_become_folders(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"happy/": b"", "happy/a.jpg": b"a"})
    archive.write_bytes(archive.read_bytes().replace(b"happy/", b"happy\\"))
    assert tree(unpack_archive(archive, tmp_path / "out")) == {"happy/a.jpg": b"a"}


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    killed, kept = tmp_path / ".out-abcd1234.part", tmp_path / ".out-mine"
    killed.mkdir()
    kept.mkdir()
    (killed / download.MARKER).write_text("{}")
    (kept / "notes.txt").write_text("mine")
    unpack_archive(make_zip(tmp_path / "a.zip"), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [".out-mine", "a.zip", "out"]


def test_a_folder_with_other_content_is_left_alone(tmp_path):
    archive, dest = make_zip(tmp_path / "a.zip"), tmp_path / "out"
    dest.mkdir()
    (dest / "thesis.txt").write_text("years of work")
    with pytest.raises(EmoError, match="something other than a.zip; delete it or choose another"):
        unpack_archive(archive, dest)
    assert tree(dest) == {"thesis.txt": b"years of work"}
    with pytest.raises(EmoError, match="something other than"):
        unpack_archive(archive, dest / "thesis.txt")
    unpack_archive(archive, tmp_path / "first")
    with pytest.raises(EmoError, match="something other than b.zip"):
        unpack_archive(make_zip(tmp_path / "b.zip", {"b.png": b"b"}), tmp_path / "first")


def test_lost_files_are_noticed(tmp_path):
    archive = make_zip(tmp_path / "a.zip")
    dest = unpack_archive(archive, tmp_path / "out")
    (dest / "happy/a.jpg").unlink()
    with pytest.raises(EmoError, match="has lost some of the 3 files of a.zip; delete it"):
        unpack_archive(archive, dest)


def link_member(path):
    info = zipfile.ZipInfo("happy/a.jpg")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr(info, "/etc/passwd")


def twice(path):
    with zipfile.ZipFile(path, "w") as bundle, pytest.warns(UserWarning):
        bundle.writestr("a.jpg", b"1")
        bundle.writestr("a.jpg", b"2")


def cut_off(path):
    make_zip(path)
    path.write_bytes(path.read_bytes()[:-40])


def one_bit_flipped(path):
    content = os.urandom(2000)
    make_zip(path, {"a.jpg": content})
    raw = bytearray(path.read_bytes())
    raw[raw.index(content[:20]) + 900] ^= 1  # random bytes are stored as they are
    path.write_bytes(raw)


def lying_about_the_size(path):
    make_zip(path, {"a.jpg": bytes(100_000)})
    path.write_bytes(path.read_bytes().replace((100_000).to_bytes(4, "little"), b"\x0a\0\0\0"))


def with_password(path):
    make_zip(path, {"a.jpg": b"a"})
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + offset] |= 1
    path.write_bytes(raw)


def make(members):
    return lambda path: make_zip(path, members)


BAD_ARCHIVES = {
    "missing": (lambda path: None, "there is no file .*a.zip"),
    "a folder": (lambda path: path.mkdir(), "there is no file .*a.zip"),
    "0 bytes": (lambda path: path.write_bytes(b""), "is empty"),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html>"), "is not a zip archive"),
    "cut off": (cut_off, "is cut off or damaged; download it again"),
    "flipped": (one_bit_flipped, "cannot be unpacked .*CRC.*a.jpg.*get it again"),
    "no members": (make({}), "holds no files"),
    "folders only": (make({"happy/": b""}), "holds no files"),
    "no images": (make({"a.csv": b"x", "b/README": b"x"}), "holds no images, only .csv, README"),
    "parent": (make({"a.jpg": b"a", "../evil.jpg": b"x"}), "not safe: '../evil.jpg' leaves"),
    "inner parent": (make({"a/../../evil.jpg": b"x"}), "not safe"),
    "parent folder": (make({"a.jpg": b"a", "../evil/": b""}), "not safe"),
    "backslashes": (make({"..\\evil.jpg": b"x"}), "not safe"),
    "absolute": (make({"/tmp/evil.jpg": b"x"}), "not safe"),  # noqa: S108
    "drive": (make({"C:\\evil.jpg": b"x"}), "not safe"),
    "link": (link_member, "not safe: 'happy/a.jpg' is a link"),
    "twice": (twice, "holds 'a.jpg' twice"),
    "bomb": (make({"a.jpg": bytes(3_000_000)}), "not safe: it would unpack to 0.0 GB"),
    "lying": (lying_about_the_size, "cannot be unpacked"),
    "password": (with_password, "password"),
    "file and folder": (make({"a": b"x", "a/b.jpg": b"x"}), "cannot write"),
}


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_a_bad_archive_gets_one_sentence_and_leaves_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BOMB_BYTES", 2_000_000)
    build, message = BAD_ARCHIVES[name]
    build(tmp_path / "a.zip")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EmoError, match=message) as caught:
        unpack_archive(tmp_path / "a.zip", tmp_path / "out" / "faces")
    assert "\n" not in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.name != "out"] == before


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tiny_disk(_):
    return types.SimpleNamespace(free=1000)


@pytest.mark.parametrize(
    ("name", "fake", "message"),
    [
        ("disk_usage", tiny_disk, "not enough space for .*needed, 0 MB free"),
        ("copyfileobj", full_disk, "No space left on device"),
    ],
)
def test_a_full_disk_leaves_nothing_half_written(name, fake, message, tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip")
    monkeypatch.setattr(download.shutil, name, fake)
    with pytest.raises(EmoError, match=message):
        unpack_archive(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.zip"]


# --- Kaggle


class FakeKaggle(ThreadingHTTPServer):
    """Answer as Kaggle does: a POST is sent on to a signed address, which knows ranges.

    `script` holds one word for each coming POST or GET: a status, "cut", "whole", or "ok".
    """

    def __init__(self, content):
        try:
            super().__init__(("localhost", 7777), Handler)
        except OSError as error:
            pytest.fail(f"port 7777, which Kaggle's client uses for tests, is taken: {error}")
        self.content, self.etag, self.script, self.seen = content, '"v1"', [], []
        self.md5 = hashlib.md5(content, usedforsecurity=False).digest()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.note(f"{body['ownerSlug']}/{body['datasetSlug']}")
        word = self.next_word("POST")
        if word == "ok":
            self.send_response(302)
            self.send_header("Location", "http://localhost:7777/storage/a.zip?signature=hidden")
        else:
            self.send_response(int(word))
            self.send_header("Retry-After", "7")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        self.note(self.headers.get("Range"))
        word, content = self.next_word("GET"), self.server.content
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and word != "whole" else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", self.server.etag)
        self.send_header(
            "x-goog-hash", f"crc32c=AAAA, md5={base64.b64encode(self.server.md5).decode()}"
        )
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + (len(content) - start) // 2 if word == "cut" else None
        self.wfile.write(content[start:end])

    def note(self, what):
        self.server.seen.append((self.command, what, self.headers.get("Authorization")))

    def next_word(self, command):
        script = self.server.script
        return script.pop(0)[1] if script and script[0][0] == command else "ok"

    def log_message(self, *_):
        pass


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    faces = {f"happy/{i}.jpg": bytes([i]) * 9 + os.urandom(20_000) for i in range(5)}
    server = FakeKaggle(make_zip(tmp_path / "original.zip", faces).read_bytes())
    server.faces = faces
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "data" / "affectnet"


def ranges(server):
    return [what for command, what, _ in server.seen if command == "GET"]


def test_kaggle_is_downloaded_once(kaggle, dest, capfd, caplog):
    caplog.set_level("DEBUG")
    assert download_kaggle("someone/faces", dest) == dest
    assert tree(dest) == kaggle.faces
    assert os.listdir(dest.parent) == ["affectnet"]
    assert kaggle.seen[0] == ("POST", "someone/faces", f"Bearer {TOKEN}")
    count = len(kaggle.seen)
    assert download_kaggle("someone/faces", dest) == dest
    assert len(kaggle.seen) == count
    printed = capfd.readouterr()
    assert "already holds Kaggle's someone/faces (5 files)" in printed.err
    assert TOKEN not in printed.out + printed.err + caplog.text
    with pytest.raises(EmoError, match="something other than Kaggle's someone/else"):
        download_kaggle("someone/else", dest)


def test_a_broken_connection_is_resumed(kaggle, dest):
    kaggle.script += [("GET", "cut"), ("GET", "ok"), ("GET", "cut"), ("GET", "ok"), ("GET", "ok")]
    download_kaggle(dest=dest)
    assert tree(dest) == kaggle.faces
    starts = [int(asked[6:-1]) for asked in ranges(kaggle) if asked]
    assert starts[0] > 40_000 and starts == sorted(starts)  # half had come, and was kept


def test_the_next_run_resumes(kaggle, dest, monkeypatch):
    monkeypatch.setattr(download, "WAITS", ())
    kaggle.script += [("GET", "cut")]
    with pytest.raises(EmoError, match=r"did not deliver \(.*Error\); run this later to go on"):
        download_kaggle(dest=dest)
    (part,) = dest.parent.iterdir()
    assert part.name.startswith("affectnet-") and part.name.endswith(".zip.part")
    size = part.stat().st_size
    download_kaggle(dest=dest)
    assert ranges(kaggle)[-1] == f"bytes={size}-"
    assert tree(dest) == kaggle.faces and os.listdir(dest.parent) == ["affectnet"]


def test_a_part_of_another_version_is_not_continued(kaggle, dest, monkeypatch):
    monkeypatch.setattr(download, "WAITS", ())
    kaggle.script += [("GET", "cut")]
    with pytest.raises(EmoError):
        download_kaggle(dest=dest)
    kaggle.etag = '"v2"'
    download_kaggle(dest=dest)
    assert ranges(kaggle)[-1] is None
    assert tree(dest) == kaggle.faces


def test_a_server_that_knows_no_ranges_sends_it_all_again(kaggle, dest):
    kaggle.script += [("GET", "cut"), ("GET", "whole"), ("GET", "whole")]
    download_kaggle(dest=dest)
    assert tree(dest) == kaggle.faces


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"refuses the token \(HTTP 401\)(.|\n)*1. Sign in at(.|\n)*2. Save it(.|\n)*3. Run"),
        (403, r"refuses the token \(HTTP 403\)(.|\n)*may not read .*/datasets/some/faces"),
        (404, r"has no data set 'some/faces' \(HTTP 404\); check its name"),
        (400, "HTTP 400"),
    ],
)
def test_a_refusal_is_final(status, message, kaggle, dest, capfd):
    kaggle.script += [("POST", status)]
    with pytest.raises(EmoError, match=message) as caught:
        download_kaggle("some/faces", dest)
    assert len(kaggle.seen) == 1
    assert TOKEN not in str(caught.value) + "".join(capfd.readouterr())
    assert not dest.parent.exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status, kaggle, dest, monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    kaggle.script += [("POST", status), ("POST", status)]
    download_kaggle(dest=dest)
    assert tree(dest) == kaggle.faces
    assert waits == [7, 7]  # as the server asked
    assert f"did not deliver (HTTP {status}); trying again in 7 s" in capsys.readouterr().err
    kaggle.script += [("POST", status)] * 3
    with pytest.raises(EmoError, match=rf"did not deliver \(HTTP {status}\); run this later"):
        download_kaggle(dest=dest.parent / "other")


def test_no_server_at_all(monkeypatch, dest):
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    with pytest.raises(EmoError, match=r"Kaggle did not deliver \(ConnectionError\)"):
        download_kaggle(dest=dest)


def test_damage_on_the_way_is_noticed(kaggle, dest):
    right, kaggle.md5 = kaggle.md5, b"\0" * 16
    with pytest.raises(EmoError, match="md5"):
        download_kaggle(dest=dest)
    assert not dest.exists()
    kaggle.md5 = right
    download_kaggle(dest=dest)
    assert tree(dest) == kaggle.faces


def test_too_short_a_file_is_not_unpacked(kaggle, dest):
    kaggle.script += [("GET", "cut")] * 9
    with pytest.raises(EmoError, match="did not deliver"):
        download_kaggle(dest=dest)
    assert not dest.exists()


def test_what_is_no_archive_is_not_kept(kaggle, dest):
    kaggle.content = b"<html>please sign in</html>"
    kaggle.md5 = hashlib.md5(kaggle.content, usedforsecurity=False).digest()
    with pytest.raises(EmoError, match="is not a zip archive"):
        download_kaggle(dest=dest)
    assert os.listdir(dest.parent) == []


def test_a_full_disk_stops_the_download_and_keeps_the_part(kaggle, dest, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", tiny_disk)
        with pytest.raises(EmoError, match="not enough space for .*zip.part"):
            download_kaggle(dest=dest)
    with monkeypatch.context() as patch:
        patch.setattr(download.tqdm, "update", full_disk)
        with pytest.raises(EmoError, match="No space left on device"):
            download_kaggle(dest=dest)
    assert not dest.exists()
    download_kaggle(dest=dest)
    assert ranges(kaggle)[-1] == "bytes=8192-"
    assert tree(dest) == kaggle.faces


def test_without_a_token_the_steps_to_one_are_given(dest):
    assert not has_kaggle_token()
    with pytest.raises(EmoError, match="no Kaggle token was found") as caught:
        download_kaggle(dest=dest)
    for word in ("kaggle.com/settings/api", "~/.kaggle/access_token", "KAGGLE_API_TOKEN", "Colab"):
        assert word in str(caught.value)
    with pytest.raises(EmoError, match="expected owner/name"):
        download_kaggle("affectnet", dest)
    assert not dest.parent.exists()


def in_variable(home, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN + "\n")


def in_pair_of_variables(home, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", "ada")
    monkeypatch.setenv("KAGGLE_KEY", TOKEN)


def in_file(name, text):
    def store(home, monkeypatch):
        (home / ".kaggle").mkdir()
        (home / ".kaggle" / name).write_text(text, "utf-8")

    return store


def in_colab(**secrets):
    def store(home, monkeypatch):
        userdata = types.ModuleType("google.colab.userdata")
        userdata.get = secrets.__getitem__  # raises for a secret that is not there
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
        monkeypatch.setitem(sys.modules, "google.colab.userdata", userdata)

    return store


BASIC = "Basic " + base64.b64encode(f"ada:{TOKEN}".encode()).decode()
PAIR = json.dumps({"username": "ada", "key": TOKEN})


@pytest.mark.parametrize(
    ("store", "header"),
    [
        (in_variable, f"Bearer {TOKEN}"),
        (in_file("access_token", f"\ufeff{TOKEN}\n"), f"Bearer {TOKEN}"),
        (in_file("access_token.txt", TOKEN), f"Bearer {TOKEN}"),
        (in_pair_of_variables, BASIC),
        (in_file("kaggle.json", PAIR), BASIC),
        (in_colab(KAGGLE_API_TOKEN=TOKEN), f"Bearer {TOKEN}"),
        (in_colab(KAGGLE_USERNAME="ada", KAGGLE_KEY=TOKEN), BASIC),
    ],
)
def test_every_kind_of_token_is_found(store, header, kaggle, home, dest, monkeypatch, capfd):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    assert not has_kaggle_token()
    store(home, monkeypatch)
    assert has_kaggle_token()
    download_kaggle(dest=dest)
    assert kaggle.seen[0][2] == header
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.skipif(os.name != "posix", reason="Windows has no file modes")
def test_a_token_that_others_can_read_is_made_private(home, capsys):
    in_file("access_token", TOKEN)(home, None)
    path = home / ".kaggle" / "access_token"
    path.chmod(0o644)
    assert has_kaggle_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "was readable by others" in capsys.readouterr().err
    assert has_kaggle_token()
    assert capsys.readouterr().err == ""


def test_a_damaged_kaggle_json_is_named(home):
    in_file("kaggle.json", "{not json")(home, None)
    with pytest.raises(EmoError, match="kaggle.json is not readable as JSON"):
        has_kaggle_token()


# --- the face model


@pytest.fixture
def model(monkeypatch):
    content = b"the face model"
    monkeypatch.setattr(download, "FACE_MODEL_SHA256", hashlib.sha256(content).hexdigest())
    return content


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError

    monkeypatch.setattr(download.requests, "get", refuse)
    monkeypatch.setattr(download.subprocess, "run", lambda *_, **__: None)


def serve(monkeypatch, content):
    answer = types.SimpleNamespace(content=content)
    monkeypatch.setattr(download.requests, "get", lambda *_, **__: answer)


def test_the_face_model_is_fetched_once_and_cached(model, home, offline, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        serve(patch, model)
        path = face_model_path()
    assert path == home / "emo" / "face_detection_short_range.tflite"
    assert path.read_bytes() == model
    assert "Apache-2.0" in capsys.readouterr().err
    assert face_model_path() == path
    assert capsys.readouterr().err == ""


def test_without_the_web_address_the_wheel_is_read(model, offline, monkeypatch):
    commands = []

    def pip(command, **_):
        commands.append(command)
        if command[0] == sys.executable:
            return  # no pip in this environment
        folder = next(word for word in command if word.startswith("--dest=")).removeprefix(
            "--dest="
        )
        member = "mediapipe/modules/face_detection/face_detection_short_range.tflite"
        make_zip(Path(folder) / "mediapipe-0.10.21-cp312.whl", {member: model})

    monkeypatch.setattr(download.subprocess, "run", pip)
    assert face_model_path().read_bytes() == model
    assert [command[:4] for command in commands] == [
        [sys.executable, "-m", "pip", "download"],
        ["uv", "tool", "run", "pip"],
    ]
    assert commands[0][-1] == "mediapipe==0.10.21"


def test_a_wrong_face_model_is_never_used(model, home, offline, monkeypatch):
    cached = home / "emo" / "face_detection_short_range.tflite"
    cached.parent.mkdir()
    cached.write_bytes(b"half of the fa")
    serve(monkeypatch, b"<html>")
    with pytest.raises(
        EmoError, match="not the expected bytes.* or mediapipe.*EMO_FACE_MODEL"
    ) as caught:
        face_model_path()
    assert "mediapipe==0.10.21" in str(caught.value)
    serve(monkeypatch, model)
    assert face_model_path().read_bytes() == model  # the bad cache is replaced


def test_a_chosen_face_model_is_used_or_refused(model, offline, tmp_path, monkeypatch):
    chosen = tmp_path / "mine.tflite"
    monkeypatch.setenv("EMO_FACE_MODEL", str(chosen))
    with pytest.raises(EmoError, match="EMO_FACE_MODEL=.*mine.tflite does not exist"):
        face_model_path()
    chosen.write_bytes(b"another model")
    with pytest.raises(EmoError, match="mine.tflite is not the expected file"):
        face_model_path()
    chosen.write_bytes(model)
    assert face_model_path() == chosen


def test_a_cache_that_cannot_be_written_is_named(model, home, offline, monkeypatch):
    serve(monkeypatch, model)
    (home / "emo").write_text("a file where the folder should be")
    with pytest.raises(EmoError, match="cannot write .*face_detection_short_range.tflite"):
        face_model_path()
