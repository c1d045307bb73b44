"""Every data layout that people have → one manifest. Explained in notebooks/02.

A manifest is a table `image_path, emotion, valence, arousal` (+ `split`, `group`, `p_neutral` …
`p_contempt`, `va_derived`, …): paths relative to the data folder, emotion 0–7 in AffectNet's
order (−1: unknown), valence and arousal in [−1, 1] (NaN: nobody annotated them).
"""

import os
import warnings
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from emo import EmoError, download, emotions, files

_ALSO = {"train": "training train_set", "val": "valid validation val_set dev", "test": "testing"}
SPLITS = {word: name for name, also in _ALSO.items() for word in (name, *also.split())}
VA, WHY = ("valence", "arousal"), "dropped because"
QUARANTINE = "quarantine.csv"  # in `work_folder(root)`: image_path, reason, bytes
_FERPLUS_PARTS = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}
_SETS = ("train_set", "val_set")  # of AffectNet 2021


def read_dataset(root, layout=None, *, labels="label", class_order=None, quarantined=False):
    """Read the folder `root` in whatever layout it has and return its manifest.

    `manifest.attrs["layout"]` names the layout; `pd.DataFrame(manifest.attrs["report"])` tells how
    many rows were kept and dropped, and why. `layout` forces one of `LAYOUTS`; `labels="folder"`
    takes the folder's label on the Kaggle set; `class_order` (affectnet, alphabetical, ferplus)
    says what the numbers 0–7 of folders or a CSV mean. What `emo check` put into quarantine stays
    out unless `quarantined`. Raises `EmoError` for an unknown layout, a wrong label or class order.
    """
    root = Path(root)
    if not root.is_dir():
        raise EmoError(f"{root} is no folder; first run notebooks/01_download.ipynb or emo synth")
    base, layout = _base(root), layout or detect_layout(root)
    if layout not in LAYOUTS:
        raise EmoError(f"unknown layout {layout!r}; expected {', '.join(LAYOUTS)}")
    found = _image_paths(base)
    options = {"labels": labels, "class_order": class_order}
    forced = {"folders": [base], "csv": [base / "labels.csv"], "kaggle": [base / "labels.csv"]}
    lists = _lists(base)[layout] or forced.get(layout, [])
    tables = [LAYOUTS[layout](path, found, options) for path in lists]
    if not tables:
        raise EmoError(f"{root} has no list of labels of the {layout} layout; leave out --layout")
    order = class_order if layout in ("csv", "folders") else None
    table = _tidy(pd.concat(tables, ignore_index=True), order)
    manifest = check_labels(table[table[WHY].isna()].drop(columns=WHY), root)
    if not class_order and layout == "csv":
        _check_order(manifest, root)
    kept, why = _drop_unusable(manifest, found, base, root, quarantined)
    dropped = pd.concat([why, table[WHY]]).value_counts().to_dict()
    if kept.empty:
        raise EmoError(f"{root} ({layout} layout) has no usable labelled image: {dropped}")
    rows = {"kept": len(kept)} | {f"dropped: {why}": n for why, n in dropped.items()}
    rows |= {"in all": len(table), "images without a label": len({*found} - {*table["image_path"]})}
    kept.attrs = {"layout": layout, "report": {"rows": rows}}
    return kept


def detect_layout(root):
    """Name the layout of `root`, or raise `EmoError` that says what was looked for."""
    base = _base(Path(root))
    header, lists = _header(base / "labels.csv"), _lists(base)
    if header and not (lists["kaggle"] or lists["csv"]):
        got = f"{base / 'labels.csv'} has the columns {', '.join(sorted(header))}"
        raise EmoError(f"{got}; expected image_path, emotion, valence, arousal (or pth, label)")
    if not any(lists.values()):
        known = "labels.csv, FER2013Train, train_set, AffectNet list or folders named by emotion"
        raise EmoError(f"{root} holds no data set that emo knows: no {known}; see data/README.md")
    return next(layout for layout, found in lists.items() if found)


