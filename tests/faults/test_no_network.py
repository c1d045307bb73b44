"""After the set-up nothing leaves the machine, and nothing is written that nobody asked for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from emo import synth

pytestmark = pytest.mark.slow


@pytest.fixture
def offline():
    """Start of a command that runs without any network, not even one that could answer "no"."""
    command = ["unshare", "--user", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"]).returncode:
        pytest.skip("this machine makes no namespace without a network (unshare)")
    return command


def written(folder):
    """Files below, without matplotlib's list of this machine's fonts."""
    files = {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}
    return {path for path in files if "/matplotlib/fontlist" not in path}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("predict photo.jpg", set()),
        ("live --camera synthetic --headless", set()),
        ("live --camera synthetic --headless --log log.csv", {"work/log.csv"}),
    ],
)
def test_command(words, expected, face_model, offline, tmp_path):
    """With the starter model, as after the set-up."""
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work, tmp_path / "tmp"):
        folder.mkdir()
    cv2.imwrite(
        str(work / "photo.jpg"), synth.render(synth.sample("Happy", seed=4, frontal=True), 480)
    )
    before = written(tmp_path)
    env = os.environ | {"HOME": str(home), "TMPDIR": str(tmp_path / "tmp")}
    env.pop("CI", None)  # on a server for tests, ONNX Runtime reports nothing by itself
    env |= {"EMO_FACE_MODEL": str(face_model), "XDG_CACHE_HOME": str(home / "cache")}
    command = [*offline, sys.executable, "-m", "emo", *words.split()]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert written(tmp_path) - before == expected
