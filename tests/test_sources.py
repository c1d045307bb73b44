"""Label order and quirks of every data layout, each on a small tree built here."""

import cv2
import numpy as np
import pandas as pd
import pytest

from emo import EmoError
from emo.dataset import split_manifest
from emo.emotions import CLASS_MEAN_VA, EMOTIONS, ids_of_order
from emo.sources import detect_layout, fill_derived_va, read_dataset, va_state


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((40, 40, 3), 128, np.uint8))


def csv(root, text, names=("a.png", "b.png")):
    for name in names:
        image(root / name)
    (root / "labels.csv").write_text(text)
    return root


def test_csv_contract(tmp_path):
    root = csv(tmp_path, "image_path,emotion,valence,arousal\na.png,1,0.5,-0.25\nb.png,7,,\n")
    manifest = read_dataset(root)
    assert manifest.attrs["layout"] == "csv"
    assert list(manifest.columns[:4]) == ["image_path", "emotion", "valence", "arousal"]
    assert manifest["emotion"].tolist() == [1, 7]
    assert manifest.loc[0, ["valence", "arousal"]].tolist() == [0.5, -0.25]
    assert manifest["valence"].isna().tolist() == [False, True]
    assert va_state(manifest) == "annotated"


def test_csv_one_file_a_split(tmp_path):
    for split, name in (("train", "a.png"), ("val", "b.png"), ("test", "c.png")):
        image(tmp_path / name)
        (tmp_path / f"{split}.csv").write_text(f"image_path,emotion\n{name},2\n")
    manifest = read_dataset(tmp_path)
    assert dict(zip(manifest["image_path"], manifest["split"], strict=True)) == {
        "a.png": "train",
        "b.png": "val",
        "c.png": "test",
    }


def test_csv_names_and_empty_cells(tmp_path):
    text = "image_path,emotion,valence,arousal\na.png,Happiness,,\nb.png,,,\n"
    assert read_dataset(csv(tmp_path, text))["emotion"].tolist() == [1, -1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.png,8,0,0", "emotion 8 of a.png"),
        ("a.png,-2,0,0", "out of range"),
        ("a.png,2.5,0,0", "emotion 2.5"),
        ("a.png,happyish,0,0", "happyish"),
        ("a.png,1,-2,0", "valence -2"),
        ("a.png,1,0,1.5", "arousal 1.5"),
    ],
)
def test_labels_out_of_range_are_refused(tmp_path, rows, message):
    with pytest.raises(EmoError, match=message):
        read_dataset(csv(tmp_path, f"image_path,emotion,valence,arousal\n{rows}\n"))


def test_rows_without_image_and_images_without_row_are_counted(tmp_path):
    text = "image_path,emotion\na.png,1\ngone.png,1\na.png,2\n../x.png,1\n"
    manifest = read_dataset(csv(tmp_path, text))
    assert manifest.attrs["report"]["rows"] == {
        "kept": 1,
        "dropped: image file is missing": 2,
        "dropped: listed twice": 1,
        "in all": 4,
        "images without a label": 1,
    }
    assert "a.png" in repr(manifest) + repr(pd.concat([manifest, manifest]))


def test_a_path_may_be_written_as_on_windows(tmp_path):
    csv(tmp_path, "image_path,emotion\nhappy\\a.png,1\n./b.png,2\n", ("happy/a.png", "b.png"))
    assert read_dataset(tmp_path)["image_path"].tolist() == ["happy/a.png", "b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_path,emotion\na.png,1,0.5\nb.png,2,0.1\n", "not readable as CSV"),
        ('image_path,emotion\n"a.png,1\nb.png",2\n', "2 lines give|3 lines give"),
        ('image_path,emotion\n"a.png,1\nb.png,2\n', "EOF inside string"),
        ("image_path,emotion\na.png,\xe4\n", "utf-8"),
        ("image_path,emotion,valence,arousal\na.png,1,o.5,0\nb.png,1,0,0\n", "valence o.5"),
        ("image_path,emotion,valence,arousal\na.png,1,inf,0\nb.png,9,0,2\n", "emotion 9.*; arou"),
    ],
)
def test_no_cell_is_lost_in_silence(tmp_path, text, message):
    csv(tmp_path, "")
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(EmoError, match=message):
        read_dataset(tmp_path)


