"""Retrieval on a packed set: features in order, junk and the same camera out, the same on any number of ranks."""

import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn.functional import normalize

from datasets.errors import InputError
from datasets.loading.batches import RankSlice, SplitStream
from datasets.loading.cache import CacheConfig
from datasets.loading.workers import load_in_workers
from datasets.pack import Options, pack
from datasets.shards.index import Index, read_index, split_of
from trainers.engine.inputs import read_image
from trainers.tasks.reid.retrieval import (
    can_retrieve,
    embed,
    embed_files,
    evaluate_retrieval,
    images_below,
    rank_files,
    rank_split,
)

SIZE = (8, 4)
CPU = torch.device("cpu")
CACHE = CacheConfig()


class Pixels(nn.Module):
    """Features are pixels, in evaluation mode only."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.flatten(1).float() - 128


def picture(identity: int, number: int) -> np.ndarray:
    """Noise around what an identity looks like."""
    look = np.random.default_rng(identity).integers(40, 216, (*SIZE, 3))
    noise = np.random.default_rng([identity, number]).integers(-60, 60, (*SIZE, 3))
    return np.clip(look + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Five people with queries from camera 1 and images of cameras 1 to 3, junk and distractors."""
    folder = tmp_path_factory.mktemp("market")
    names = [f"bounding_box_train/{pid:04d}_c1s1_{i:06d}_00.png" for pid in (2, 3) for i in range(2)]
    for pid in range(900, 905):
        names.append(f"query/{pid:04d}_c1s1_000099_00.png")
        names += [f"bounding_box_test/{pid:04d}_c{i % 3 + 1}s1_{i:06d}_00.png" for i in range(5)]
    names += [f"bounding_box_test/{pid}_c2s1_{i:06d}_00.png" for pid in ("-1", "0000") for i in range(3)]
    for place, name in enumerate(names):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pid = int(path.name.split("_")[0])
        cv2.imwrite(str(path), picture(900 if pid == -1 else pid, place)[:, :, ::-1])  # junk looks like somebody
    return pack("market1501", folder / "images", str(folder / "shards"))


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


def test_metrics_against_scikit_learn(market: Index) -> None:
    result = evaluate_retrieval(Pixels(), market, SIZE, CACHE, {}, CPU)
    query, gallery = (
        embed(Pixels(), split_of(market, name), chunks_of(market, name), CPU, None, []) for name in ("query", "gallery")
    )
    cosines = normalize(query.features) @ normalize(gallery.features).T
    precisions, firsts = [], []
    for row, pid, camera in zip(cosines, query.pids, query.camids, strict=True):
        kept = (gallery.pids != -1) & ~((gallery.pids == pid) & (gallery.camids == camera))
        right = (gallery.pids == pid)[kept]
        precisions.append(average_precision_score(right.numpy(), row[kept].numpy()))
        firsts.append(bool(right[row[kept].argmax()]))
    assert result.metrics["mAP"] == pytest.approx(np.mean(precisions))
    assert result.metrics["rank1"] == pytest.approx(np.mean(firsts))
    assert result.metrics["queries"] == 5
    assert result.metrics["skipped_queries"] == 0
    assert result.metrics["gallery"] == 31
    assert result.metrics["rank1"] <= result.metrics["rank5"] <= result.metrics["rank10"] <= 1
    assert result.bad == []


def test_verification_leaves_junk_out(market: Index) -> None:
    """Junk looks like person 900, and would count as different."""
    result = evaluate_retrieval(Pixels(), market, SIZE, CACHE, {}, CPU)
    query, gallery = (
        embed(Pixels(), split_of(market, name), chunks_of(market, name), CPU, None, []) for name in ("query", "gallery")
    )
    known = gallery.pids != -1
    cosines = (normalize(query.features) @ normalize(gallery.features).T)[:, known]
    same = query.pids[:, None] == gallery.pids[None, known]
    said = cosines >= result.metrics["threshold"]
    expected = (said[same].double().mean() + (~said[~same]).double().mean()) / 2
    assert result.metrics["verification"] == pytest.approx(float(expected))


def test_shown_rankings_hide_junk_and_the_same_camera(market: Index) -> None:
    result = evaluate_retrieval(Pixels(), market, SIZE, CACHE, {}, CPU)
    query, gallery = split_of(market, "query"), split_of(market, "gallery")
    assert [row["query"] for row in result.shown] == [0, 1, 2, 3, 4]
    for row in result.shown:
        asked = query.samples(np.array([row["query"]]))
        name = market.identities[market.identity_of(asked)[0]]
        assert row["cosine"] == sorted(row["cosine"], reverse=True)
        assert len(row["gallery"]) == 10
        assert any(row["right"])
        for position, right in zip(row["gallery"], row["right"], strict=True):
            found = gallery.samples(np.array([position]))
            other = market.identities[market.identity_of(found)[0]]
            assert other != "-1"
            assert right == (other == name)
            assert not right or market.samples["camera"][found] != market.samples["camera"][asked]


def test_a_query_with_nothing_left_to_find_is_not_shown(tmp_path: Path) -> None:
    names = ["bounding_box_train/0002_c1s1_000001_00.png", "bounding_box_train/0003_c1s1_000001_00.png"]
    names += ["query/0900_c1s1_000001_00.png", "query/0900_c2s1_000001_00.png", "bounding_box_test/0900_c1s1_000002_00.png"]
    for place, name in enumerate(names):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / name), picture(place, 0)[:, :, ::-1])
    index = pack("market1501", tmp_path / "images", str(tmp_path / "shards"))
    result = evaluate_retrieval(Pixels(), index, SIZE, CACHE, {}, CPU)
    assert result.metrics["queries"] == result.metrics["skipped_queries"] == 1
    assert len(result.shown) == 1


