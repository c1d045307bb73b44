"""The commands: `python -m emo download | synth | check | train | evaluate | export | …`."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal, get_args

import cv2
import tyro

from emo import evaluation
from emo.audit import audit, class_table, summarise
from emo.bench import BENCHES, machine
from emo.dataset import decode, split_manifest
from emo.download import download_kaggle, unpack_archive
from emo.errors import EmoError
from emo.export import export_run
from emo.faces import MediaPipeFaceDetector
from emo.files import atomic_path
from emo.live import LivePipeline, draw_overlay
from emo.recognize import create_recognizer, predict_files
from emo.sources import read_dataset
from emo.synth import write_dataset
from emo.train import TrainConfig, fit
from emo.window import Camera, run_live

Text = str | None
Format = Literal["weights", "torchscript", "onnx", "int8", "keras"]
Labels = Literal["label", "folder"]
Device = Literal["cpu", "cuda"]


def download(dest: str, kaggle: Text = None, archive: Text = None):
    """Fetch a data set from Kaggle, or unpack an archive, into a folder.

    Args:
        dest: New folder for the data.
        kaggle: Kaggle data set; noamsegal/affectnet-training-data unless told.
        archive: A .zip file instead of Kaggle.
    """
    if archive and kaggle:
        raise EmoError("name either --kaggle or --archive, not both")
    if archive:
        unpack_archive(archive, dest)
    else:
        download_kaggle(kaggle or "noamsegal/affectnet-training-data", dest)
    _describe(read_dataset(dest), dest)


def synth(dest: str, count: int = 2000, seed: int = 0, size: int = 96, frontal: bool = False):
    """Draw synthetic faces with true emotion, valence and arousal.

    Args:
        dest: New folder for the faces.
        count: How many.
        seed: The same seed gives the same bytes.
        size: Pixels a side.
        frontal: Look into the camera, without large turns, blur or hands in the way.
    """
    write_dataset(dest, count, seed=seed, size=size, frontal=frontal)
    _describe(read_dataset(dest), dest)


def check(data_dir: str, layout: Text = None, labels: Labels = "label", class_order: Text = None):
    """Read a data set and report what is wrong with it.

    Args:
        data_dir: Folder of the data.
        layout: Force a layout instead of recognising it.
        labels: Which label to trust on the Kaggle set.
        class_order: What folders named 0–7 mean: affectnet, alphabetical or ferplus.
    """
    manifest = read_dataset(data_dir, layout, labels=labels, class_order=class_order)
    _describe(manifest, data_dir)
    manifest = split_manifest(manifest)
    print(f"\n{class_table(manifest).to_string()}\n")
    print(summarise(manifest, audit(manifest, data_dir)).to_string())


def train(config: TrainConfig, resume: bool = False):
    """Train both heads and write a run folder.

    Args:
        config: What the run depends on.
        resume: Go on from the last finished epoch of this run.
    """
    fit(config, resume=resume)
    print(f"wrote {config.output_dir}; next: python -m emo evaluate --run {config.output_dir}")


def evaluate(
    run: Text = None,
    model: Text = None,
    data_dir: Text = None,
    split: Literal["train", "val", "test"] = "test",
    output_dir: Text = None,
    against: Text = None,
):
    """Score a run, or a model file on other data; write metrics, predictions and a report.

    Args:
        run: Run folder.
        model: A model file instead of a run.
        data_dir: Data other than the run's own.
        split: Part of the data.
        output_dir: Where to write; the run's folder unless told.
        against: Another run, evaluated on the same images, to compare with.
    """
    where = {"split": split, "output_dir": output_dir, "against": against}
    lines = evaluation.headline(evaluation.evaluate(run, model=model, data_dir=data_dir, **where))
    for name, text in lines.items():
        print(f"{name:{max(map(len, lines))}}  {text}")
    print(f"wrote {Path(output_dir or run or Path(model).parent) / 'report.html'}")


def export(run: str, formats: tuple[Format, ...] = get_args(Format)):
    """Write a run's model in other formats and prove that they agree with PyTorch.

    Args:
        run: Run folder.
        formats: Which formats.
    """
    print(export_run(run, formats).T.to_string(float_format="{:.4g}".format))


def predict(
    files: tyro.conf.Positional[tuple[str, ...]],
    model: str,
    crops: bool = False,
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
    annotate: Text = None,
    device: Device = "cpu",
):
    """Find the faces in photos and predict emotion, valence and arousal.

    Args:
        files: Image files.
        model: Model file: .pth, .pt, .onnx or .h5.
        crops: The images are faces already: detect nothing.
        json_: Print JSON instead of a table.
        annotate: Folder for copies with boxes and labels drawn on.
        device: Where the model runs.
    """
    if not files:
        raise EmoError("no files to predict; name at least one image")
    if crops and annotate:
        raise EmoError("--annotate draws boxes on photos; leave out --crops")
    recognizer = create_recognizer(model, device=device)
    with nullcontext() if crops else MediaPipeFaceDetector() as detector:
        rows = predict_files(recognizer, files, detector)
        if annotate:
            _annotate(files, Path(annotate), LivePipeline(recognizer, detector, smoothing=0))
    if json_:
        print(json.dumps(rows, indent=2))
    else:
        _print_predictions(rows, recognizer.va)


def live(
    model: str,
    camera: str = "0",
    device: Device = "cpu",
    headless: bool = False,
    record: Text = None,
    log: Text = None,
    smoothing: float = 0.3,
    min_detection_confidence: float = 0.5,
):
    """Run the live demo on a camera, a film or a synthetic face. Keys: q quit, v, p, s.

    Args:
        model: Model file: .pth, .pt, .onnx or .h5.
        camera: Camera number, film file or "synthetic".
        device: Where the model runs.
        headless: No window: for films, with --record or --log.
        record: Annotated film to write (.mp4 or .webm).
        log: CSV of numbers to write.
        smoothing: Time constant in seconds; 0 shows raw predictions.
        min_detection_confidence: Of the face detector, 0 to 1.
    """
    recognizer = create_recognizer(model, device=device)
    detector = MediaPipeFaceDetector(min_detection_confidence)
    with detector, Camera(camera, loop=not headless) as source:
        pipeline = LivePipeline(recognizer, detector, smoothing=smoothing)
        table = run_live(pipeline, source, headless=headless, record=record, log=log)
    found = table["face"].nunique()
    print(f"{len(table)} predictions of {found} faces" if found else "no face found in any frame")
    for path in filter(None, (record, log)):
        print(f"wrote {path}")


def bench(what: tyro.conf.Positional[Literal["all", "data", "train", "infer", "live"]] = "all"):
    """Measure speed on this machine, as ratios within one run.

    Args:
        what: Which measurement.
    """
    print(machine())
    for name in BENCHES if what == "all" else (what,):
        print(f"\n{name}: {BENCHES[name].__doc__}\n{BENCHES[name]().to_string()}")


FUNCTIONS = (download, synth, check, train, evaluate, export, predict, live, bench)
COMMANDS = {function.__name__: function for function in FUNCTIONS}
ABOUT = "Multi-task facial emotion recognition: train, evaluate, export, run live."


def main(args=None):
    """Run one command; a mistake of the user gives one sentence and exit code 2."""
    try:
        options = {"prog": "emo", "args": args, "config": (tyro.conf.OmitArgPrefixes,)}
        tyro.extras.subcommand_cli_from_dict(COMMANDS, description=ABOUT, **options)
    except EmoError as error:
        _stop(error)
    except OSError as error:  # a full disk, a read-only folder
        _stop(f"{error.strerror or error}: {error.filename or 'file'}")
    except KeyboardInterrupt:
        sys.exit(130)


def _stop(message):
    print(f"emo: {message}", file=sys.stderr)
    sys.exit(2)


def _describe(manifest, folder):
    print(f"{folder}: {manifest.attrs['layout']} layout\n{manifest.attrs['report'].to_string()}")


def _print_predictions(rows, va):
    width = max(len(row["image_path"]) for row in rows)
    for row in rows:
        text = row.get("note") or f"{row['emotion']:8} {row['confidence']:6.1%}"
        if row.get("valence") is not None:
            text += f"  valence {row['valence']:+.2f}  arousal {row['arousal']:+.2f}"
            text += "  (derived from the class)" if va == "derived" else ""
        print(f"{row['image_path']:{width}}  {text}")


def _annotate(files, folder, pipeline):
    for path in files:
        image = decode(path)
        if image is not None:
            pipeline.reset()
            drawn = draw_overlay(image, pipeline.process(image, 0.0), va=pipeline.recognizer.va)
            with atomic_path(folder / f"{Path(path).stem}.png") as temporary:
                cv2.imwrite(str(temporary), drawn)
