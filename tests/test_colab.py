"""The Colab twin: Colab's packages, its pip, the set-up cell as it stands, and all six lessons.

`fake_colab/` stands in for Colab's own package. Only a GPU and a browser are missing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import run_course
import set_address
from conftest import missing
from test_notebooks import SMALL

from emo.synth import render, sample, write_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")  # `make setup` puts it there
# Colab's kernel, and packages that ours meet there; the tree of ours is added to these.
KERNEL = "pip setuptools wheel ipykernel ipython ipywidgets anywidget jupyter-client jedi".split()
NEIGHBOURS = "keras h5py tensorflow opencv-python opencv-python-headless".split()
ABSL = "1.4.0"  # Colab's; mediapipe needs a newer one, which harms nobody
HUSH = {"TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": "1"}
LESSONS = {
    "01": SMALL["01"],
    "02": SMALL["02"],
    "03": SMALL["03"] | {"pretrained": False, "sweep": []},
    "04": {"bias_experiment": False},
    "05": {},
    "06": {"photo": "camera"},
}


def sh(*command, **options):
    """Return what a command printed; one that fails shows it."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def need_uv():
    if not UV.is_file():
        missing(f"{UV} is missing; run `make setup`")


def find_python(version):
    """Return a Python that pyenv has, or one on the PATH."""
    root = os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")
    pyenv = sorted(Path(root).glob(f"versions/{version}.*/bin/python"))
    found = pyenv[-1] if pyenv else shutil.which(f"python{version}")
    return found or missing(f"the Colab twin needs Python {version}")


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def colab_has(constraints):
    """Return {name: "name==version"} of all that Colab has preinstalled."""
    lines = [line for line in constraints.read_text("utf-8").splitlines() if "==" in line]
    return {canonical(line.partition("==")[0]): line for line in lines}


def preinstalled(python, constraints):
    """Return the part of Colab that our dependency tree, or its kernel, touches, with versions."""
    command = f"pip compile -q --no-header --no-annotate -c {constraints} --python {python}"
    wanted = "\n".join(KERNEL + NEIGHBOURS)
    tree = sh(UV, *command.split(), "pyproject.toml", "-", input=wanted, cwd=ROOT).split()
    has, ours = colab_has(constraints), {canonical(line.partition("==")[0]): line for line in tree}
    cuda = [line for name, line in ours.items() if re.match("nvidia-|cuda-|triton", name)]
    return [has[name] for name in ours if name in has] + cuda + [f"absl-py=={ABSL}"]


def packages(python):
    """Return {name: version} of what pip sees."""
    listed = json.loads(sh(python, "-m", "pip", "list", "--format=json"))
    return {canonical(entry["name"]): entry["version"] for entry in listed}


def complaints(python):
    """Return what `pip check` finds wrong."""
    done = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True)
    return set(done.stdout.splitlines()) - {"No broken requirements found."}


