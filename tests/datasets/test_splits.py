"""Splits: from whole words in any case in folders and file names, else from a hash."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.layouts.listed_files import ListedFiles
from datasets.splits import (
    WORDS,
    HeldOut,
    checked_split,
    counted,
    evaluation_split,
    split_by_hash,
    split_of_file,
    split_of_path,
    split_word,
    splits_by_names,
)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_val2017", "val"), ("Train", "train"), ("VALIDATION", "val"), ("set-validation-00", "val"), ("dev", "val"),
        ("instances_minival", "val"), ("mask_train_v2", "train"), ("bounding_box_test", "test"), ("testing", "test"),
        ("annotations_latest", ""), ("restrain", ""), ("contest2", ""), ("Valley", ""), ("train_val", "train"),
        ("test-dev", "test"), ("train_test", ""), ("gallery", "gallery"), ("probe", "query"), ("", ""), ("trainer", ""),
    ],
)  # fmt: skip
def test_words(name: str, split: str) -> None:
    assert split_word(name) == split


@given(st.sampled_from(sorted(WORDS)), st.sampled_from(["", "_", "-", ".", "7", " "]), st.text("0123456789_- ", max_size=4))
def test_a_word_counts_whole_and_in_any_case(word: str, before: str, after: str) -> None:
    for form in (word, word.upper(), word.title()):
        assert split_word(f"{before}{form}{after}") == WORDS[word]
        assert split_word(f"x{form}") == split_word(f"{form}x") == "" or f"x{word}" in WORDS or f"{word}x" in WORDS


def test_paths() -> None:
    assert split_of_path("data/Train/test/1.jpg") == "train"  # an identity called test
    assert split_of_path("data/a/test_1.jpg") == "test"
    assert split_of_file("train/instances_val.json") == "val"
    assert split_of_file("train/x/annotations.json") == "train"
    assert split_of_file("test/train/0.tar") == "train"


def test_a_cell_of_a_list() -> None:
    assert [checked_split(text, "x") for text in ("train", " Val ", "TESTING")] == ["train", "val", "test"]
    with pytest.raises(InputError, match="split '1': line 3; train, val"):
        checked_split("1", "line 3")


def test_folders_say_the_splits_where_there_are_several() -> None:
    files = ["d/Train/a/1.jpg", "d/Val/b/1.jpg", "d/Testing/b/1.jpg"]
    found = splits_by_names(files, HeldOut(), "x")
    assert (list(found.of.values()), found.by) == (["train", "val", "test"], "the names of folders")
    for alone in (["train/a/1.jpg", "train/b/2.jpg"], ["d/train/1.jpg"]):  # a folder around everything says nothing
        assert "hash" in splits_by_names(alone, HeldOut(), "x").by
    with pytest.raises(InputError, match=r"in none of the folders of train, val: d/more/1\.jpg in x"):
        splits_by_names([*files[:2], "d/more/1.jpg"], HeldOut(), "x")
    by_file = splits_by_names(["a/train_1.jpg", "a/test_2.jpg"], HeldOut(), "x")
    assert list(by_file.of.values()) == ["train", "test"]
    assert "hash" in splits_by_names(["a/train_1.jpg", "a/test_2.jpg", "a/3.jpg"], HeldOut(), "x").by


def test_the_hash_is_of_a_name_in_any_bytes() -> None:
    odd = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    expected = "test" if int.from_bytes(hashlib.sha256(b"caf\xe9.jpg").digest()[:8]) < 0.5 * 2**64 else "train"
    assert split_by_hash(f"folder/{odd}", HeldOut(0.5)) == expected
    assert {split_by_hash(str(i), HeldOut(0)) for i in range(99)} == {"train"}


def test_what_is_evaluated_and_counted() -> None:
    assert [evaluation_split(names) for names in (["train", "val", "test"], ["train", "val"], ["train"])] == ["test", "val", None]
    assert counted(["test", "train", "train"]) == "2 train, 1 test"
    assert counted([]) == "none"


@pytest.mark.parametrize(
    "written", ["images/0.jpg", "./images/0.jpg", "images\\0.jpg", " images/0.jpg ", "0.jpg", "images//0.jpg"]
)
def test_a_list_may_write_a_path_in_many_ways(written: str) -> None:
    assert ListedFiles(["set/images/0.jpg", "set/images/10.jpg"]).find(written, "x") == "set/images/0.jpg"


def test_equal_names_are_distinguished_by_the_list_and_the_split() -> None:
    places = ListedFiles(["train/0.jpg", "val/0.jpg", "a/sub/1.jpg", "b/1.jpg"])
    assert places.find("0.jpg", "x", beside="val") == "val/0.jpg"
    assert places.find("0.jpg", "x", beside="annotations", split="train") == "train/0.jpg"
    assert places.find("1.jpg", "x", beside="a") == "a/sub/1.jpg"
    with pytest.raises(InputError, match=r"2 images are called '0\.jpg': train/0\.jpg and val/0\.jpg: line 1"):
        places.find("0.jpg", "line 1")
    with pytest.raises(InputError, match=r"the image 'c/1\.jpg' is not there: x; there is a/sub/1\.jpg: correct the path"):
        places.find("c/1.jpg", "x")
    with pytest.raises(InputError, match="the image '' is not there"):
        places.find("", "x")