def fill_derived_va(manifest):
    """Fill empty valence/arousal from class means (weighted by votes) and mark `va_derived`."""
    emotion, annotated = manifest["emotion"].to_numpy(int), annotated_rows(manifest)
    votes = np.array(manifest.reindex(columns=emotions.PROBABILITY_COLUMNS).fillna(0.0), float)
    plain = (votes.sum(axis=1) == 0) & (emotion >= 0)
    votes[plain, emotion[plain]] = 1
    derived = pd.DataFrame(emotions.derive_va(votes), manifest.index, VA)
    va = manifest[list(VA)].fillna(derived)
    return manifest.assign(**va, va_derived=(~annotated & va.notna().all(axis=1)).astype(int))


def annotated_rows(manifest):
    """Tell (N,) which rows have valence and arousal from annotators, not from class means."""
    annotated = manifest[list(VA)].notna().all(axis=1) & (manifest.get("va_derived", 0) != 1)
    return annotated.to_numpy(copy=True)


def va_state(manifest):
    """Return "annotated", "derived" (only class means) or "none" (no values at all)."""
    if annotated_rows(manifest).any():
        return "annotated"
    return "derived" if manifest[list(VA)].notna().all(axis=1).any() else "none"


def _lists(base):
    """Return {layout: what holds its labels}; of several layouts the first one is meant."""
    csvs = {p: _header(p) for p in sorted([*base.glob("*.csv"), *base.glob("*file_lists/*.csv")])}
    labels, contract = base / "labels.csv", {"image_path", "emotion"}
    splits = [path for path in csvs if path.parent == base and path.stem.lower() in SPLITS]
    # A list of 2017 without a header: its first row has many cells, and one is a path.
    bare = [p for p in csvs if len(csvs[p]) >= 6 and any("/" in c and "." in c for c in csvs[p])]
    folders = list(base.glob("*/"))
    folders += [f for part in folders if part.name.lower() in SPLITS for f in part.glob("*/")]
    return {
        "kaggle": [labels] if {"pth", "label"} <= csvs.get(labels, set()) else [],
        "csv": [p for p in ([labels] if labels in csvs else splits) if contract <= csvs[p]],
        "ferplus": [p for part in _FERPLUS_PARTS if (p := base / part / "label.csv").is_file()],
        "affectnet2021": [p for part in _SETS if (p := base / part / "annotations").is_dir()],
        "affectnet2017": [p for p in csvs if p in bare or "subDirectory_filePath" in csvs[p]],
        "folders": [base] if any(_names_a_class(folder.name) for folder in folders) else [],
    }


def _read_csv(path, found, options):
    """The contract: labels.csv, or one file for each of train, val and test."""
    table = read_table(path, ("image_path", "emotion"))
    return table.assign(split=SPLITS[path.stem.lower()]) if path.stem != "labels" else table


def _read_kaggle(path, found, options):
    """Kaggle's set: a model made `label`, AffectNet the folders; `relFCs` is no confidence."""
    table = read_table(path, ("pth", "label"))
    parents = [PurePosixPath(str(path).replace("\\", "/")).parent.name for path in table["pth"]]
    folder = pd.Series([name if emotions.is_emotion_name(name) else None for name in parents])
    names = folder if options["labels"] == "folder" else table["label"]
    manifest = pd.DataFrame({"image_path": table["pth"], "emotion": _ids(names)})
    return manifest.assign(folder_emotion=_ids(folder), relFCs=table.get("relFCs"))


