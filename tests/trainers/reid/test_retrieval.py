"""Features of a packed set, in order; galleries of files and sets ranked for queries."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from marketdata import CACHE, CPU, SIZE, Pixels, market_set, picture
from torch.nn.functional import normalize

from datasets.errors import InputError
from datasets.loading.batches import RankSlice, SplitStream
from datasets.loading.workers import load_in_workers
from datasets.shards.index import Index, split_of
from trainers.engine.inputs import InputFile, image_files, read_image
from trainers.tasks.reid.retrieval import embed, embed_files, rank_files, rank_split


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return market_set(tmp_path_factory.mktemp("market"))


def chunks_of(index: Index, name: str, part: RankSlice = RankSlice(0, 1), chunk: int = 4) -> list[dict[str, Any]]:  # noqa: B008
    return list(load_in_workers(SplitStream(split_of(index, name), SIZE, CACHE, {}, part, chunk), 0))


def test_features_are_ordered_by_position_whatever_the_order_of_chunks(market: Index) -> None:
    split, chunks = split_of(market, "gallery"), chunks_of(market, "gallery")
    embedder = Pixels().train()
    found = embed(embedder, split, chunks[::-1], CPU, None, [])
    assert embedder.training
    assert found.positions.tolist() == list(range(len(split)))
    images = torch.cat([chunk["images"] for chunk in chunks])
    assert torch.equal(found.features, images.flatten(1).float() - 128)
    for position, pid, camera in zip(found.positions, found.pids.tolist(), found.camids.tolist(), strict=True):
        sample = int(split.samples(position.numpy()[None])[0])
        name = market.keys[sample].split("/")[0]
        assert pid == (-1 if name == "-1" else market.identities.index(name))
        assert market.cameras[camera] in ("c1", "c2", "c3")


# ---- files


@pytest.fixture
def images(tmp_path: Path) -> list[InputFile]:
    """Three looks twice each, some in a folder below; and a text."""
    paths = [tmp_path / "images" / f"{i // 2}" / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(i // 2, i)[:, :, ::-1])
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    with image_files([str(tmp_path / "images")]) as files:
        assert [file.path for file in files] == paths
        return files


def test_embed_files(images: list[InputFile], monkeypatch: pytest.MonkeyPatch) -> None:
    features = embed_files(Pixels().eval(), images, SIZE, CPU)
    assert torch.equal(features[4], torch.from_numpy(picture(2, 4)).permute(2, 0, 1).flatten().float() - 128)
    monkeypatch.setattr("trainers.tasks.reid.retrieval.CHUNK", 4)
    assert torch.equal(embed_files(Pixels().eval(), images, SIZE, CPU), features)


def test_rank_files(images: list[InputFile]) -> None:
    embedder = Pixels().eval()
    found = rank_files(embedder, embed_files(embedder, images[2:4], SIZE, CPU), images, 3, SIZE, CPU)
    assert [row[0].name for row in found] == [images[2].name, images[3].name]
    assert [row[1].name for row in found] == [images[3].name, images[2].name]
    assert all(len(row) == 3 and row[0].cosine == pytest.approx(1, abs=1e-5) for row in found)
    np.testing.assert_array_equal(found[0][0].image, picture(1, 2))


def test_rank_split(market: Index) -> None:
    query = torch.cat([chunk["images"] for chunk in chunks_of(market, "query")])
    found = rank_split(Pixels().eval(), Pixels().eval()(query), market, 4, SIZE, CPU, {}, CACHE)
    assert len(found) == 5
    assert found[1][0].name.startswith("0901/")
    for row in found:
        assert [f.cosine for f in row] == sorted((f.cosine for f in row), reverse=True)
        for f in row:
            features = torch.from_numpy(f.image).permute(2, 0, 1).flatten().float() - 128
            asked = Pixels().eval()(query)[found.index(row)]
            assert f.cosine == pytest.approx(float(normalize(features, dim=0) @ normalize(asked, dim=0)), abs=1e-5)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    for name, reason in (("text.jpg", "not a JPEG, PNG, BMP or WebP image"), ("gone.jpg", "No such file or directory")):
        with (
            image_files([str(tmp_path / name)]) as files,
            pytest.raises(InputError, match=rf"cannot read an image \({reason}\): .*{name}"),
        ):
            embed_files(Pixels(), files, SIZE, CPU)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no images in the folder"), image_files([str(tmp_path / "bare")]):
        pass


def test_a_gallery_without_litter_and_with_names_in_any_bytes(tmp_path: Path) -> None:
    for name in (b"a.jpg", b"._a.jpg", b"caf\xe9.jpg", b".hidden/b.jpg", b"__MACOSX/c.jpg", b"sub/D.JPG"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xff\xd8")
    with image_files([str(tmp_path)]) as files:
        assert [file.path.name for file in files] == ["a.jpg", os.fsdecode(b"caf\xe9.jpg"), "D.JPG"]
        with pytest.raises(InputError, match=r"cannot read an image.*caf\\xe9\.jpg") as error:
            read_image(files[1])
    assert str(error.value).isprintable()