def retrieval(url: str, part: RankSlice, group: dist.ProcessGroup | None, workers: int = 0) -> dict[str, Any]:
    result = evaluate_retrieval(Pixels(), read_index(url), SIZE, CACHE, {}, CPU, part, group, workers)
    return result._asdict()


def on_rank(rank: int, url: str) -> dict[str, Any]:
    return retrieval(url, RankSlice(rank, 2), dist.group.WORLD)


def test_two_ranks_find_what_one_finds(market: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = retrieval(market.url, RankSlice(0, 1), None)
    first, second = on_ranks(2, on_rank, market.url)
    assert first == alone
    assert second["metrics"] == {}  # rank 0 has the figures
    monkeypatch.setattr("trainers.tasks.reid.retrieval.CHUNK", 3)
    assert retrieval(market.url, RankSlice(0, 1), None, workers=2) == alone


def corrupted(index: Index, folder: Path, name: str, positions: slice) -> Index:
    """A copy of a set in which some samples of a split are overwritten."""
    shutil.copytree(index.url, folder / "shards")
    copy = read_index(str(folder / "shards"))
    split = split_of(copy, name)
    for sample in split.samples(np.arange(len(split))[positions]):
        shard = copy.shards[copy.blocks["shard"][copy.samples["block"][sample]]]
        with (Path(copy.url) / shard.name).open("r+b") as file:
            file.seek(int(copy.samples["offset"][sample]))
            file.write(bytes(int(copy.samples["size"][sample])))
    return copy


def test_what_cannot_be_read_is_left_out_and_named(market: Index, tmp_path: Path) -> None:
    result = evaluate_retrieval(Pixels(), corrupted(market, tmp_path, "gallery", slice(0, 2)), SIZE, CACHE, {}, CPU)
    assert result.metrics["gallery"] == 29
    assert len(result.bad) == 2
    assert all("gallery-000000.tar" in name for name in result.bad)


def test_nothing_to_be_read(market: Index, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image of split 'query' can be read"):
        evaluate_retrieval(Pixels(), corrupted(market, tmp_path, "query", slice(None)), SIZE, CACHE, {}, CPU)


def test_can_retrieve(market: Index, images: list[Path], tmp_path: Path) -> None:
    assert can_retrieve(market)
    pack("folders", tmp_path / "images", str(tmp_path / "all"), Options(held_out=0))
    assert not can_retrieve(read_index(str(tmp_path / "all")))


# ---- files


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three looks twice each, some in a folder below; and a text."""
    paths = [tmp_path / "images" / f"{i // 2}" / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(i // 2, i)[:, :, ::-1])
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return paths


def test_embed_files(images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    features = embed_files(Pixels().eval(), images, SIZE, CPU)
    assert torch.equal(features[4], torch.from_numpy(picture(2, 4)).permute(2, 0, 1).flatten().float() - 128)
    monkeypatch.setattr("trainers.tasks.reid.retrieval.CHUNK", 4)
    assert torch.equal(embed_files(Pixels().eval(), images, SIZE, CPU), features)


def test_rank_files(images: list[Path]) -> None:
    embedder = Pixels().eval()
    found = rank_files(embedder, embed_files(embedder, images[2:4], SIZE, CPU), images[0].parent.parent, 3, SIZE, CPU)
    assert [row[0].name for row in found] == [str(images[2]), str(images[3])]
    assert [row[1].name for row in found] == [str(images[3]), str(images[2])]
    assert all(len(row) == 3 and row[0].cosine == pytest.approx(1, abs=1e-5) for row in found)
    np.testing.assert_array_equal(found[0][0].image, picture(1, 2))


def test_rank_split(market: Index) -> None:
    query = torch.cat([chunk["images"] for chunk in chunks_of(market, "query")])
    found = rank_split(Pixels().eval(), Pixels().eval()(query), market, 4, SIZE, CPU, {}, CacheConfig())
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
    with pytest.raises(InputError, match=r"cannot read an image \(not a JPEG, PNG, BMP or WebP image\): .*text\.jpg"):
        embed_files(Pixels(), [tmp_path / "text.jpg"], SIZE, CPU)
    with pytest.raises(InputError, match=r"cannot read an image \(No such file or directory\): .*gone\.jpg"):
        embed_files(Pixels(), [tmp_path / "gone.jpg"], SIZE, CPU)
    (tmp_path / "bare").mkdir()
    for folder, message in (("nowhere", "no such folder"), ("bare", "no images in the folder")):
        with pytest.raises(InputError, match=message):
            rank_files(Pixels(), torch.ones(1, 96), tmp_path / folder, 3, SIZE, CPU)


def test_a_gallery_without_litter_and_with_names_in_any_bytes(tmp_path: Path) -> None:
    for name in (b"a.jpg", b"._a.jpg", b"caf\xe9.jpg", b".hidden/b.jpg", b"__MACOSX/c.jpg", b"sub/D.JPG"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xff\xd8")
    assert [path.name for path in images_below(tmp_path)] == ["a.jpg", os.fsdecode(b"caf\xe9.jpg"), "D.JPG"]
    with pytest.raises(InputError, match=r"cannot read an image.*caf\\xe9\.jpg") as error:
        read_image(tmp_path / os.fsdecode(b"caf\xe9.jpg"))
    assert str(error.value).isprintable()