def _read_ferplus(path, found, options):
    """FER+: the largest of ten vote counts; rows most called "unknown" or "no face" drop out."""
    names = [*emotions.CLASS_ORDERS["ferplus"], "unknown", "not a face"]
    table, part = read_table(path, map(str, range(12)), header=None), path.parent.name
    counts = table[[str(i) for i in range(2, 12)]].apply(pd.to_numeric, errors="coerce")
    counts = counts.where((counts >= 0) & (counts < np.inf)).set_axis(names, axis=1)
    largest = counts.fillna(-1).idxmax(axis=1)  # ties go to the file's first column
    why = ("most annotators said " + largest).where(largest.isin(names[8:]))
    why = why.where(counts.sum(axis=1, skipna=False) > 0, "the votes are missing or damaged")
    votes = counts[list(emotions.EMOTIONS)].set_axis(emotions.PROBABILITY_COLUMNS, axis=1)
    shares = votes.div(votes.sum(axis=1).clip(lower=1), axis=0)
    paths = f"{part}/" + table["0"].astype(str)
    more = {"image_path": paths, "split": _FERPLUS_PARTS[part], "emotion": largest, WHY: why}
    return shares.assign(**more)


def _read_2017(path, found, options):
    """AffectNet 2017 lists, with or without header, made by hand or by a model (`automatic`)."""
    named = "subDirectory_filePath" in _header(path)
    columns = ["subDirectory_filePath", "expression", *VA] if named else ["0", "6", "7", "8"]
    table = read_table(path, columns, 0 if named else None)[columns]
    table.columns = ["image_path", "emotion", *VA]
    automatic = "auto" in path.stem.lower()
    # The same list fits every tree: a folder's number and a file's name identify an image.
    known = {Path(p).parts[-2:]: p for p in found}
    known |= {Path(p).parts[-2:]: p for p in found if ("auto" in p.lower()) == automatic}
    paths = [known.get(PurePosixPath(p).parts[-2:], p) for p in map(str, table["image_path"])]
    split = "val" if "val" in path.stem.lower() else "train"
    return _affectnet_rows(table, image_path=paths, split=split, automatic=int(automatic))


def _read_2021(folder, found, options):
    """AffectNet 2021: one npy file for each value of each image; read once, then kept as CSV."""
    part = folder.parent.name
    ids = sorted(e.name[:-8] for e in os.scandir(folder) if e.name.endswith("_exp.npy"))
    state = f"{len(ids)}-{folder.stat().st_mtime_ns}"  # changes when a file comes or goes
    kept = files.work_folder(folder.parents[1]) / f"annotations-{part}-{state}.csv"
    if not kept.is_file():
        bar = tqdm(ids, f"Reading {part}", unit="image")
        rows = ([_number(folder / f"{i}_{k}.npy") for k in ("exp", "val", "aro")] for i in bar)
        with files.atomic_path(kept) as temporary:
            pd.DataFrame(rows, ids, ["emotion", *VA]).to_csv(temporary, index_label="id")
    table = pd.read_csv(kept, dtype={"id": str})
    images = {Path(p).stem: p for p in found if p.startswith(f"{part}/")}  # the parts' ids overlap
    paths = [images.get(i, f"{part}/images/{i}.jpg") for i in table.pop("id")]
    return _affectnet_rows(table, image_path=paths, split=SPLITS[part])


def _number(path):
    """Return the number in an npy file, maybe stored as text, None without a file, or "damaged"."""
    with suppress(Exception):  # numpy raises whatever a damaged header leads to
        return float(np.load(path, allow_pickle=False).item())
    return "damaged" if path.exists() else None


def _affectnet_rows(table, **more):
    """Leave −2 (not annotated) empty; say why rows without one of the eight emotions drop out."""
    emotion = pd.to_numeric(table["emotion"], errors="coerce")
    va = {name: table[name].where(pd.to_numeric(table[name], "coerce") != -2) for name in VA}
    damaged = (table[list(VA)] == "damaged").any(axis=1) | ~emotion.isin(range(11))
    why = emotion.map({8: "expression None", 9: "expression Uncertain", 10: "expression No-Face"})
    why = why.where(~damaged, "the annotation is missing or damaged")
    return table.assign(**va, **{WHY: why}, **more)


