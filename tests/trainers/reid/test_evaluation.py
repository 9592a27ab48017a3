"""Evaluation of packed sets: junk and the same camera out, the same on any number of ranks; every protocol."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from marketdata import CACHE, CPU, SIZE, Pixels, market_set, picture
from ranks import on_ranks
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import normalize

from datasets.errors import InputError
from datasets.loading.batches import RankSlice, SplitStream
from datasets.loading.workers import load_in_workers
from datasets.pack import Options, pack
from datasets.seeding import generator
from datasets.shards.index import Index, read_index, split_of
from trainers.tasks.reid.evaluation import PLAIN, can_evaluate, evaluate_set, main_figure, random_galleries
from trainers.tasks.reid.evaluation_config import EvaluationConfig
from trainers.tasks.reid.metrics import Side, evaluate_ranking, evaluate_scores
from trainers.tasks.reid.reranking import Reranked
from trainers.tasks.reid.retrieval import Embedded, FlipTest, embed


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return market_set(tmp_path_factory.mktemp("market"))


class FewPixels(Pixels):
    """So few that people are mistaken for one another."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, :3]


def embedded(index: Index, name: str, embedder: nn.Module | None = None) -> Embedded:
    split = split_of(index, name)
    stream = SplitStream(split, SIZE, CACHE, {}, RankSlice(0, 1), 4)
    return embed(embedder or Pixels(), split, load_in_workers(stream, 0), CPU, None, [])


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


OPTIONS = EvaluationConfig(flip=True, rerank=True)


def on_rank(rank: int, url: str) -> list[dict[str, Any]]:
    return [evaluation(url, RankSlice(rank, 2), dist.group.WORLD, config=config) for config in (PLAIN, OPTIONS)]


