"""All six notebooks, top to bottom, with small parameters; and what every notebook must have."""

import json
import re
import sys
import types
from pathlib import Path

import nbformat
import pytest
import run_course

SMALL = {"01": {"count": 240}, "03": {"epochs": 1, "image_size": 32, "batch_size": 32}}
SMALL["02"] = {"answers": [i % 8 for i in range(24)]}  # a learner who never looks at the faces
PATHS = run_course.NOTEBOOKS


def cells(path, kind="code"):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def test_all_six_run_in_order(face_model, tmp_path):
    parameters = run_course.course_parameters(None, tmp_path)
    for path in PATHS:
        number = path.stem[:2]
        notebook = run_course.run_notebook(path, parameters[number] | SMALL.get(number, {}))
        run_course.write_page(notebook, tmp_path / f"{path.stem}.html")
        page = (tmp_path / f"{path.stem}.html").read_text("utf-8")
        assert not re.search(r'(src|href)="https?://[^"]*\.(js|css|png|svg)"', page), path.name
        noise = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        errors = [o for o in noise if o.output_type == "stream" and o.name == "stderr"]
        assert not errors, f"{path.name}: {errors[0].text}"
        if number in ("02", "04"):  # Beat the label: the answers are compared in both lessons
            shown = re.sub("<[^>]*>", "", page)
            assert re.search(r"agree on \d+% of the faces|24 faces that you labelled", shown)
    last = "".join(o.get("text", "") for o in notebook.cells[-1].get("outputs", []))
    last += "".join(
        o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"accuracy {metrics['emotion']['accuracy']:.3f}" in last
    assert f"mean CCC {metrics['mean_ccc']:.3f}" in last
    assert (tmp_path / "run" / "model.h5").is_file()


@pytest.mark.slow
def test_lesson_06_starts_with_the_starter_model(face_model, tmp_path):
    (tmp_path / "notebooks").mkdir()
    notebook = run_course.run_notebook(PATHS[5], {}, tmp_path / "notebooks")
    said = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert "the starter model reads the faces" in said and "see the card" in said
    assert (tmp_path / "outputs" / "starter" / "live.mp4").is_file()
    run_course.write_page(notebook, tmp_path / "06_live_demo.html")


def test_there_are_six():
    assert [path.stem[:2] for path in PATHS] == ["01", "02", "03", "04", "05", "06"]


def test_the_course_map_takes_its_questions_from_the_readme():
    rows = run_course.lessons()
    assert [row["stem"] for row in rows] == [path.stem for path in PATHS]
    assert all(row["question"].endswith("?") for row in rows)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_anatomy(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert len(re.findall(r"^# \d\d · ", text, re.MULTILINE)) == 1
    for part in ("**You will**", "**Time**", "**Needs**", "Recap", "Limits"):
        assert part in text, part
    assert "colab.research.google.com" in text
    code = cells(path)
    longest = max(len([x for x in c.source.splitlines() if x.strip()]) for c in code)
    assert longest <= 15
    assert not any(c.outputs or c.execution_count for c in code)
    tags = [tag for c in code for tag in c.metadata.get("tags", [])]
    assert tags.count("parameters") == 1
    assert not {"raises-exception", "skip-execution"} & set(tags)
    assert not any(re.search(r"^\s*try:", c.source, re.MULTILINE) for c in code)


def test_the_set_up_cell_is_the_same_in_all():
    assert len({cells(path)[0].source for path in PATHS}) == 1


def test_a_parameter_that_is_not_there_fails_loudly():
    notebook = nbformat.read(PATHS[0], as_version=4)
    with pytest.raises(ValueError, match="colour_of_sky"):
        run_course.set_parameters(notebook, {"colour_of_sky": 1})
    run_course.set_parameters(notebook, {"count": 7})
    (tagged,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert "count = 7" in tagged.source


def test_the_course_fails_when_the_model_has_not_learned():
    good = {"emotion": {"accuracy": 0.61}, "mean_ccc": 0.51}
    assert run_course.verdict(good, None)[1]
    assert not run_course.verdict(good | {"mean_ccc": 0.49}, None)[1]
    assert not run_course.verdict(good | {"mean_ccc": None}, None)[1]
    assert not run_course.verdict({"emotion": {"accuracy": 0.59}, "mean_ccc": 0.6}, None)[1]


def test_on_colab_a_token_file_may_be_uploaded_and_is_not_shown(tmp_path, monkeypatch, capsys):
    (cell,) = [c for c in cells(PATHS[0]) if c.id == "01-token"]
    (tmp_path / "kaggle (1).json").write_text("{}")  # the copy that Colab leaves

    def run(choice, has_token):
        names = {"choice": choice, "has_kaggle_token": lambda: has_token, "sys": sys, "Path": Path}
        exec(cell.source, names)  # noqa: S102 - the notebook's own cell
        return (tmp_path / ".kaggle" / "kaggle.json").is_file()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    assert not run("kaggle", False)  # not on Colab
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(upload=lambda: {"kaggle (1).json": b'{"key": "secret"}'})
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert not run("kaggle", True) and not run("synthetic", False)
    assert run("kaggle", False)
    token = tmp_path / ".kaggle" / "kaggle.json"
    assert token.read_bytes() == b'{"key": "secret"}'
    assert sys.platform == "win32" or token.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "kaggle (1).json").exists()
    assert "secret" not in capsys.readouterr().out.replace("secret KAGGLE_API_TOKEN", "")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_folder_on_drive_mounts_it_before_it_is_read(path):
    sources = [c.source for c in cells(path)]
    (mounts,) = [i for i, source in enumerate(sources) if "drive.mount" in source]
    reads = r"(is_dir|read_dataset|load_data|evaluate|export_run|create_recognizer)\("
    first = next(i for i, source in enumerate(sources) if re.search(reads, source))
    assert mounts <= first
    assert sources[mounts].index("drive.mount") < re.search(reads + "|$", sources[mounts]).start()
