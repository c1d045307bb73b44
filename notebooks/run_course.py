"""Run notebooks 01–06 in order, write them as HTML pages to build/course/ and say how it went.

`make course` calls this. It stops at the first failing cell and shows it.
"""

import argparse
import copy
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "course"
NOTEBOOKS = sorted(HERE.glob("0*.ipynb"))
LEAST = {"accuracy": 0.60, "mean CCC": 0.50}  # on unseen synthetic people


def set_parameters(notebook, parameters):
    """Replace assignments in the cell tagged `parameters`; a name that is not there raises."""
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"expected one cell tagged 'parameters', found {len(tagged)}")
    for name, value in parameters.items():
        pattern = re.compile(rf"^{name} = .*$", re.MULTILINE)
        if not pattern.search(tagged[0].source):
            raise ValueError(f"the parameters cell does not set {name!r}")
        line = f"{name} = {value!r}  # set by run_course.py"
        tagged[0].source = pattern.sub(lambda _, line=line: line, tagged[0].source)


def run_notebook(path, parameters, folder=HERE, **options):
    """Execute a notebook with these parameters and return it; a failing cell raises."""
    notebook = nbformat.read(path, as_version=4)
    set_parameters(notebook, parameters)
    options |= {"resources": {"metadata": {"path": str(folder)}}, "store_widget_state": False}
    client = NotebookClient(notebook, timeout=1800, **options)
    with tempfile.TemporaryFile() as log:  # what the kernel's C++ libraries have to say
        client.execute(stderr=log)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not _is_progress_bar(o)]
    return notebook


def _is_progress_bar(output):
    """Take the widget out of an output; tell a tqdm bar, which would stand at 0 % for ever."""
    widget = output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    text = output.get("data", {}).get("text/plain", "")
    if widget is not None and text.startswith("VBox("):
        output["data"]["text/plain"] = "(controls to use, in the opened notebook)"
    return widget is not None and "%|" in text


def course_parameters(archive, work):
    """Return the parameters of each notebook, by its number."""
    data, run = str(work / "data"), str(work / "run")
    source = {"source": "archive", "archive": archive} if archive else {"source": "synthetic"}
    return {
        "01": {"data_dir": data, **source},
        "02": {"data_dir": data},
        # ImageNet weights would be a download, so the course trains from scratch.
        "03": {"data_dir": data, "run_dir": run, "pretrained": False},
        "04": {"run_dir": run},
        "05": {"run_dir": run},
        "06": {"run_dir": run},
    }


def lessons():
    """Return number, name, stem and question of each lesson: the rows of README's table."""
    row = r"^\| \[(\d\d) (.+?)\]\(notebooks/(\w+)\.ipynb\) \| (.+?) \|$"
    found = re.findall(row, (HERE.parent / "README.md").read_text("utf-8"), re.MULTILINE)
    return [dict(zip(("number", "name", "stem", "question"), each, strict=True)) for each in found]


def write_page(notebook, path):
    """Write an executed notebook as one HTML file that needs nothing from the network."""
    notebook, rows = copy.deepcopy(notebook), lessons()
    first = notebook.cells[0]  # the badge is an image of another host; the page has its own links
    first.source = re.sub(r"^\[!\[(.+?)\]\(.+?\)\](\(.+?\)).*$", r"[\1]\2", first.source)
    describe_figures(notebook)
    here = [row["stem"] for row in rows].index(path.stem)
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    headings = re.findall(r"^## (.+)$", text.replace("`", ""), re.MULTILINE)
    site = {"title": title_of(notebook), "headings": headings, "lessons": rows, "here": here}
    path.write_text(render(notebook, site), "utf-8")


def write_index(rows, line, folder):
    """Write index.html to a folder: course map, how long each lesson took, result and glossary."""
    words = (HERE / "glossary.md").read_text("utf-8").replace("# Glossary", "## Glossary", 1)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(words)])
    report = "work/run/report.html"
    site = {"title": "Course map", "lessons": rows, "here": None, "line": line}
    site["report"] = report if (folder / report).is_file() else None
    (folder / "index.html").write_text(render(notebook, site), "utf-8")


