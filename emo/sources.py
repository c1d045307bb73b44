"""Every data layout that people have → one manifest. Explained in notebooks/02.

A manifest is a pandas table `image_path, emotion, valence, arousal` (+ `split`, `group`,
`p_neutral` … `p_contempt`, `va_derived`, and what else the source says). Paths are relative to
the data folder, emotion is 0–7 in AffectNet's order with −1 for unknown, valence and arousal lie
in [−1, 1] and are NaN where nobody annotated them.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from emo.download import IMAGE_SUFFIXES
from emo.emotions import (
    CLASS_ORDERS,
    EMOTIONS,
    PROBABILITY_COLUMNS,
    derive_va,
    emotion_id,
    ids_of_order,
    is_emotion_name,
)
from emo.errors import EmoError

SPLITS = {"train": "train", "training": "train", "train_set": "train"}
SPLITS |= {"val": "val", "valid": "val", "validation": "val", "val_set": "val", "dev": "val"}
SPLITS |= {"test": "test", "testing": "test"}
VA = ("valence", "arousal")
_COLUMNS = ["image_path", "split", "emotion", *VA]
_AFFECTNET_2017 = {0: "subDirectory_filePath", 6: "expression", 7: "valence", 8: "arousal"}
_FERPLUS_PARTS = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}


def read_dataset(root, layout=None, *, labels="label", class_order=None):
    """Read the folder `root` in whatever layout it has and return its manifest.

    `manifest.attrs["layout"]` names the layout and `manifest.attrs["report"]` is a table of how
    many rows were kept and dropped, and why. `layout` forces one of `LAYOUTS`; `labels="folder"`
    takes the folder's label on the Kaggle set; `class_order` (affectnet, alphabetical, ferplus)
    says what folders named 0–7 mean. Raises `EmoError` when nothing fits or a label is invalid.
    """
    root = Path(root)
    if not root.is_dir():
        raise EmoError(f"{root} is no folder; first run notebooks/01_download.ipynb or emo synth")
    base = _base(root)
    layout = layout or detect_layout(root)
    if layout not in LAYOUTS:
        raise EmoError(f"unknown layout {layout!r}; expected {', '.join(LAYOUTS)}")
    found = _image_paths(base)
    manifest = LAYOUTS[layout](base, found, {"labels": labels, "class_order": class_order})
    manifest = _check_labels(_tidy(manifest), root)
    kept, dropped = _drop_missing(manifest, found, base, root)
    if kept.empty:
        raise EmoError(f"{root} ({layout} layout) has labels but none of their images is there")
    rows = {"kept": len(kept)} | {f"dropped: {why}": n for why, n in dropped.items() if n}
    kept.attrs = {"layout": layout, "report": pd.DataFrame({"rows": pd.Series(rows)})}
    return kept


def detect_layout(root):
    """Name the layout of `root`, or raise `EmoError` that says what was looked for."""
    root, base = Path(root), _base(Path(root))
    header = _header(base / "labels.csv")
    if {"pth", "label"} <= header:
        return "kaggle"
    if {"image_path", "emotion"} <= header or any(_split_csvs(base)):
        return "csv"
    if header:
        raise EmoError(
            f"{base / 'labels.csv'} has the columns {', '.join(sorted(header))}; expected "
            "image_path, emotion, valence, arousal (or pth, label as on Kaggle)"
        )
    if any((base / part / "label.csv").is_file() for part in _FERPLUS_PARTS):
        return "ferplus"
    if any((base / part / "annotations").is_dir() for part in ("train_set", "val_set")):
        return "affectnet2021"
    if any(_affectnet_2017_lists(base)):
        return "affectnet2017"
    if _class_folders(base):
        return "folders"
    raise EmoError(
        f"{root} holds no data set that emo knows: no labels.csv, FER2013Train, train_set, "
        "AffectNet list or folders named after emotions; data/README.md shows the expected trees"
    )


def fill_derived_va(manifest):
    """Fill empty valence/arousal from class means (weighted by votes) and mark `va_derived`."""
    manifest, emotion = manifest.copy(), manifest["emotion"].to_numpy(int)
    votes = manifest.reindex(columns=PROBABILITY_COLUMNS).fillna(0.0).to_numpy(float, copy=True)
    plain = (votes.sum(axis=1) == 0) & (emotion >= 0)
    votes[plain, emotion[plain]] = 1
    empty = ~_known_va(manifest)
    manifest.loc[empty, ["valence", "arousal"]] = derive_va(votes)[empty]
    manifest["va_derived"] = (empty & manifest["valence"].notna()).astype(int)
    return manifest


def annotated_rows(manifest):
    """Tell (N,) which rows have valence and arousal from annotators, not from class means."""
    annotated = _known_va(manifest) & (manifest.get("va_derived", 0) != 1)
    return annotated.to_numpy(copy=True)


def va_state(manifest):
    """Return "annotated", "derived" (only class means) or "none" (no values at all)."""
    if annotated_rows(manifest).any():
        return "annotated"
    return "derived" if _known_va(manifest).any() else "none"


def _known_va(manifest):
    return manifest["valence"].notna() & manifest["arousal"].notna()


def _read_csv(base, found, options):
    """The contract: labels.csv, or one file for each of train, val and test."""
    if (base / "labels.csv").is_file():
        return _table(base / "labels.csv")
    parts = [_table(path).assign(split=split) for split, path in _split_csvs(base)]
    return pd.concat(parts, ignore_index=True)


def _read_kaggle(base, found, options):
    """Kaggle's set: a model made `label`, AffectNet the folders; `relFCs` is no confidence."""
    table = _table(base / "labels.csv")
    folder = table["pth"].str.split("/").str[-2]
    names = folder if options["labels"] == "folder" else table["label"]
    manifest = pd.DataFrame({"image_path": table["pth"], "emotion": _ids(names)})
    return manifest.assign(folder_emotion=_ids(folder), relFCs=table.get("relFCs"))