def test_numbers_in_another_order_are_refused_or_translated(tmp_path, faces):
    manifest = read_dataset(faces)
    stored = np.argsort(ids_of_order("alphabetical"))[manifest["emotion"]]
    names = [f"{i}.png" for i in range(len(manifest))]
    table = manifest.assign(image_path=names, emotion=stored)
    csv(tmp_path, table[["image_path", "emotion", "valence", "arousal"]].to_csv(index=False), names)
    with pytest.raises(EmoError, match="fit the alphabetical class order.*--class-order"):
        read_dataset(tmp_path)
    translated = read_dataset(tmp_path, class_order="alphabetical")["emotion"]
    assert sorted(translated) == sorted(manifest["emotion"])
    assert (translated.to_numpy() == manifest["emotion"].to_numpy()).all()
    insisted = read_dataset(tmp_path, class_order="affectnet")["emotion"]
    assert (insisted.to_numpy() == stored).all()


def test_csv_without_the_columns(tmp_path):
    with pytest.raises(EmoError, match="has the columns feeling, file; expected image_path"):
        read_dataset(csv(tmp_path, "file,feeling\na.png,1\n"))


def kaggle(root):
    for folder in ("anger", "happy"):
        image(root / folder / "image0000000.jpg")  # the same name in two folders
    (root / "labels.csv").write_text(
        ",pth,label,relFCs\n0,anger/image0000000.jpg,sad,0.9\n1,happy/image0000000.jpg,happy,0.8\n"
    )
    return root


@pytest.mark.parametrize("level", ["", "train", "some-archive-name"])
def test_kaggle(tmp_path, level):
    kaggle(tmp_path / level)
    manifest = read_dataset(tmp_path)
    assert manifest.attrs["layout"] == "kaggle"
    assert manifest["emotion"].tolist() == [2, 1]
    assert manifest["folder_emotion"].tolist() == [6, 1]
    assert manifest["relFCs"].tolist() == [0.9, 0.8]
    assert all((tmp_path / path).is_file() for path in manifest["image_path"])
    assert read_dataset(tmp_path, labels="folder")["emotion"].tolist() == [6, 1]
    assert va_state(manifest) == "none"


def ferplus(root, parts=("FER2013Train", "FER2013Valid")):
    order = "neutral happiness surprise sadness anger disgust fear contempt unknown no-face".split()
    for part in parts:
        lines = []
        for i in range(10):
            image(root / part / f"{part}{i}.png")
            votes = [2 if j == (i + 1) % 8 else 0 for j in range(10)]
            votes[i] = 8
            lines.append(f'{part}{i}.png,"(0, 0, 48, 48)",' + ",".join(map(str, votes)))
        (root / part / "label.csv").write_text("\n".join(lines) + "\n")
    return order


def test_ferplus_labels_votes_and_splits(tmp_path):
    ferplus(tmp_path)
    manifest = read_dataset(tmp_path)
    assert manifest.attrs["layout"] == "ferplus"
    train = manifest[manifest["image_path"].str.startswith("FER2013Train")]
    expected = ["Neutral", "Happy", "Surprise", "Sad", "Anger", "Disgust", "Fear", "Contempt"]
    assert [EMOTIONS[i] for i in train["emotion"]] == expected
    assert train.iloc[0]["p_neutral"] == 0.8
    assert train.iloc[0]["p_happy"] == 0.2
    assert set(train["split"]) == {"train"}
    split = split_manifest(manifest)["split"]  # the official validation part is reported on
    assert set(split[manifest["split"] == "val"]) == {"test"}
    assert "test" not in set(split[manifest["split"] == "train"])
    report = manifest.attrs["report"]["rows"]
    assert report["dropped: most annotators said unknown"] == 2
    assert report["dropped: most annotators said not a face"] == 2
    assert report["in all"] == 20