def published(folder):
    """Copy what is installed into a repository of its own: changes count before a commit, too."""
    shutil.copytree(ROOT / "emo", folder / "emo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    git = ("git", "-C", folder, "-c", "user.name=twin", "-c", "user.email=twin@invalid")
    sh(*git, "init", "-q")
    sh(*git, "add", ".")
    sh(*git, "commit", "-q", "-m", "as it is")
    return f"file://{folder}"


@pytest.fixture(scope="module")
def twin(tmp_path_factory, real_faces, face_model):
    """Python with Colab's packages, and a kernel `colab` that runs in a folder like /content."""
    need_uv()
    constraints = real_faces.parent / "colab" / "constraints.txt"
    if not constraints.is_file():
        missing("no colab/constraints.txt beside the folder that EMO_TEST_FACES names")
    base, start = tmp_path_factory.mktemp("colab"), time.monotonic()
    python, content = base / "venv" / "bin" / "python", base / "content"
    sh(UV, "venv", "-q", "--python", find_python("3.13"), base / "venv")
    wanted = preinstalled(python, constraints)
    # Without dependencies: Colab lacks some, too (jedi, for one).
    sh(UV, *"pip install -q --no-deps --python".split(), python, *wanted)
    content.mkdir()
    (base / "drive" / "MyDrive").mkdir(parents=True)
    cv2.imwrite(str(base / "photo.jpg"), render(sample("Happy", seed=21, frontal=True), 480))
    home = {
        "HOME": str(content),  # nobody's tokens
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config")),
    }
    home |= {name: "" for name in os.environ if name.startswith("KAGGLE_")}
    git = {  # so that the set-up cell runs unchanged
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{published(base / 'emo')}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{set_address.address()}",
    }
    env = home | git | HUSH | {"FAKE_COLAB": str(base), "EMO_FACE_MODEL": str(face_model)}
    env["PYTHONPATH"] = str(Path(__file__).with_name("fake_colab"))
    argv = [str(python), "-m", "colab_kernel_launcher", "-f", "{connection_file}"]
    spec = base / "jupyter" / "kernels" / "colab" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": argv, "display_name": "Colab", "env": env}))
    before, broken = packages(python), complaints(python)
    print(f"\n{len(wanted)} packages of Colab in {time.monotonic() - start:.0f} s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(base / "jupyter"))
        yield SimpleNamespace(**locals())
    shutil.rmtree(base / "venv")  # 7 GB, where it could not be linked to uv's cache


def run_lesson(twin, number, **parameters):
    """Run a notebook in the twin; return {source: its outputs as text}."""
    (path,) = (path for path in run_course.NOTEBOOKS if path.stem[:2] == number)
    start = time.monotonic()
    notebook = run_course.run_notebook(path, parameters, folder=twin.content, kernel_name="colab")
    print(f"\n{path.stem} {parameters}: {time.monotonic() - start:.0f} s")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    noise = [o.text for c in code for o in c.outputs if o.get("name") == "stderr"]
    assert not noise
    return {cell.source: json.dumps(cell.outputs) for cell in code}


def output_of(shown, start):
    (output,) = (text for source, text in shown.items() if source.startswith(start))
    return output


@pytest.fixture(scope="module")
def first(twin):
    """Lesson 01, whose set-up cell installs `emo` in the kernel that then imports it."""
    assert "emo" not in twin.before
    return run_lesson(twin, "01", **LESSONS["01"])


def test_set_up_changes_nothing_of_colab_but_absl(twin, first):
    set_up = next(text for source, text in first.items() if "%pip install" in source)
    print(set_up)
    after = packages(twin.python)
    added = {name: version for name, version in after.items() if name not in twin.before}
    print("added:", ", ".join(f"{name} {version}" for name, version in added.items()))
    changed = {name for name, version in twin.before.items() if after.get(name) != version}
    assert changed == {"absl-py"}
    assert {"emo", "mediapipe", "onnx", "onnxruntime"} <= set(added)
    assert not [name for name in added if name.startswith(("jupyterlab", "opencv", "nvidia"))]
    assert complaints(twin.python) <= twin.broken


def test_lesson_01_chooses_synthetic_faces_where_no_secret_is(first):
    assert "no archive and no Kaggle token" in output_of(first, "assert source in")


@pytest.mark.parametrize("number", list(LESSONS)[1:])
def test_lesson(twin, first, number):
    shown = run_lesson(twin, number, **LESSONS[number])
    if number == "06":
        found = output_of(shown, "found = recognizer.recognize(picture")
        assert "<th>0</th>" in found and "<th>1</th>" not in found  # the photo has one face
        assert (twin.base / "custom widgets").exists()  # or Colab would show none of ours


def test_upload_and_drive_on_the_other_opencv(twin, first):
    """Colab has three OpenCVs in one folder, so which one is imported is a matter of luck."""
    version = (twin.python, "-c", "import cv2; print(cv2.__version__)")
    old = sh(*version)
    other = "opencv-python" if old.startswith("4") else "opencv-contrib-python"
    command = ("pip", "install", "-q", "--no-deps", "--python", twin.python, "--reinstall")
    sh(UV, *command, f"{other}=={twin.before[other]}")
    assert sh(*version) != old
    shown = run_lesson(twin, "06", photo="upload")
    found = output_of(shown, "found = recognizer.recognize(picture")
    assert "<th>0</th>" in found and "<th>1</th>" not in found
    faces = write_dataset(twin.base / "faces", 64, seed=5, size=48)
    shutil.make_archive(twin.base / "drive" / "MyDrive" / "faces", "zip", faces)
    archive = "/content/drive/MyDrive/faces.zip"
    shown = run_lesson(twin, "01", archive=archive, data_dir="data/drive")
    assert "64 labelled faces" in output_of(shown, 'if choice == "archive"')


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_newest_of_everything_fits_together(version):
    need_uv()
    command = "pip compile -q --all-extras --no-build --no-python-downloads --no-header"
    tree = sh(UV, *command.split(), "--python-version", version, "pyproject.toml", cwd=ROOT)
    names = set(re.findall("^[a-z]+", tree, re.MULTILINE))
    assert {"torch", "mediapipe", "onnx", "keras", "jupyter"} <= names