def _read_ferplus(base, found, options):
    """FER+: the largest of ten vote counts; rows most called "unknown" or "no face" drop out."""
    parts = [part for part in _FERPLUS_PARTS if (base / part / "label.csv").is_file()]
    official = "FER2013Test" in parts  # without it, val will be carved from Train
    splits = _FERPLUS_PARTS if official else {"FER2013Train": "", "FER2013Valid": "test"}
    tables = []
    for part in parts:
        table = pd.read_csv(base / part / "label.csv", header=None)
        if table.shape[1] != 12:
            raise EmoError(f"{base / part / 'label.csv'}: got {table.shape[1]} columns, not 12")
        paths = part + "/" + table[0].astype(str)
        tables.append(table.assign(image_path=paths, split=splits[part]))
    table = pd.concat(tables, ignore_index=True)
    counts = table[list(range(2, 12))].to_numpy(float)
    largest = counts.argmax(axis=1)  # ties go to the column that stands first in the file
    order = ids_of_order("ferplus")
    table = table[["image_path", "split"]].assign(emotion=np.append(order, [-1, -1])[largest])
    shares = counts[:, :8] / np.maximum(counts[:, :8].sum(axis=1, keepdims=True), 1)
    table[list(PROBABILITY_COLUMNS)] = shares[:, np.argsort(order)]
    kept = table[largest < 8].reset_index(drop=True)
    kept.attrs["dropped"] = {
        "most annotators said unknown": int((largest == 8).sum()),
        "most annotators said not a face": int((largest == 9).sum()),
    }
    return kept


def _read_affectnet_2017(base, found, options):
    """AffectNet 2017 lists, with or without header; expression 8–10 are no emotions."""
    tables = []
    for path, split in _affectnet_2017_lists(base):
        header = 0 if "subDirectory_filePath" in _header(path) else None
        table = pd.read_csv(path, header=header).rename(columns=_AFFECTNET_2017)
        tables.append(table.assign(split=split))
    table = pd.concat(tables, ignore_index=True)
    known = {Path(p).parts[-2:]: p for p in found}
    paths = table["subDirectory_filePath"].astype(str)
    table["image_path"] = [known.get(tuple(p.split("/")[-2:]), p) for p in paths]
    return _affectnet_rows(table.rename(columns={"expression": "emotion"}))


def _read_affectnet_2021(base, found, options):
    """AffectNet 2021: one npy file for each value of each image, sometimes stored as text."""
    rows = []
    for part, split in (("train_set", ""), ("val_set", "test")):
        folder = base / part / "annotations"
        images = {Path(p).stem: p for p in found if Path(p).parts[0] == part}
        for stem, path in tqdm(images.items(), desc=f"Reading {part}", unit="image"):
            values = [folder / f"{stem}_{name}.npy" for name in ("exp", "val", "aro")]
            if all(value.is_file() for value in values):
                numbers = [float(np.load(value, allow_pickle=False).item()) for value in values]
                rows.append((path, split, *numbers))
    return _affectnet_rows(pd.DataFrame(rows, columns=_COLUMNS))


def _affectnet_rows(table):
    numbers = table[["emotion", *VA]].apply(pd.to_numeric, errors="coerce")
    table[["emotion", *VA]] = numbers.where(numbers > -2)  # −2 = not annotated
    kept = table.loc[numbers["emotion"].between(0, 7), _COLUMNS].reset_index(drop=True)
    names = {"None": 8, "Uncertain": 9, "No-Face": 10}
    counts = {f"expression {name}": (numbers["emotion"] == i).sum() for name, i in names.items()}
    kept.attrs["dropped"] = counts
    return kept


def _read_folders(base, found, options):
    """One folder a class, by name or (with an explicit order) by number; maybe below a split."""
    rows = []
    for path in found:
        parts = Path(path).parts[:-1]
        split = next((SPLITS[p.lower()] for p in parts if p.lower() in SPLITS), "")
        emotion = _folder_emotion(parts[-1] if parts else "", options["class_order"], base)
        rows.append((path, emotion, split))
    manifest = pd.DataFrame(rows, columns=["image_path", "emotion", "split"])
    kept = manifest.dropna().reset_index(drop=True)
    kept.attrs["dropped"] = {"folder is named after no emotion": len(manifest) - len(kept)}
    return kept