def test_ferplus_rows_without_votes_are_counted(tmp_path):
    ferplus(tmp_path)
    path = tmp_path / "FER2013Valid" / "label.csv"
    lines = path.read_text().splitlines()
    lines[0] = lines[0].rpartition('",')[0] + '",' + ",".join("0" * 10)
    lines[1] = lines[1].replace(",8,", ",eight,")
    path.write_text("\n".join(lines) + "\n")
    report = read_dataset(tmp_path).attrs["report"]["rows"]
    assert report["dropped: the votes are missing or damaged"] == 2
    assert report["kept"] == 14
    path.write_text("a.png,1\n")
    with pytest.raises(EmoError, match="lacks the columns 10, 11"):
        read_dataset(tmp_path)


def test_ferplus_with_all_parts_keeps_the_official_splits(tmp_path):
    ferplus(tmp_path, ("FER2013Train", "FER2013Valid", "FER2013Test"))
    split = read_dataset(tmp_path).groupby("split").size()
    assert split.to_dict() == {"train": 8, "val": 8, "test": 8}


@pytest.mark.parametrize("header", [True, False])
def test_affectnet_2017(tmp_path, header):
    columns = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,"
    columns += "expression,valence,arousal\n"
    rows = [f"{i % 3}/img{i}.jpg,0,0,10,10,1;2,{i},-2,-2\n" for i in range(8, 11)]
    rows += ["1/a.jpg,0,0,10,10,1;2,3,0.5,0.25\n", "2/b.jpg,0,0,10,10,1;2,1,-2,-2\n"]
    for name in ("1/a.jpg", "2/b.jpg"):
        image(tmp_path / "Manually_Annotated_Images" / name)
    (tmp_path / "training.csv").write_text((columns if header else "") + "".join(rows))
    manifest = read_dataset(tmp_path)
    assert manifest.attrs["layout"] == "affectnet2017"
    assert manifest["emotion"].tolist() == [3, 1]
    assert manifest.loc[0, ["valence", "arousal"]].tolist() == [0.5, 0.25]
    assert np.isnan(manifest.loc[1, "valence"])
    report = manifest.attrs["report"]["rows"]
    assert report["dropped: expression Uncertain"] == 1
    assert report["in all"] == 5


def test_affectnet_2017_keeps_both_kinds_of_lists_apart(tmp_path):
    columns = "subDirectory_filePath,expression,valence,arousal\n"
    for kind in ("Manually", "Automatically"):
        image(tmp_path / f"{kind}_Annotated_Images" / "1" / "a.jpg")
        text = f"{columns}1/a.jpg,{len(kind) % 8},0.5,-0.5\n1/b.jpg,?,0,0\n"
        (tmp_path / f"{kind.lower()}_annotated.csv").write_text(text)
    (tmp_path / "validation.csv").write_text(columns + "1/gone.jpg,1,0,0\n")
    manifest = read_dataset(tmp_path)
    folders = manifest["image_path"].str.split("_").str[0]
    assert dict(zip(folders, manifest["automatic"], strict=True)) == {
        "Manually": 0,
        "Automatically": 1,
    }
    report = manifest.attrs["report"]["rows"]
    assert report["dropped: the annotation is missing or damaged"] == 2
    assert report["dropped: image file is missing"] == 1
    (tmp_path / "validation.csv").write_text("1/a.jpg,1,2,3,4,5;6\n")
    with pytest.raises(EmoError, match="lacks the columns 6, 7, 8"):
        read_dataset(tmp_path)