def _read_folders(base, found, options):
    """One folder a class, by name or (with an explicit order) by number; maybe below a split."""
    rows = []
    for path in found:
        *above, name = Path(path).parent.parts or (".",)
        split = next((SPLITS[p.lower()] for p in above if p.lower() in SPLITS), "")
        why = None if _names_a_class(name) else f"folder is named after no emotion: {name}"
        if name.isdecimal() and not why and not options["class_order"]:
            orders = "|".join(emotions.CLASS_ORDERS)  # data sets differ in what a number means
            raise EmoError(f"{base} has numbered folders; give their order: --class-order {orders}")
        rows.append((path, name, split, why))
    return pd.DataFrame(rows, columns=["image_path", "emotion", "split", WHY])


# Each reads one of `_lists`, with all its rows; those with a reason in `WHY` are dropped.
LAYOUTS = {"csv": _read_csv, "kaggle": _read_kaggle, "ferplus": _read_ferplus}
LAYOUTS |= {"affectnet2017": _read_2017, "affectnet2021": _read_2021, "folders": _read_folders}


def _base(root):
    """Follow a lone wrapping folder (as archives have) or Kaggle's `train/` level."""
    entries = [e for e in sorted(root.iterdir()) if not e.name.startswith((".", "__MACOSX"))]
    if (root / "train" / "labels.csv").is_file():
        return root / "train"
    name = entries[0].name if len(entries) == 1 and entries[0].is_dir() else "several"
    known = name in (*_FERPLUS_PARTS, *_SETS, "several") or emotions.is_emotion_name(name)
    return root if known else _base(entries[0])


def _image_paths(base):
    """List the images below `base` as relative POSIX paths, sorted; hidden ones are left out."""
    found = []
    for folder, _, names in os.walk(base, followlinks=True):
        start = f"{Path(folder).relative_to(base).as_posix()}/".removeprefix("./")
        found += [start + n for n in names if n.lower().endswith(tuple(download.IMAGE_SUFFIXES))]
    return sorted(path for path in found if "/." not in f"/{path}")


def _names_a_class(folder):
    return emotions.is_emotion_name(folder) or (folder.isdecimal() and int(folder) < 8)


def _header(path):
    if not path.is_file():
        return set()
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return {cell.strip().strip('"') for cell in file.readline(100_000).split(",")}


