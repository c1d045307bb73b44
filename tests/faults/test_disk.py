"""A full disk and a read-only one at each stage: one sentence, nothing half written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_each_stage_on_a_full_and_on_a_read_only_disk(run, faces, tmp_path):
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"]).returncode:
        pytest.skip("this machine lets nobody mount a small disk (unshare)")
    (tmp_path / "disk").mkdir()
    script = Path(__file__).with_name("small_disk.py")
    command += [sys.executable, str(script), *map(str, (tmp_path / "disk", run, faces))]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(said, indent=1))
    for stage, states in said.items():
        for state, words in states.items():
            if words != "done":
                reasons = ("space", "Read-only", "disk is full", "room")
                assert any(reason in words for reason in reasons), (stage, state)
        # A pack of a read-only folder goes to the user's cache.
        assert stage == "pack" or states["read-only"] != "done" != states["0"], stage
        assert all(words == "done" or words.startswith("EmoError") for words in states.values())
