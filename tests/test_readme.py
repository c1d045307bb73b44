"""Every command of the README that needs no network is run, with smaller numbers."""

import csv
import re
import shlex
from pathlib import Path

import cv2
import pytest

from emo import bench, synth
from emo.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SMALLER = {"--count": "240", "--epochs": "1", "--image-size": "32"}
NETWORK = ("emo download", "pip install", "git clone", "conda ", "jupyter", "make ", "--camera 0")


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.strip()]


def offline():
    return [c for c in commands() if "python -m emo" in c and not any(n in c for n in NETWORK)]


def test_the_readme_shows_every_command():
    text = " ".join(commands())
    for name in "download synth check train evaluate export predict live bench".split():
        assert f"python -m emo {name}" in text, name


def test_commands_run_in_the_order_of_the_readme(face_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "SIZES", (32,))
    monkeypatch.setattr(bench, "BACKBONES", ("mobilenet_v2",))
    cv2.imwrite("photo.jpg", next(iter(synth.animate(seconds=1, fps=1)))[0])
    for command in offline():
        args = shlex.split(command)
        args = args[args.index("emo") + 1 :]
        for flag, value in SMALLER.items():
            if flag in args:
                args[args.index(flag) + 1] = value
        if args[0] == "export":  # test_export.py writes all five
            args += ["--formats", "weights", "onnx"]
        main(args)
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    assert (tmp_path / "outputs" / "first" / "report.html").is_file()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_to_files_work():
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_every_figure_of_the_tables_is_a_row_of_results_csv():
    rows = list(csv.DictReader((ROOT / "results.csv").open(encoding="utf-8")))
    assert rows and set(rows[0]) == {
        "name",
        "figure",
        "command",
        "commit",
        "seed",
        "machine",
        "time",
    }
    known = {row["figure"] for row in rows}
    pages = ("README.md", "docs/RESULTS.md", "emo/assets/MODEL_CARD.md")
    for text in ((ROOT / page).read_text("utf-8") for page in pages):
        figures = re.findall(r"\*\*([^*]+)\*\*", text)
        assert figures, "no figure is shown"
        for figure in figures:
            assert figure in known, f"{figure} is shown, but not in results.csv"


def test_the_readme_can_be_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 150
    assert len((ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()) <= 50


@pytest.mark.parametrize("word", ["AI Act", "felt emotion", "Apache-2.0"])
def test_the_readme_says_what_must_be_said(word):
    assert word in README
