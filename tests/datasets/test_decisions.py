"""Accepted decisions change the identities that they name, and a faulty line is refused before anything is written."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import jpeg, png, put, tarred

from datasets.decisions import Decision, decisions_of, renamed
from datasets.errors import InputError
from datasets.object_storage import open_objects
from datasets.pack import Options, pack
from datasets.relabel import relabel
from datasets.shards.index import Index, read_index, write_index
from datasets.shards.scan import Rules, scan

HEADER = "accept,kind,probability,identity,other,keys"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Training identities a to f of four images each; q is held out."""
    root = tmp_path_factory.mktemp("original")
    names = [f"train/{name}/{n}.jpg" for name in ("a", "b", "c", "d", "e", "f") for n in range(4)]
    images = {name: jpeg(seed) for seed, name in enumerate([*names, *(f"test/q/{n}.jpg" for n in range(4))])}
    return pack("folders", put(root / "images", images), str(root / "set"), Options())


def identities(index: Index) -> dict[str, list[str]]:
    """The keys of each identity."""
    found: dict[str, list[str]] = {}
    for key, identity in zip(index.keys, index.identity_of(np.arange(len(index))).tolist(), strict=True):
        found.setdefault(index.identities[identity], []).append(key)
    return {name: sorted(keys) for name, keys in found.items()}


def keys(name: str, *numbers: int) -> list[str]:
    return [f"{name}/{number:06d}" for number in numbers]


def written(path: Path, *lines: str, header: str = HEADER) -> str:
    """A csv of these lines."""
    path.write_text("\n".join([header, *lines, ""]))
    return str(path)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return subprocess.run([sys.executable, "-m", "datasets.relabel", *args], capture_output=True, text=True, check=False)


