"""Multi-task facial emotion recognition: train, evaluate, export, run live."""

import json
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import tyro
from accelerate import PartialState
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from tyro.conf import Positional

from emo import EmoError, TrainConfig, create_recognizer, dataset, evaluation, faces, fit, window
from emo.audit import audit, class_table, summarise, write_quarantine
from emo.download import download_kaggle, unpack_archive
from emo.export import FILES, export_run
from emo.files import atomic_path, work_folder
from emo.live import LivePipeline
from emo.plots import plot_classes
from emo.predict import BOX, find_files, predict_files, table_of
from emo.sources import QUARANTINE, read_dataset
from emo.synth import animate, write_dataset

HELP = tomllib.loads(Path(__file__).with_name("cli.toml").read_text("utf-8"))
STARTER = "no --model: the starter model reads the faces (limits: emo/assets/MODEL_CARD.md)"
SHOWN = 40  # rows of a prediction that are printed
BENCHES = ("data", "train", "infer", "live")  # what follows `bench_` in emo/bench.py
Text = str | None
Json = Annotated[bool, tyro.conf.arg(name="json")]
Device = Literal["cpu", "cuda"]
Bench = Literal["all", *BENCHES]


def download(dest: str, kaggle: Text = None, archive: Text = None):
    """Fetch a data set from Kaggle, or unpack an archive, into a folder."""
    if archive and kaggle:
        raise EmoError("name either --kaggle or --archive, not both")
    if archive:
        unpack_archive(archive, dest)
    else:
        download_kaggle(kaggle or "noamsegal/affectnet-training-data", dest)
    _describe(read_dataset(dest), dest)


def synth(dest: str, count: int = 2000, seed: int = 0, size: int = 96, frontal: bool = False):
    """Draw synthetic faces with true emotion, valence and arousal."""
    if Path(dest).suffix.lower() in (".mp4", ".webm"):
        truths, table = [], Path(dest).with_suffix(".csv")
        if Path(dest).exists() or table.exists():
            raise EmoError(f"{dest} or {table} exists already; give another name")
        with window.film_writer(dest, fps=15) as write:
            for frame, truth in tqdm(animate(fps=15, seed=seed), "filming", 180, unit="frame"):
                write(frame)
                truths.append(truth | dict(zip(BOX, truth.pop("bbox"), strict=True)))
            pd.DataFrame(truths).round(3).to_csv(table, index=False)
        return print(f"wrote {dest} and, for each of its {len(truths)} frames, the truth: {table}")
    write_dataset(dest, count, seed=seed, size=size, frontal=frontal)
    _describe(read_dataset(dest), dest)


def check(
    data_dir: str,
    layout: Text = None,
    labels: Literal["label", "folder"] = "label",
    class_order: Text = None,
    drop_duplicates: bool = False,
):
    """Read a data set, report what is wrong with it, and put unusable images into quarantine."""
    data = read_dataset(data_dir, layout, labels=labels, class_order=class_order, quarantined=True)
    _describe(data, data_dir)
    manifest = dataset.split_manifest(data)
    facts = audit(manifest, data_dir)
    print(f"\n{class_table(manifest).to_string()}\n\n{summarise(manifest, facts).to_string()}")
    listed = write_quarantine(manifest, facts, data_dir, duplicates=drop_duplicates)
    place = work_folder(data_dir)
    print(f"\n{len(listed):,} images in quarantine ({place / QUARANTINE}); none was deleted")
    labelled = manifest[(facts["fault"] == "") & (manifest["emotion"] >= 0)]
    if labelled.empty:
        return
    images, labelled, _ = dataset.pack_images(labelled, data_dir, 64, pack=False)
    figure = Figure(figsize=(10, 7), layout="constrained")
    plot_classes(images, labelled["emotion"], figure.subplots())
    with atomic_path(place / "classes.png") as temporary:
        figure.savefig(temporary)
    print(f"faces of each class: {place / 'classes.png'}; do they look like their labels?")


def train(config: TrainConfig, resume: bool = False):
    """Train both heads and write a run folder."""
    fit(config, resume=resume)


def evaluate(
    run: Text = None,
    model: Text = None,
    data_dir: Text = None,
    split: Literal["train", "val", "test"] = "test",
    output_dir: Text = None,
    against: Text = None,
    by: str = "skin_tone",
):
    """Score a run, or a model file on other data; write metrics, predictions and a report."""
    lines = evaluation.headline(evaluation.evaluate(**locals()))
    for name, text in lines.items():
        print(f"{name:{max(map(len, lines))}}  {text}")
    print(f"wrote {Path(output_dir or run or Path(model).parent) / 'report.html'}")


def export(run: str, formats: tuple[Literal[*FILES], ...] = tuple(FILES)):
    """Write a run's model in other formats and prove that they agree with PyTorch."""
    print(export_run(run, formats).T.to_string(float_format="{:.4g}".format))