def render(notebook, site):
    """Return the page of a notebook; `site` is what page.html.j2 needs to know beside it."""
    exporter = HTMLExporter(
        template_name="classic",
        template_file=str(HERE / "page.html.j2"),
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    page, _ = exporter.from_notebook_node(notebook, resources={"site": site})
    page = page.replace('href="glossary.md"', 'href="index.html#Glossary"')
    return re.sub(r'href="(0\d_\w+)\.ipynb"', r'href="\1.html"', page)


def describe_figures(notebook):
    """Give each code cell an `alt` for its figures: the heading and the sentence before it."""
    heading, said = "", ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            plain = re.sub(r"[*`]|\[(.+?)\]\(.+?\)", r"\1", cell.source)
            heading = [heading, *re.findall(r"^#+ (.+)$", plain, re.MULTILINE)][-1]
            said = re.split(r"(?<=[.?!:])\s+|\n\n", plain.strip())[-1]
        elif said.endswith("?") or said.startswith("Solution"):  # says nothing about a figure
            cell.metadata.setdefault("alt", heading)
        else:
            cell.metadata.setdefault("alt", f"{heading}: {' '.join(said.rstrip(':').split())}")


def first_figure(notebook):
    """Return the first PNG of an executed notebook in base64, or None."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return next((o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})), None)


def title_of(notebook):
    """Return the text of the notebook's `# ` heading."""
    lines = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown").splitlines()
    return next(line[2:] for line in lines if line.startswith("# "))


def show_failure(path, notebook_error, seconds):
    """Print the failing cell and its error, as a reader of the notebook would see them."""
    print(f"failed after {seconds:.0f} s\n\nThe cell that failed in {path.name}:\n")
    print(re.sub(r"\x1b\[[0-9;]*m", "", str(notebook_error)))


def verdict(metrics, archive):
    """Return (line, good): what the course's model reached, and whether it has learned."""
    accuracy, ccc = metrics["emotion"]["accuracy"], metrics["mean_ccc"]
    if archive:
        scored = "not scored: nobody annotated it" if ccc is None else f"{ccc:.3f}"
        return f"accuracy {accuracy:.3f}, mean CCC {scored}, on unseen images", True
    good = accuracy >= LEAST["accuracy"] and ccc is not None and ccc >= LEAST["mean CCC"]
    line = f"accuracy {accuracy:.3f}, mean CCC {ccc or 0:.3f}, on unseen synthetic people"
    return line, good


def main():
    """Run the course; exit code 1 when a cell fails or the model has not learned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", help="a .zip in the Kaggle layout instead of synthetic faces")
    archive = parser.parse_args().archive
    if archive:
        archive = str(Path(archive).resolve())
        if not Path(archive).is_file():
            sys.exit(f"{archive} does not exist; name a .zip: make course ARCHIVE=some.zip")
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    parameters, rows = course_parameters(archive, BUILD / "work"), lessons()
    for path, row in zip(NOTEBOOKS, rows, strict=True):
        print(f"{path.stem:14}", end=" ", flush=True)
        start = time.monotonic()
        try:
            notebook = run_notebook(path, parameters[path.stem[:2]])
        except CellExecutionError as error:
            show_failure(path, error, time.monotonic() - start)
            sys.exit(1)
        seconds = time.monotonic() - start
        print(f"{seconds:4.0f} s", flush=True)
        write_page(notebook, BUILD / f"{path.stem}.html")
        row.update(title=title_of(notebook), seconds=seconds, figure=first_figure(notebook))
    metrics = json.loads((BUILD / "work" / "run" / "metrics.json").read_text("utf-8"))
    line, good = verdict(metrics, archive)
    write_index(rows, line, BUILD)
    print(f"\n{line}\nOpen {BUILD / 'index.html'}")
    if not good:
        least = ", ".join(f"{name} {value:.2f}" for name, value in LEAST.items())
        sys.exit(f"the model has not learned enough; expected at least {least}")


if __name__ == "__main__":
    main()
