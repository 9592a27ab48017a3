"""Clusters of boxes, their members, and the patches around them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from trainers.tasks.detection.regions import (
    PATCH,
    Discriminator,
    Generator,
    RegionEstimator,
    cluster_centres,
    crop_patches,
    crop_side,
    padded_centres,
    pick_members,
)


def blobs(seed: int, images: int = 3) -> torch.Tensor:
    """Four far-apart heaps of 30 points in each image [images, 120, 2]."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.tensor([[0.0, 0], [100, 0], [0, 100], [100, 100]]).repeat_interleave(30, dim=0)
    return middles + torch.randn(images, 120, 2, generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_those_of_another_implementation(seed: int) -> None:
    points = blobs(seed)
    centres, assigned = cluster_centres(points, torch.ones(3, 120, dtype=torch.bool), 4, seed)
    for image in range(3):
        theirs = KMeans(4, n_init=5, random_state=0).fit(points[image].numpy())
        mine = centres[image].numpy()[np.lexsort(centres[image].numpy().round(-1).T)]
        other = theirs.cluster_centers_[np.lexsort(theirs.cluster_centers_.round(-1).T)]
        np.testing.assert_allclose(mine, other, atol=1e-3)
        labels = assigned[image].numpy()
        assert all(len(set(labels[heap * 30 : heap * 30 + 30])) == 1 for heap in range(4))


def test_clusters_depend_on_the_seed_alone_and_not_on_padding() -> None:
    points = torch.rand(2, 40, 2, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 40, dtype=torch.bool)
    valid[1, 25:] = False
    first, again = (cluster_centres(points, valid, 4, 5)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, cluster_centres(points, valid, 4, 6)[0])
    elsewhere = points.clone()
    elsewhere[1, 25:] = 1e6
    assert torch.equal(first, cluster_centres(elsewhere, valid, 4, 5)[0])


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
def test_every_cluster_gets_its_number_of_real_regions(points: int, clusters: int, size: int, kinds: int, seed: int) -> None:
    """Also with fewer distinct points than clusters, with one point, with clusters larger and smaller than m."""
    generator = torch.Generator().manual_seed(seed)
    heaps = torch.randint(kinds, (2, points + 3, 2), generator=generator).float() * 10
    valid = torch.ones(2, points + 3, dtype=torch.bool)
    valid[0, points:] = False
    centres, assigned = cluster_centres(heaps, valid, clusters, seed)
    picked = pick_members(assigned, valid, clusters, size, seed)
    assert picked.shape == (2, clusters, size)
    assert torch.isfinite(centres).all()
    assert valid.gather(1, picked.flatten(1)).all()
    for image in range(2):
        for cluster in range(clusters):
            own = {i for i in range(points + 3) if valid[image, i] and assigned[image, i] == cluster}
            members = picked[image, cluster].tolist()
            if own:
                assert set(members) <= own
                assert len(set(members)) == min(len(own), size)  # again only when there are too few
    distances = torch.cdist(heaps, centres)
    nearest = distances.gather(2, assigned[..., None])[..., 0]
    assert torch.allclose(nearest[valid], distances.amin(dim=2)[valid])


def test_members_of_a_large_cluster_are_a_random_part() -> None:
    """Not "the first m", which would favour the best regions."""
    assigned, valid = torch.zeros(1, 100, dtype=torch.long), torch.ones(1, 100, dtype=torch.bool)
    picked = torch.cat([pick_members(assigned, valid, 1, 10, seed).flatten() for seed in range(200)])
    counts = torch.bincount(picked, minlength=100).float()
    assert counts.min() > 5  # 20 expected of each
    assert counts.max() < 45


def test_centres_of_boxes_are_padded() -> None:
    points, valid = padded_centres([torch.tensor([[0.0, 0, 2, 4]]), torch.tensor([[1.0, 1, 3, 3], [0, 0, 10, 10]])])
    assert points.tolist() == [[[1, 2], [0, 0]], [[2, 2], [5, 5]]]
    assert valid.tolist() == [[True, False], [True, True]]


def test_the_crops_are_the_papers() -> None:
    assert [crop_side(600, 1200, k) for k in (2, 4, 8)] == pytest.approx([512, 256, 128])
    assert crop_side(40, 30, 1) == 30  # never more than the image


def test_patches_show_what_lies_there_and_stay_inside() -> None:
    """A picture whose red is x and whose green is y: a patch's mean says where it was cropped."""
    height, width = 100, 200
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = torch.stack([columns, rows, torch.zeros_like(rows)]).to(torch.uint8)[None]
    centres = torch.tensor([[[100.0, 50.0], [0.0, 0.0], [199.0, 99.0]]])
    patches = crop_patches(images, centres, 40)
    assert patches.shape == (1, 3, 3, PATCH, PATCH)
    means = (patches[0, :, :2].mean(dim=(2, 3)) + 1) * 127.5
    torch.testing.assert_close(means, torch.tensor([[99.5, 49.5], [19.5, 19.5], [179.5, 79.5]]), atol=0.6, rtol=0)
    assert (patches[0, 0, 0].diff(dim=1) > 0).all()  # not mirrored
    tiny = torch.zeros(1, 3, 8, 12, dtype=torch.uint8)  # smaller than a patch
    assert crop_patches(tiny, torch.tensor([[[4.0, 4.0]]]), crop_side(8, 12, 1)).shape == (1, 1, 3, PATCH, PATCH)


def test_a_generator_does_not_mind_the_order_of_regions() -> None:
    torch.manual_seed(0)
    clusters = torch.randn(2, 4, 8, 16)
    generate, discriminate, estimate = Generator(16), Discriminator(), RegionEstimator(16)
    patches = generate(clusters)
    assert patches.shape == (2, 4, 3, PATCH, PATCH)
    assert patches.abs().max() <= 1
    torch.testing.assert_close(generate(clusters[:, :, torch.randperm(8)]), patches)
    assert discriminate(patches).shape == (2, 4)
    assert estimate(clusters).shape == (2, 4, 8)
    torch.testing.assert_close(estimate.weights(clusters), estimate(clusters).sigmoid().mean(dim=2).detach())
    same = torch.randn(1, 1, 1, 16).expand(1, 1, 8, 16).clone().requires_grad_()
    generate(same).sum().backward()
    assert torch.isfinite(same.grad).all()  # regions without any spread  # type: ignore[arg-type]
