"""Evaluation of packed sets: junk and the same camera out, the same on any number of ranks; every protocol."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch.distributed as dist
from marketdata import CACHE, CPU, SIZE, Pixels, market_set, picture
from ranks import on_ranks
from sklearn.metrics import average_precision_score
from torch.nn.functional import normalize

from datasets.errors import InputError
from datasets.loading.batches import RankSlice, SplitStream
from datasets.loading.workers import load_in_workers
from datasets.pack import Options, pack
from datasets.shards.index import Index, read_index, split_of
from trainers.tasks.reid.evaluation import PLAIN, can_evaluate, evaluate_set
from trainers.tasks.reid.evaluation_config import EvaluationConfig
from trainers.tasks.reid.retrieval import Embedded, embed


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return market_set(tmp_path_factory.mktemp("market"))


def embedded(index: Index, name: str) -> Embedded:
    split = split_of(index, name)
    stream = SplitStream(split, SIZE, CACHE, {}, RankSlice(0, 1), 4)
    return embed(Pixels(), split, load_in_workers(stream, 0), CPU, None, [])


def test_metrics_against_scikit_learn(market: Index) -> None:
    result = evaluate_set(Pixels(), market, SIZE, CACHE, {}, CPU)
    query, gallery = embedded(market, "query"), embedded(market, "gallery")
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
    result = evaluate_set(Pixels(), market, SIZE, CACHE, {}, CPU)
    query, gallery = embedded(market, "query"), embedded(market, "gallery")
    known = gallery.pids != -1
    cosines = (normalize(query.features) @ normalize(gallery.features).T)[:, known]
    same = query.pids[:, None] == gallery.pids[None, known]
    said = cosines >= result.metrics["threshold"]
    expected = (said[same].double().mean() + (~said[~same]).double().mean()) / 2
    assert result.metrics["verification"] == pytest.approx(float(expected))


def test_shown_rankings_hide_junk_and_the_same_camera(market: Index) -> None:
    result = evaluate_set(Pixels(), market, SIZE, CACHE, {}, CPU)
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
    result = evaluate_set(Pixels(), index, SIZE, CACHE, {}, CPU)
    assert result.metrics["queries"] == result.metrics["skipped_queries"] == 1
    assert len(result.shown) == 1


def evaluation(
    url: str, part: RankSlice, group: dist.ProcessGroup | None, workers: int = 0, config: EvaluationConfig = PLAIN
) -> dict[str, Any]:
    result = evaluate_set(Pixels(), read_index(url), SIZE, CACHE, {}, CPU, config, part, group, workers)
    return result._asdict()


def on_rank(rank: int, url: str) -> dict[str, Any]:
    return evaluation(url, RankSlice(rank, 2), dist.group.WORLD)


def test_two_ranks_find_what_one_finds(market: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = evaluation(market.url, RankSlice(0, 1), None)
    first, second = on_ranks(2, on_rank, market.url)
    assert first == alone
    assert second["metrics"] == {}  # rank 0 has the figures
    monkeypatch.setattr("trainers.tasks.reid.evaluation.CHUNK", 3)
    assert evaluation(market.url, RankSlice(0, 1), None, workers=2) == alone


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
    result = evaluate_set(Pixels(), corrupted(market, tmp_path, "gallery", slice(0, 2)), SIZE, CACHE, {}, CPU)
    assert result.metrics["gallery"] == 29
    assert len(result.bad) == 2
    assert all("gallery-000000.tar" in name for name in result.bad)


def test_nothing_to_be_read(market: Index, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image of split 'query' can be read"):
        evaluate_set(Pixels(), corrupted(market, tmp_path, "query", slice(None)), SIZE, CACHE, {}, CPU)


def test_can_evaluate(market: Index, tmp_path: Path) -> None:
    assert can_evaluate(market)
    for number in range(4):
        path = tmp_path / "images" / f"{number // 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(number // 2, number))
    pack("folders", tmp_path / "images", str(tmp_path / "all"), Options(held_out=0))
    assert not can_evaluate(read_index(str(tmp_path / "all")))
