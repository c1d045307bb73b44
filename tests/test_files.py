import json

import pytest

from emo import EmoError
from emo.files import atomic_path, read_json, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "new", folder=True) as temporary:
        (temporary / "half").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_folder_with_content_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(EmoError), atomic_path(tmp_path / "mine", folder=True) as temporary:
        (temporary / "x").write_text("")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    assert (
        read_json(tmp_path / "a.json") == {"a": 1} == json.loads((tmp_path / "a.json").read_text())
    )
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(EmoError, match="bad.json"):
        read_json(tmp_path / "bad.json")
