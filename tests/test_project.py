"""What holds the project's files together."""

import ast
import re
import tomllib
from pathlib import Path

import set_address
import yaml

import emo

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FLOORS = (
    "files emotions metrics losses plots model portrait synth download sources dataset "
    "audit faces recognize recipes runs train evaluation export live window predict camera bench "
    "cli __main__ __init__"
).split()


def test_environment_yml_says_the_same_as_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    extras = [d for values in PROJECT["optional-dependencies"].values() for d in values]
    assert sorted(pip) == sorted([*PROJECT["dependencies"], *extras, "--editable ."])
    assert f"python{PROJECT['requires-python']}" in conda


def test_one_address_everywhere():
    owner = set_address.address()
    found = set()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("notebooks/*.ipynb")]:
        text = path.read_text("utf-8")
        found |= set(re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/", text))
        found |= set(re.findall(r"git\+https://github\.com/([\w.-]+/[\w-]+)", text))
    assert found == {owner}


def test_rooms_import_only_from_floors_below():
    for path in (ROOT / "emo").glob("*.py"):
        floor = FLOORS.index(path.stem)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("emo"):
                names = [node.module[4:]] if "." in node.module else [a.name for a in node.names]
                for name in names:
                    if name in FLOORS:
                        assert FLOORS.index(name) < floor, f"{path.name} imports {name}"


def test_the_module_stays_readable():
    lines = sum(len(p.read_text("utf-8").splitlines()) for p in (ROOT / "emo").glob("*.py"))
    assert lines <= 4500


def test_public_names():
    for name in (
        "create_model create_recognizer MediaPipeFaceDetector EmotionPreprocessor TrainConfig fit "
        "evaluate export_to_onnx export_to_torchscript export_to_keras"
    ).split():
        assert name in emo.__all__
        assert getattr(emo, name).__doc__


def test_no_data_becomes_code():
    """No eval, exec, unpickling or shell; `torch.load` reads weights only."""
    for path in [*(ROOT / "emo").glob("*.py"), *(ROOT / "docs").glob("*.py")]:
        for call in (
            n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if type(n) is ast.Call
        ):
            name, options = ast.unparse(call.func), {o.arg: o.value for o in call.keywords}
            values = {key: getattr(value, "value", None) for key, value in options.items()}
            place = f"{path.name}:{call.lineno}: {name}"
            assert name not in ("eval", "exec", "os.system", "joblib.load", "yaml.load"), place
            assert not name.startswith(("pickle.load", "marshal.", "shelve.")), place
            assert not values.get("shell") and not values.get("allow_pickle"), place
            assert name != "torch.load" or values.get("weights_only") is True, place


def test_every_dependency_is_bounded():
    extras = [d for values in PROJECT["optional-dependencies"].values() for d in values]
    assert [d for d in [*PROJECT["dependencies"], *extras] if ">=" not in d] == []