def test_affectnet_2021(tmp_path):
    for part in ("train_set", "val_set"):
        for number, values in enumerate([(1, 0.5, 0.1), (4, -0.2, 0.8)]):
            image(tmp_path / part / "images" / f"{number}.jpg")  # ids of both parts overlap
            (tmp_path / part / "annotations").mkdir(exist_ok=True)
            for name, value in zip(("exp", "val", "aro"), values, strict=True):
                stored = np.array(str(value)) if number else np.array(value)
                np.save(tmp_path / part / "annotations" / f"{number}_{name}.npy", stored)
    manifest = read_dataset(tmp_path)
    assert manifest.attrs["layout"] == "affectnet2021"
    assert sorted(manifest["emotion"]) == [1, 1, 4, 4]
    assert set(manifest["split"]) == {"train", "val"}
    assert manifest["arousal"].max() == 0.8
    annotations = tmp_path / "train_set" / "annotations"
    (annotations / "0_val.npy").write_bytes(b"no number")
    assert len(read_dataset(tmp_path)) == 4  # kept from the first time
    (annotations / "1_exp.npy").unlink()  # another set of files: read again
    report = read_dataset(tmp_path).attrs["report"]["rows"]
    assert report["dropped: the annotation is missing or damaged"] == 1
    assert report["kept"] == 2


def test_class_folders(tmp_path):
    for folder in ("Happiness", "sad", "other"):
        image(tmp_path / folder / "1.png")
    manifest = read_dataset(tmp_path)
    assert manifest["emotion"].tolist() == [1, 2]
    report = manifest.attrs["report"]["rows"]
    assert report["dropped: folder is named after no emotion: other"] == 1


def test_class_folders_below_splits(tmp_path):
    for split in ("train", "valid", "test"):
        image(tmp_path / split / "fear" / "1.png")
        image(tmp_path / split / "happy" / "1.png")
    assert sorted(read_dataset(tmp_path)["split"]) == ["test"] * 2 + ["train"] * 2 + ["val"] * 2


def test_numbered_folders_need_an_order(tmp_path):
    for number in range(8):
        image(tmp_path / str(number) / "1.png")
    with pytest.raises(EmoError, match="--class-order"):
        read_dataset(tmp_path)
    manifest = read_dataset(tmp_path, class_order="alphabetical")
    assert manifest["emotion"].tolist() == [6, 7, 5, 4, 1, 0, 2, 3]
    assert read_dataset(tmp_path, class_order="affectnet")["emotion"].tolist() == list(range(8))