def predict(
    files: Positional[tuple[str, ...]],
    model: Text = None,
    crops: bool = False,
    json_: Json = False,
    output: Text = None,
    annotate: Text = None,
    device: Device = "cpu",
):
    """Find the faces in photos and films and predict emotion, valence and arousal."""
    if not files:
        raise EmoError("no files to predict; name at least one image")
    if crops and annotate:
        raise EmoError("--annotate draws boxes on photos; leave out --crops")
    if output and Path(output).suffix not in (".csv", ".json"):
        raise EmoError(f"--output {output} must end in .csv or .json")
    model or print(STARTER, file=sys.stderr)
    recognizer, found = create_recognizer(model, device=device), find_files(files)
    with nullcontext() if crops else faces.MediaPipeFaceDetector() as detector:
        rows = predict_files(recognizer, found, detector, annotate)
    if not PartialState().is_main_process:
        return
    table, text = table_of(rows), json.dumps(rows, indent=2)
    if output:
        flat = table.to_csv(index=False, float_format="%.6g")
        with atomic_path(output) as temporary:
            temporary.write_text(flat if output.endswith(".csv") else f"{text}\n", "utf-8")
    if json_:
        return print(text)
    columns = ["image_path", "time", "emotion", "confidence", "valence", "arousal", "note"]
    table = table[columns].dropna(axis=1, how="all")
    print(table[:SHOWN].to_string(index=False, na_rep="", float_format="{:.2f}".format))
    if len(table) > SHOWN:
        print(f"… {len(table) - SHOWN} more" + ("" if output else ": --output FILE.csv keeps them"))
    if unread := [row["image_path"] for row in rows if row.get("note") == "unreadable"]:
        print(f"skipped, because unreadable: {', '.join(unread)}")
    if "valence" in table and recognizer.va == "derived":
        print("valence and arousal: what the model makes of class means (derived from the class)")


def live(
    model: Text = None,
    camera: str = "0",
    onnx: bool = False,
    device: Device = "cpu",
    headless: bool = False,
    record: Text = None,
    log: Text = None,
    smoothing: float = 0.3,
    min_detection_confidence: float = 0.5,
):
    """Run the live demo on a camera, a film or a synthetic face. Keys: q quit, v, p, s."""
    if onnx and model and not model.endswith(".onnx"):
        model = (Path(model) if Path(model).is_dir() else Path(model).parent) / "model.onnx"
    model or print(STARTER, file=sys.stderr)
    recognizer = create_recognizer(model, device=device)
    detector = faces.MediaPipeFaceDetector(min_detection_confidence)
    with detector, window.Camera(camera, loop=not headless) as source:
        pipeline = LivePipeline(recognizer, detector, smoothing=smoothing)
        table = window.run_live(pipeline, source, headless=headless, record=record, log=log)
    found = table["face"].nunique()
    print(f"{len(table)} predictions of {found} faces" if found else "no face found in any frame")
    for path in filter(None, (record, log)):
        print(f"wrote {path}")


def bench(what: Positional[Bench] = "all", json_: Json = False, plot: Text = None):
    """Measure speed on this machine, as ratios within one run."""
    from emo import bench as room  # here, because its torchvision takes seconds

    if plot and what not in ("all", "infer"):
        raise EmoError(f"--plot draws what infer measures, not {what}; use: emo bench infer")
    found = {"machine": room.machine()}
    for name in BENCHES if what == "all" else (what,):
        measure = getattr(room, f"bench_{name}")
        table = measure()
        found[name] = table.reset_index().replace({np.nan: None}).to_dict("records")
        if not json_:
            print(f"\n{name}: {measure.__doc__}\n{table.round(2).to_string(na_rep='')}", flush=True)
        if plot and name == "infer":
            room.plot_infer(table, plot)
    print(json.dumps(found, indent=2) if json_ else f"\n{found['machine']}")


COMMANDS = (download, synth, check, train, evaluate, export, predict, live, bench)
for command in COMMANDS:
    for name, text in HELP[command.__name__].items():
        kind = command.__annotations__[name]
        command.__annotations__[name] = Annotated[kind, tyro.conf.arg(help=text)]


def main(args=None):
    """Run one command; a mistake of the user gives one sentence and exit code 2."""
    try:
        commands = {command.__name__: command for command in COMMANDS}
        options = {"prog": "emo", "args": args, "config": (tyro.conf.OmitArgPrefixes,)}
        tyro.extras.subcommand_cli_from_dict(commands, description=__doc__, **options)
    except (EmoError, OSError) as error:
        if isinstance(error, OSError):  # a full disk, a read-only folder
            error = f"{error.strerror or error}: {error.filename or 'file'}"
        print(f"emo: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _describe(manifest, folder):
    report = pd.DataFrame(manifest.attrs["report"]).to_string()
    print(f"{folder}: {manifest.attrs['layout']} layout\n{report}")