def read_table(path, columns, header=0, dtype=None):
    """Read a CSV file whole; refuse one from which pandas would lose a cell or a row."""
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            options = {"header": header, "dtype": dtype, "low_memory": False}
            table = pd.read_csv(path, index_col=False, **options)
        lines = sum(1 for line in path.read_bytes().splitlines() if line.strip())
        if lines != len(table) + (header == 0):
            raise ValueError(f"{lines} lines give {len(table)} rows: a stray quotation mark?")
    except FileNotFoundError:
        raise EmoError(f"{path} does not exist; data/README.md shows the expected trees") from None
    except (ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise EmoError(f"{path} is not readable as CSV ({reason}); export it again") from error
    table.columns = [str(c).strip() for c in table.columns]
    if not table.columns.is_unique:
        raise EmoError(f"{path} names a column twice: {', '.join(table)}")
    if missing := ", ".join(sorted(set(columns) - set(table))):
        raise EmoError(f"{path} lacks the columns {missing}; it has {', '.join(table)}")
    return table


def _ids(names):
    known = {name: emotions.emotion_id(name) for name in names.dropna().unique()}
    return names.map(known).fillna(-1).astype(int)


def _tidy(manifest, order):
    """Give every manifest the contract's columns and `WHY`, numbers translated from `order`."""
    missing = {name: None for name in (*VA, WHY) if name not in manifest}
    paths = manifest["image_path"].astype(str).str.replace("\\", "/", regex=False)
    manifest = manifest.assign(image_path=paths.str.removeprefix("./"), **missing)
    numbers = pd.to_numeric(manifest["emotion"], errors="coerce")
    words = manifest.loc[numbers.isna() & manifest[WHY].isna(), "emotion"]
    if order:
        numbers = numbers.map(dict(enumerate(emotions.ids_of_order(order)))).fillna(numbers)
    manifest["emotion"] = numbers.fillna(_ids(words))
    if "split" in manifest:
        words = manifest["split"].fillna("").astype(str).str.strip()
        manifest["split"] = words.map(lambda word: SPLITS.get(word.lower(), word))
    return manifest[list(dict.fromkeys(["image_path", "emotion", *VA, *manifest]))]


def check_labels(manifest, root):
    """Return the manifest with labels as numbers, or name every column that holds others."""
    expected = {"emotion": "0–7 in AffectNet's order"} | dict.fromkeys(VA, "−1 to 1")
    expected |= dict.fromkeys(emotions.PROBABILITY_COLUMNS, "0 to 1 (shares of the votes)")
    faults, manifest = [], manifest.copy()
    for name in [name for name in expected if name in manifest]:
        values = pd.to_numeric(manifest[name], errors="coerce").astype(float)
        low, high = {"emotion": (-1, 7)}.get(name, (-1 if name in VA else 0, 1))
        good = values.between(low, high) & ((name != "emotion") | (values % 1 == 0))
        wrong = ~good & (manifest[name].notna() | (name == "emotion"))
        if wrong.any():
            value, path = manifest.loc[wrong.idxmax(), [name, "image_path"]]
            value = f"{value:g}" if isinstance(value, float) else value
            place = f"{name} {value} of {path} (and {wrong.sum() - 1} more rows)"
            faults.append(f"{place} is out of range; expected {expected[name]}")
        manifest[name] = values
    if faults:
        raise EmoError(f"{root}: {'; '.join(faults)}, or an empty cell if not annotated (not −2)")
    return manifest.astype({"emotion": int})


def _check_order(manifest, root):
    """Refuse numbers whose valence and arousal say that they follow another class order."""
    rows = manifest[annotated_rows(manifest) & (manifest["emotion"] >= 0)]
    means = rows.groupby("emotion")[list(VA)].mean()[rows.groupby("emotion").size() >= 5]
    misfit = {}
    for order in emotions.CLASS_ORDERS if len(means) >= 5 else ():
        ids = emotions.ids_of_order(order)[means.index]
        misfit[order] = np.abs(means.to_numpy() - emotions.CLASS_MEAN_VA[ids]).mean()
    best = min(misfit, key=misfit.get, default="affectnet")
    if misfit and misfit["affectnet"] > 1.5 * misfit[best]:
        cure = f"use --class-order {best}, or --class-order affectnet to insist"
        raise EmoError(f"{root}: valence and arousal fit the {best} class order better; {cure}")


def _drop_unusable(manifest, found, base, root, quarantined):
    """Drop rows without an image, listed twice or in quarantine, and say why; paths from `root`."""
    why = pd.Series(None, manifest.index, dtype=object)
    why[manifest["image_path"].duplicated()] = "listed twice"
    why[~manifest["image_path"].isin(found)] = "image file is missing"
    within = f"{base.relative_to(root).as_posix()}/".removeprefix("./")
    manifest = manifest.assign(image_path=within + manifest["image_path"])
    if not quarantined and (path := files.work_folder(root) / QUARANTINE).is_file():
        listed = read_table(path, ("image_path", "reason", "bytes")).set_index("image_path")
        listed = listed[listed.index.isin(manifest["image_path"][why.isna()])]
        # An image that was replaced since, and so has another size, gets a new chance.
        same = [(root / image).stat().st_size == size for image, size in listed["bytes"].items()]
        reasons = ("in quarantine: " + listed["reason"][same].astype(object)).to_dict()
        why = why.where(why.notna(), manifest["image_path"].map(reasons))
    return manifest[why.isna()].reset_index(drop=True), why