def test_every_kind(original: Index, tmp_path: Path) -> None:
    decisions = written(
        tmp_path / "decisions.csv",
        "yes,same,0.98,d,b,",
        "no,same,0.1,a,gone,x",
        "yes,wrong,0.9,a,d,a/000003",
        "yes,wrong,0.9,a,,a/000002",
        "yes,mixture,0.7,f,,f/000000 f/000003",
        "yes,mixture,1,c,,c/000001",
        "yes,mixture,1,c,,c/000002 c/000000",
        "yes,same,0.9,d,e,d/000000",
    )
    ended = run(original.url, decisions, str(tmp_path / "new"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "applied 2 same, 3 mixture, 2 wrong; 1 not accepted",
        "identities: 7 before, 8 after",
        "images: 28 before, 27 after",
        f"the new index is at {tmp_path / 'new'}, its shards at {original.url}",
    ]
    assert identities(read_index(str(tmp_path / "new"))) == {
        "a": keys("a", 0, 1),
        "b": [*keys("a", 3), *keys("b", 0, 1, 2, 3), *keys("d", 0, 1, 2, 3), *keys("e", 0, 1, 2, 3)],
        "c": keys("c", 3),
        "c~2": keys("c", 1),
        "c~3": keys("c", 0, 2),
        "f": keys("f", 1, 2),
        "f~2": keys("f", 0, 3),
        "q": keys("q", 0, 1, 2, 3),
    }
    again = written(tmp_path / "again.csv", "yes,mixture,1,c~3,,c/000002", "yes,same,1,c,c~2,")
    relabel(str(tmp_path / "new"), again, str(tmp_path / "newer"))
    found = identities(read_index(str(tmp_path / "newer")))
    assert found["c"] == keys("c", 1, 3)
    assert found["c~3~2"] == keys("c", 2)


def test_in_a_bucket(original: Index, s3_url: str, tmp_path: Path) -> None:
    for path in Path(original.url).rglob("*"):
        if path.is_file():
            open_objects(f"{s3_url}/set").put_file(path.relative_to(original.url).as_posix(), path)
    open_objects(s3_url).put("decisions.csv", f"{HEADER}\nyes,mixture,1,a,,a/000001\n".encode())
    relabel(f"{s3_url}/set", f"{s3_url}/decisions.csv", f"{s3_url}/new")
    assert identities(read_index(f"{s3_url}/new"))["a~2"] == keys("a", 1)


def test_an_identity_that_all_images_leave_is_gone(original: Index, tmp_path: Path) -> None:
    found = relabelled_by(original, tmp_path, [f"yes,wrong,1,a,b,a/{n:06d}" for n in range(4)])
    assert found["b"] == [*keys("a", 0, 1, 2, 3), *keys("b", 0, 1, 2, 3)]
    assert "a" not in found


def relabelled_by(index: Index, folder: Path, lines: Sequence[str]) -> dict[str, list[str]]:
    relabel(index.url, written(folder / "decisions.csv", *lines), str(folder / "new"))
    return identities(read_index(str(folder / "new")))


BAD = [
    ("maybe,same,1,a,b,", "accept is 'maybe'"),
    ("yes,alike,1,a,b,", "kind is 'alike'"),
    ("yes,same,high,a,b,", "probability is 'high', not a number"),
    ("no,same,,a,b,", "probability is '', not a number"),
    ("yes,same,nan,a,b,", "probability is nan"),
    ("yes,same,1.5,a,b,", "probability is 1.5"),
    ("yes,same,1,z,b,", "no training identity 'z'"),
    ("yes,same,1,a,z,", "no training identity 'z'"),
    ("yes,same,1,a,,", "no training identity ''"),
    ("yes,same,1,a,a,", "identity and other are both 'a'"),
    ("yes,same,1,a,q,", "identity 'q' has images in split 'query'"),
    ("yes,wrong,1,q,a,q/000000", "identity 'q' has images in split 'query'"),
    ("yes,wrong,1,a,q,a/000000", "identity 'q' has images in split 'query'"),
    ("yes,wrong,1,a,b,", "no keys"),
    ("yes,wrong,1,a,b,b/000000", "no image 'b/000000' of identity 'a'"),
    ("yes,mixture,1,a,,a/000000 q/000000", "no image 'q/000000' of identity 'a'"),
    ("yes,mixture,1,a,b,a/000000", "a mixture with another identity, 'b'"),
    ("yes,mixture,1,a,,a/000000 a/000000", "image 'a/000000' is named twice"),
    ("yes,same,1,a", "more or fewer cells than columns"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_a_faulty_line_is_named_and_nothing_is_written(original: Index, tmp_path: Path, line: str, words: str) -> None:
    decisions = written(tmp_path / "decisions.csv", "yes,same,1,c,d,", line)
    with pytest.raises(InputError) as refused:
        relabel(original.url, decisions, str(tmp_path / "new"))
    what, where, remedy = refused.value.args
    assert words in what
    assert f"line 3 of {decisions}" in where
    assert remedy
    assert not (tmp_path / "new").exists()


def test_an_image_in_two_lines(original: Index, tmp_path: Path) -> None:
    lines = ["yes,wrong,1,a,b,a/000001", "no,wrong,1,a,b,a/000002", "yes,mixture,1,a,,a/000002 a/000001"]
    decisions = written(tmp_path / "decisions.csv", *lines)
    with pytest.raises(InputError, match=r"image 'a/000001' is named twice: line 2 of \S+, and line 4 of "):
        relabel(original.url, decisions, str(tmp_path / "new"))


def test_what_is_no_csv_of_decisions_ends_with_2(original: Index, tmp_path: Path) -> None:
    for name, data in (("short", b"accept,kind,identity\n"), ("empty", b""), ("latin", "accept,\xe9\n".encode("latin-1"))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=r"no column|not a text in UTF-8"):
            relabel(original.url, str(tmp_path / name), str(tmp_path / "new"))
    ended = run(original.url, str(tmp_path / "none.csv"), str(tmp_path / "new"))
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    decisions = written(tmp_path / "decisions.csv", "yes,same,1,c,d,")
    ended = run(original.url, decisions, f"{original.url}/")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: a shard set is at the destination: ")
    with pytest.raises(InputError, match="not a whole shard set"):
        relabel(str(tmp_path / "nothing"), decisions, str(tmp_path / "new"))


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=8))
def test_joined_identities_are_those_that_a_chain_connects(pairs: list[tuple[str, str]]) -> None:
    decisions = [Decision("same", identity, other, ()) for identity, other in pairs]
    expected = {}
    for name in "abcdefgh":
        reached = {name}
        for _ in "abcdefgh":
            reached |= {end for pair in pairs if reached & {*pair} for end in pair}
        expected[name] = min(reached)
    assert renamed(decisions, "abcdefgh") == [expected[name] for name in "abcdefgh"]


def test_keys_and_names_with_spaces(tmp_path: Path) -> None:
    tarred(tmp_path / "train-0.tar", {f"{name}/no {n}.png": png(n) for name in ("ann lee", "bob") for n in range(3)})
    index, own, _ = scan(str(tmp_path), Rules(identity="key"))
    write_index(open_objects(str(tmp_path)), index, own)
    text = f"{HEADER}\nyes,mixture,1,ann lee,,ann lee/no 0 ann lee/no 2\n"
    ((decision,), _) = decisions_of(text, "x.csv", read_index(str(tmp_path)))
    assert [own[sample] for sample in decision.samples] == ["ann lee/no 0", "ann lee/no 2"]
    with pytest.raises(InputError, match="no image 'ann lee/no 7' of identity 'ann lee'"):
        decisions_of(text.replace("no 2", "no 7"), "x.csv", read_index(str(tmp_path)))


def test_an_edited_csv_of_a_spreadsheet(original: Index) -> None:
    """A byte order mark aside, columns may stand in another order, with others beside them."""
    text = "note,identity,other,keys,kind,probability,accept\r\nseen, a ,b,,same,0.5,yes\r\n"
    assert decisions_of(text, "x.csv", original) == ([Decision("same", "a", "b", ())], 0)