def test_two_ranks_find_what_one_finds(market: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, with_options = (evaluation(market.url, RankSlice(0, 1), None, config=config) for config in (PLAIN, OPTIONS))
    first, second = on_ranks(2, on_rank, market.url)
    assert first == [alone, with_options]
    assert [each["metrics"] for each in second] == [{}, {}]  # rank 0 has the figures
    assert with_options["metrics"]["flip"] is True
    assert with_options["metrics"]["mAP_reranked"] > 0
    assert with_options["shown"] != alone["shown"]  # other cosines
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
    assert main_figure([market]) == "mAP"
    for number in range(4):
        path = tmp_path / "images" / f"{number // 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(number // 2, number))
    pack("folders", tmp_path / "images", str(tmp_path / "all"), Options(held_out=0))
    assert not can_evaluate(read_index(str(tmp_path / "all")))
    assert can_evaluate(renamed(market, query="other", gallery="test"))
    assert not can_evaluate(renamed(market, query="test", gallery="other"))  # single images: nothing could be found


# ---- options


def test_the_flip_test_adds_the_features_of_the_mirror_image(market: Index) -> None:
    images = torch.randint(0, 256, (3, 3, *SIZE), dtype=torch.uint8)
    expected = Pixels().eval()(images) + Pixels().eval()(torch.from_numpy(images.numpy()[..., ::-1].copy()))
    assert torch.equal(FlipTest(Pixels().eval())(images), expected)
    embedder = Pixels().train()
    result = evaluate_set(embedder, market, SIZE, CACHE, {}, CPU, EvaluationConfig(flip=True))
    assert embedder.training
    assert not FlipTest(embedder.eval()).training
    sides = [embedded(market, name) for name in ("query", "gallery")]
    summed = [f + f.view(-1, 3, *SIZE).flip(3).flatten(1) for f in (side.features for side in sides)]
    labels = [part for pair in zip(*((side.pids, side.camids) for side in sides), strict=True) for part in pair]
    plain = evaluate_ranking(*summed, *labels)
    assert (result.metrics["mAP"], result.metrics["mINP"]) == (plain.mean_ap, plain.mean_inp)


def test_reranked_figures_stand_beside_the_plain_ones(market: Index) -> None:
    config = EvaluationConfig(rerank=True, rerank_k1=4, rerank_k2=3, rerank_lambda=0.1)
    metrics = evaluate_set(Pixels(), market, SIZE, CACHE, {}, CPU, config).metrics
    plain = evaluate_set(Pixels(), market, SIZE, CACHE, {}, CPU).metrics
    assert {name: metrics[name] for name in plain} == plain
    assert "flip" not in plain
    query, gallery = embedded(market, "query"), embedded(market, "gallery")
    reranked = Reranked(query.features, gallery.features, config)
    again = evaluate_scores(reranked.scores, Side(query.pids, query.camids), Side(gallery.pids, gallery.camids))
    expected = {"mAP": again.mean_ap, "mINP": again.mean_inp, **{f"rank{k}": value for k, value in again.cmc.items()}}
    assert {name: metrics[f"{name}_reranked"] for name in expected} == expected
    assert set(metrics) == set(plain) | {f"{name}_reranked" for name in expected}


# ---- other protocols


def renamed(index: Index, **names: str) -> Index:
    """The set with other names of its splits."""
    return replace(index, splits=tuple(names.get(name, name) for name in index.splits))


def test_a_test_split_is_evaluated_with_random_galleries(market: Index) -> None:
    """By loops: one image of each identity, whatever its camera, against all others."""
    index = renamed(market, query="other", gallery="test")
    result = evaluate_set(FewPixels(), index, SIZE, CACHE, {}, CPU)
    images = embedded(index, "test", FewPixels())
    features, pids = normalize(images.features), images.pids.tolist()
    figures = []
    for draw in range(10):
        random = generator(0, "random gallery", draw)
        members = [[i for i, pid in enumerate(pids) if pid == identity] for identity in sorted(set(pids))]
        gallery = [own[int(place)] for own, place in zip(members, random.integers([len(own) for own in members]), strict=True)]
        known = [g for g in gallery if pids[g] != -1]
        queries = [i for i in range(len(pids)) if i not in gallery and pids[i] != -1]
        ranks = [sorted(known, key=lambda g, q=q: -float(features[q] @ features[g])).index(
            next(g for g in known if pids[g] == pids[q])) + 1 for q in queries]  # fmt: skip
        figures.append([np.mean([1 / r for r in ranks]), *(np.mean([r <= k for r in ranks]) for k in (1, 5, 10))])
    expected = np.mean(figures, axis=0)
    np.testing.assert_allclose([result.metrics[name] for name in ("mAP", "rank1", "rank5", "rank10")], expected, atol=1e-12)
    assert result.metrics["mINP"] == pytest.approx(result.metrics["mAP"])  # of one match both are 1 / rank
    assert np.std([row[0] for row in figures]) > 0
    assert (result.metrics["draws"], result.metrics["gallery"]) == (10, 7)
    assert result.metrics["queries"] + result.metrics["skipped_queries"] == len(pids) - 7
    assert evaluate_set(FewPixels(), index, SIZE, CACHE, {}, CPU) == result
    reranked = evaluate_set(FewPixels(), index, SIZE, CACHE, {}, CPU, EvaluationConfig(rerank=True)).metrics
    assert reranked["mAP"] == result.metrics["mAP"]
    assert 0 < reranked["mAP_reranked"] <= 1


def test_every_image_of_an_identity_may_be_drawn(market: Index) -> None:
    images = embedded(market, "gallery")
    chosen = [set(gallery.positions.tolist()) for _, gallery in random_galleries(images)]
    assert len(chosen) == 10
    for query, gallery in random_galleries(images):
        assert sorted([*query.positions.tolist(), *gallery.positions.tolist()]) == images.positions.tolist()
        assert sorted(gallery.pids.tolist()) == sorted(set(images.pids.tolist()))
    assert len(set.union(*chosen)) > 20  # of 31


def with_pairs(index: Index, **names: str) -> Index:
    """The set with other names of its splits; one is named pairs, and has an order that mixes the identities."""
    index = renamed(index, **names)
    split = split_of(index, "pairs")
    samples, keys = split.samples(np.arange(len(split))), list(index.keys)
    order = np.random.default_rng(5).permutation(len(samples))
    for position, place in enumerate(order):
        keys[samples[place]] = f"{keys[samples[place]].split('/')[0]}/{position:06d}"
    index.__dict__["keys"] = keys  # as read from the set
    return index


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A set of 40 pairs of four people, and people to train on."""
    folder = tmp_path_factory.mktemp("faces")
    for pid in range(900, 904):
        for number in range(20):
            path = folder / "images" / "bounding_box_test" / f"{pid:04d}_c1s1_{number:06d}_00.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture(pid, number)[:, :, ::-1])
    for name in ("bounding_box_train/0002_c1s1_000001_00.png", "query/0900_c2s1_000001_00.png"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / name), picture(2, 0)[:, :, ::-1])
    return pack("market1501", folder / "images", str(folder / "shards"))


def expected_pairs(index: Index, left_out: tuple[int, ...] = ()) -> tuple[list[float], list[bool]]:
    """Cosine of each pair, and whether it is the same, by its keys. ``left_out``: positions that cannot be read."""
    images = embedded(index, "pairs", FewPixels())
    samples = split_of(index, "pairs").samples(images.positions.numpy())
    by_position = {int(index.keys[s].split("/")[1]): row for row, s in enumerate(samples.tolist())}
    features, cosines, same = normalize(images.features.double()), [], []
    for first in range(0, len(index.keys), 2):
        if first in by_position and first + 1 in by_position and not {first, first + 1} & set(left_out):
            a, b = by_position[first], by_position[first + 1]
            cosines.append(float(features[a] @ features[b]))
            same.append(bool(images.pids[a] == images.pids[b]))
    return cosines, same


def test_a_split_of_pairs_is_verified(faces: Index) -> None:
    index = with_pairs(faces, query="other", gallery="pairs")
    assert can_evaluate(index)
    assert main_figure([index]) == "pairs_accuracy"
    result = evaluate_set(FewPixels(), index, SIZE, CACHE, {}, CPU)
    cosines, same = expected_pairs(index)
    assert len(cosines) == 40
    assert result.metrics["pairs"] == 40
    assert result.metrics["pairs_AUC"] == pytest.approx(roc_auc_score(same, cosines))
    assert 0.5 < result.metrics["pairs_accuracy"] <= 1
    assert result.metrics["pairs_TAR@1e-1"] <= 1
    said = np.array(cosines) >= result.metrics["threshold"]
    assert np.mean(said == same) >= result.metrics["pairs_accuracy"] - 0.05
    assert "mAP" not in result.metrics
    assert result.shown == []
    flipped = evaluate_set(FewPixels(), index, SIZE, CACHE, {}, CPU, EvaluationConfig(flip=True)).metrics
    assert flipped["pairs_AUC"] != result.metrics["pairs_AUC"]


def test_a_pair_with_an_unreadable_image_is_left_out(faces: Index, tmp_path: Path) -> None:
    index = with_pairs(corrupted(faces, tmp_path, "gallery", slice(0, 3)), query="other", gallery="pairs")
    result = evaluate_set(FewPixels(), index, SIZE, CACHE, {}, CPU)
    cosines, same = expected_pairs(index)
    assert len(cosines) < 40
    assert result.metrics["pairs"] == len(cosines)
    assert result.metrics["pairs_AUC"] == pytest.approx(roc_auc_score(same, cosines))
    assert len(result.bad) == 3


def test_too_few_pairs(market: Index) -> None:
    with pytest.raises(InputError, match="10 folds need some of both kinds"):
        evaluate_set(FewPixels(), with_pairs(market, query="pairs", gallery="other"), SIZE, CACHE, {}, CPU)