LAYOUTS = {
    "csv": _read_csv,
    "kaggle": _read_kaggle,
    "ferplus": _read_ferplus,
    "affectnet2017": _read_affectnet_2017,
    "affectnet2021": _read_affectnet_2021,
    "folders": _read_folders,
}


def _folder_emotion(name, class_order, base):
    if is_emotion_name(name):
        return emotion_id(name)
    if not (name.isdigit() and int(name) < 8):
        return None
    if class_order is None:
        raise EmoError(
            f"{base} has folders named by number, and data sets differ in what {name} means; say "
            f"which order they follow: --class-order {'|'.join(CLASS_ORDERS)}"
        )
    return int(ids_of_order(class_order)[int(name)])


def _base(root):
    """Follow a lone wrapping folder (as archives have) or Kaggle's `train/` level."""
    entries = [e for e in sorted(root.iterdir()) if not e.name.startswith((".", "__MACOSX"))]
    if (root / "train" / "labels.csv").is_file():
        return root / "train"
    if len(entries) == 1 and entries[0].is_dir() and not is_emotion_name(entries[0].name):
        return _base(entries[0])
    return root


def _image_paths(base):
    """List the images below `base` as relative POSIX paths, sorted."""
    found = []
    for folder, _, names in os.walk(base):
        paths = map(Path(folder).relative_to(base).joinpath, names)
        found += [path.as_posix() for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(path for path in found if not path.startswith("."))


def _class_folders(base):
    names = [p.name for p in base.glob("*/") if p.is_dir()]
    names += [p.name for p in base.glob("*/*/") if p.parent.name.lower() in SPLITS]
    return [n for n in names if is_emotion_name(n) or (n.isdigit() and int(n) < 8)]


def _split_csvs(base):
    for path in sorted(base.glob("*.csv")):
        if path.stem.lower() in SPLITS and {"image_path", "emotion"} <= _header(path):
            yield SPLITS[path.stem.lower()], path


def _affectnet_2017_lists(base):
    for path in sorted([*base.glob("*.csv"), *base.glob("*file_lists/*.csv")]):
        first = _header(path)
        if "subDirectory_filePath" in first or any("/" in c and "." in c for c in first):
            yield path, "test" if "valid" in path.stem.lower() else ""


def _header(path):
    if not path.is_file():
        return set()
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return {cell.strip().strip('"') for cell in file.readline().split(",")}


def _table(path):
    try:
        table = pd.read_csv(path, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise EmoError(f"{path} is not readable as CSV ({error}); export it again") from error
    table.columns = [str(c).strip() for c in table.columns]
    return table


def _ids(names):
    known = {name: emotion_id(name) for name in names.dropna().unique()}
    return names.map(known).fillna(-1).astype(int)


def _tidy(manifest):
    """Give every manifest the contract's columns and types; emotion still as read, or −1."""
    missing = {name: np.nan for name in VA if name not in manifest}
    manifest = manifest.assign(image_path=manifest["image_path"].astype(str), **missing)
    numbers = pd.to_numeric(manifest["emotion"], errors="coerce")
    manifest["emotion"] = numbers.fillna(_ids(manifest.loc[numbers.isna(), "emotion"]))
    for name in VA:
        manifest[name] = pd.to_numeric(manifest[name], errors="coerce").astype(float)
    if "split" in manifest:
        manifest["split"] = manifest["split"].fillna("").astype(str)
    first = ["image_path", "emotion", *VA]
    return manifest[first + [c for c in manifest.columns if c not in first]]


def _check_labels(manifest, root):
    ranges = {name: manifest[name].isna() | manifest[name].between(-1, 1) for name in VA}
    ranges["emotion"] = manifest["emotion"].isin(range(-1, len(EMOTIONS)))
    for name, good in ranges.items():
        if not good.all():
            row, others = manifest[~good].iloc[0], (~good).sum() - 1
            expected = "0–7 in AffectNet's order" if name == "emotion" else "−1 to 1"
            raise EmoError(
                f"{root}: {name} {row[name]:g} of {row['image_path']} (and {others} more rows) "
                f"is out of range; expected {expected}, or an empty cell where not annotated"
            )
    return manifest.astype({"emotion": int})


def _drop_missing(manifest, found, base, root):
    """Drop rows without an image or listed twice; make the paths relative to `root`."""
    dropped = manifest.attrs.get("dropped", {})
    there = manifest["image_path"].isin(set(found))
    twice = manifest["image_path"].duplicated()
    unlabelled = len(set(found) - set(manifest["image_path"]))
    unlabelled -= min(unlabelled, sum(dropped.values()))  # counted already
    kept = manifest[there & ~twice].reset_index(drop=True)
    if base != root:
        kept["image_path"] = f"{base.relative_to(root).as_posix()}/" + kept["image_path"]
    return kept, dropped | {
        "image file is missing": int((~there).sum()),
        "listed twice": int((there & twice).sum()),
        "image without a label": unlabelled,
    }