def test_nothing_there(tmp_path):
    with pytest.raises(EmoError, match="01_download"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(EmoError, match="no data set that emo knows"):
        detect_layout(tmp_path)
    with pytest.raises(EmoError, match="unknown layout"):
        read_dataset(tmp_path, layout="mine")


def test_derived_values_fill_only_what_is_empty():
    manifest = pd.DataFrame({"emotion": [1, 2, -1], "valence": [0.1, np.nan, np.nan]})
    manifest["arousal"] = manifest["valence"]
    filled = fill_derived_va(manifest)
    assert filled.loc[0, "valence"] == 0.1
    assert filled.loc[1, "valence"] == pytest.approx(CLASS_MEAN_VA[2, 0])
    assert np.isnan(filled.loc[2, "valence"])
    assert filled["va_derived"].tolist() == [0, 1, 0]
    assert va_state(filled) == "annotated"
    assert va_state(filled.iloc[1:]) == "derived"


def lists(root):
    """A small tree of every layout that has lists, and how many rows these have."""
    text = "image_path,emotion,valence,arousal\n"
    names = [f"{i}.png" for i in range(12)]
    csv(
        root / "csv",
        text + "".join(f"{n},{i % 8},0.{i},-0.{i}\n" for i, n in enumerate(names)),
        names,
    )
    kaggle(root / "kaggle")
    ferplus(root / "ferplus")
    columns = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,"
    rows = "".join(f"{i}/a.jpg,0,0,9,9,1;2,{i % 11},0.1,-2\n" for i in range(12))
    for i in range(12):
        image(root / "affectnet2017" / str(i) / "a.jpg")
    list_path = root / "affectnet2017" / "training.csv"
    list_path.write_text(f"{columns}expression,valence,arousal\n{rows}")
    return [root / "csv/labels.csv", root / "kaggle/labels.csv", list_path]


def test_300_mutated_lists_are_refused_or_every_row_is_accounted_for(tmp_path):
    paths = [*lists(tmp_path), tmp_path / "ferplus/FER2013Valid/label.csv"]
    generator, outcomes = np.random.default_rng(0), {"refused": 0, "read": 0}
    for number in range(300):
        path = paths[number % len(paths)]
        good = path.read_bytes()
        data = bytearray(good)
        for _ in range(generator.integers(1, 4)):
            place = int(generator.integers(len(data)))
            kind = generator.integers(4)
            if kind == 0:
                data[place] = int(generator.integers(256))
            elif kind == 1:
                data[place:place] = bytes(generator.choice(list(b',"\n-9\0;.'), 2).astype(np.uint8))
            elif kind == 2:
                del data[place : place + int(generator.integers(1, 9))]
            else:
                data = data[: max(place, 1)]
        path.write_bytes(data)
        root = tmp_path / path.relative_to(tmp_path).parts[0]
        try:
            manifest = read_dataset(root, layout=root.name)
        except EmoError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            report = manifest.attrs["report"]["rows"]
            every = [p for p in paths if p.is_relative_to(root)]
            every += [root / "FER2013Train/label.csv"] if root.name == "ferplus" else []
            lines = sum(len([x for x in p.read_bytes().splitlines() if x.strip()]) for p in every)
            header = 0 if root.name == "ferplus" else 1
            kept_or_dropped = [n for k, n in report.items() if k.startswith(("kept", "dropped"))]
            assert sum(kept_or_dropped) == report["in all"] == lines - header, (
                number,
                path,
                bytes(data),
            )
            assert manifest["emotion"].between(-1, 7).all()
            assert not (manifest[["valence", "arousal"]].abs() > 1).any(axis=None)
        path.write_bytes(good)
    assert min(outcomes.values()) > 50, outcomes


def test_names_stay_names_under_a_class_order(tmp_path):
    csv(tmp_path, "image_path,emotion\na.png,Happy\nb.png,0\n")
    assert read_dataset(tmp_path, class_order="alphabetical")["emotion"].tolist() == [1, 6]
    csv(tmp_path, "image_path,emotion\na.png,8\nb.png,0\n")
    with pytest.raises(EmoError, match="emotion 8 of a.png"):
        read_dataset(tmp_path, class_order="alphabetical")


def test_kaggle_paths_may_have_backslashes_or_a_parent_that_is_no_emotion(tmp_path):
    for name in ("anger/1.jpg", "images/2.jpg"):
        image(tmp_path / name)
    (tmp_path / "labels.csv").write_text(",pth,label\n0,anger\\1.jpg,sad\n1,images/2.jpg,fear\n")
    assert read_dataset(tmp_path)["emotion"].tolist() == [2, 4]
    assert read_dataset(tmp_path, labels="folder")["emotion"].tolist() == [6, -1]


def test_annotations_are_never_overwritten_and_derived_values_stay_derived():
    manifest = pd.DataFrame({"emotion": [1, -1, 2], "valence": [0.1, 0.2, np.nan]})
    manifest["arousal"] = np.nan
    once = fill_derived_va(manifest)
    assert once["valence"][:2].tolist() == [0.1, 0.2]
    assert np.isnan(once["arousal"][1])
    assert once["va_derived"].tolist() == [1, 0, 1]
    again = fill_derived_va(once)
    pd.testing.assert_frame_equal(once, again)
    assert va_state(again) == "derived"


def test_parts_alone_links_and_small_words(tmp_path):
    ferplus(tmp_path / "one", ("FER2013Train",))
    assert read_dataset(tmp_path / "one").attrs["layout"] == "ferplus"
    csv(tmp_path / "two", "image_path,emotion,split\na.png,1,Train\nb.png,2,Testing\n")
    assert read_dataset(tmp_path / "two")["split"].tolist() == ["train", "test"]
    image(tmp_path / "disk" / "c.png")
    (tmp_path / "two" / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "two" / "labels.csv").write_text("image_path,emotion\nlink/c.png,5\n")
    assert read_dataset(tmp_path / "two")["emotion"].tolist() == [5]
    (tmp_path / "two" / "labels.csv").write_text("image_path,emotion,emotion \na.png,1,2\n")
    with pytest.raises(EmoError, match="names a column twice"):
        read_dataset(tmp_path / "two")
