"""Other loaders draw by identity as ours do: identities by their difficulty, K different samples of each; ratios are by turns."""

import numpy as np
import pytest

from benchmarks.loading import Loading, make_images, peers_of, summary
from benchmarks.peers import Job, cosines
from benchmarks.peers_by_identity import Draw, Reading
from datasets.loading.store import read_samples
from datasets.pack import pack
from datasets.shards.index import split_of


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Identities of 5 images and of 3; some are held out."""
    folder = tmp_path_factory.mktemp("peers")
    make_images(Loading(identities=8, each=5, size=(16, 8)), folder / "images" / "train")
    for path in (folder / "images" / "train").glob("*[02468]/00[34].jpg"):
        path.unlink()
    index = pack("folders", folder / "images", f"{folder}/shards")
    return Job(index, [], str(folder), folder, workers=1, batch=6, each=3)


def test_a_draw_takes_identities_by_difficulty_and_k_different_samples_of_each(job: Job) -> None:
    split = split_of(job.index, "train")
    label_of = dict(
        zip(split.samples(np.arange(len(split))).tolist(), split.labels_of(np.arange(len(split))).tolist(), strict=True)
    )
    assert set(split.counts.tolist()) == {3, 5}
    order = Draw(job).order()[:90_000]
    assert set(order) == set(label_of)
    assert all(len(set(order[place : place + 3])) == 3 for place in range(0, 3000, 3))
    labels = np.array([label_of[sample] for sample in order]).reshape(-1, 3)
    assert (labels == labels[:, :1]).all()
    cosine = cosines(len(split.counts)).astype(np.float64)
    assert np.bincount(labels[:, 0]) / len(labels) == pytest.approx(cosine / cosine.sum(), abs=0.01)


def test_spdl_reads_whole_samples_of_the_drawn_identities(job: Job) -> None:
    split = split_of(job.index, "train")
    whole = [read_samples(job.index, split.samples(np.arange(*split.identity_starts[label : label + 2]))) for label in (0, 1)]
    images = Reading(job, rank=0).read([1, 0])
    assert len(set(images[:3])) == len(set(images[3:])) == 3
    assert set(images[:3]) <= set(whole[1])
    assert set(images[3:]) <= set(whole[0])


def test_ratios_to_ours_are_of_one_turn_and_of_the_same_cache() -> None:
    rates = {"hardshard proportional": (10, 40), "hardshard proportional, no cache": (2, 4), "SPDL by weights, no cache": (1, 8)}
    found = summary({name: [{"rate": rate, "cpu_us": 1.0} for rate in each] for name, each in rates.items()})
    peer = found["SPDL by weights, no cache"]
    assert peer["to_ours"] == pytest.approx({"median": 0.15, "least": 0.1, "most": 0.2})
    assert peer["to_alike"] == pytest.approx({"median": 1.25, "least": 0.5, "most": 2.0})


def test_a_folder_has_no_loaders_that_read_from_s3() -> None:
    local = {peer.name for peer in peers_of(Loading(by_identity=True))}
    assert local == {"webdataset in order", "LitData by key, local", "SPDL by weights, local"}
    assert len(peers_of(Loading(by_identity=True, s3=True))) == 7
