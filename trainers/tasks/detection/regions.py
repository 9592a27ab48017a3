"""Region alignment of two domains: clusters of regions, patches around them, and the adversarial networks.

Selective cross-domain alignment (SCDA; Zhu et al., "Adapting Object Detectors via Selective Cross-Domain Alignment", CVPR 2019).
Everything is in torch, on the regions' device, so that gradients of the adversarial loss reach the detector.

B images [B, 3, H, W]; N regions of each, padded (``valid`` [B, N]: which are real); K clusters of m regions each; F features; P
the side of a patch in pixels.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

PATCH = 32  # P
ITERATIONS = 10
PAPER_SIDE = 600  # short side of the paper's images in pixels; its crops have 1024 / K pixels


def cluster_centres(points: Tensor, valid: Tensor, clusters: int, seed: int) -> tuple[Tensor, Tensor]:
    """k-means of each image's points [B, N, 2] -> centres [B, K, 2] and the cluster of each point [B, N].

    The first centres are drawn by k-means++ (Arthur and Vassilvitskii, SODA 2007) from ``seed``; Lloyd's iterations follow. With
    fewer distinct points than clusters some clusters stay empty, and their centres are points. An image must have a valid point.
    """
    generator = torch.Generator(points.device).manual_seed(seed)
    points = points.detach()
    weights = valid.to(points.dtype)
    rows = torch.arange(len(points), device=points.device)
    centres = points[rows, torch.multinomial(weights, 1, generator=generator)[:, 0]][:, None]
    for _ in range(clusters - 1):
        near = torch.cdist(points, centres).square().amin(dim=2) * weights
        draw = torch.multinomial(near + weights * 1e-12, 1, generator=generator)[:, 0]
        centres = torch.cat([centres, points[rows, draw][:, None]], dim=1)
    for _ in range(ITERATIONS):
        members = _members(_nearest(points, centres), valid, clusters).to(points.dtype)  # [B, K, N]
        counts = members.sum(dim=2, keepdim=True)
        centres = torch.where(counts > 0, members @ points / counts.clamp(min=1), centres)
    return centres, _nearest(points, centres)


def pick_members(assigned: Tensor, valid: Tensor, clusters: int, size: int, seed: int) -> Tensor:
    """Indices of exactly m = ``size`` random regions of each cluster [B, K, m]; with fewer regions than m some are repeated.

    ``assigned`` [B, N] is the cluster of each region. An empty cluster gets regions of the whole image.
    """
    generator = torch.Generator(assigned.device).manual_seed(seed)
    members = _members(assigned, valid, clusters)
    members = torch.where(members.any(dim=2, keepdim=True), members, valid[:, None])
    order = torch.rand(members.shape, generator=generator, device=assigned.device).masked_fill(~members, 2.0).argsort(dim=2)
    counts = members.sum(dim=2, keepdim=True)
    again = (torch.rand((*members.shape[:2], size), generator=generator, device=assigned.device) * counts).long()
    place = torch.arange(size, device=assigned.device).expand_as(again)
    return order.gather(2, torch.where(place < counts, place, torch.minimum(again, counts - 1)))


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(points, centres).argmin(dim=2)


def _members(assigned: Tensor, valid: Tensor, clusters: int) -> Tensor:
    numbers = torch.arange(clusters, device=assigned.device)[None, :, None]
    return (assigned[:, None] == numbers) & valid[:, None]


def padded_centres(boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Centres of each image's boxes [R_i, 4], padded to [B, N, 2], and which of them are real [B, N]."""
    centres = [(own[:, :2] + own[:, 2:]) / 2 for own in boxes]
    padded = nn.utils.rnn.pad_sequence(centres, batch_first=True)
    counts = torch.tensor([len(own) for own in boxes], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device)[None] < counts[:, None]


def crop_side(height: int, width: int, clusters: int) -> float:
    """Side in pixels of the square around a cluster's centre: the paper's fraction of the short side (512, 256, 128 of 600 pixels
    for K = 2, 4, 8), at most the short side."""
    return min(height, width) * min(1.0, 1024 / (PAPER_SIDE * clusters))


def crop_patches(images: Tensor, centres: Tensor, side: float) -> Tensor:
    """Crop a square of ``side`` pixels around each centre [B, K, 2], moved to lie inside the image -> [B, K, 3, P, P] in -1..1.

    ``images``: uint8, or float in 0..255.
    """
    height, width = images.shape[2:]
    most = centres.new_tensor([width - side, height - side]).clamp(min=0)
    corner = (centres - side / 2).clamp(min=0).minimum(most)
    squares = list(torch.cat([corner, corner + side], dim=2).float())
    patches = roi_align(images.float() / 127.5 - 1, squares, PATCH, sampling_ratio=2, aligned=True)
    return patches.view(*centres.shape[:2], 3, PATCH, PATCH)  # type: ignore[no-any-return]


class Generator(nn.Module):
    """Features of clusters [..., m, F] -> one patch for each [..., 3, P, P] in -1..1.

    The input is the mean and the standard deviation of a cluster's features, so the order of its regions does not matter. (The
    paper's public code uses the m regions as channels.)
    """

    def __init__(self, features: int, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Linear(2 * features, width * 16)
        layers: list[nn.Module] = []
        for inputs, outputs in ((width, width // 2), (width // 2, width // 4), (width // 4, 3)):  # 4 -> 8 -> 16 -> 32
            layers += [nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, clusters: Tensor) -> Tensor:
        flat = clusters.flatten(0, -3)
        described = torch.cat([flat.mean(dim=1), (flat.var(dim=1, correction=0) + 1e-6).sqrt()], dim=1)
        patches: Tensor = self.layers(self.first(described).unflatten(1, (-1, 4, 4)))
        return patches.view(*clusters.shape[:-2], 3, PATCH, PATCH)


class Discriminator(nn.Module):
    """Patches [..., 3, P, P] -> logits [...]: above 0 for a real patch of the domain."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width)):  # 32 -> 16 -> 8 -> 4
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, 1))

    def forward(self, patches: Tensor) -> Tensor:
        logits: Tensor = self.layers(patches.flatten(0, -4))
        return logits.view(patches.shape[:-3])


class RegionEstimator(nn.Module):
    """D_w: features of regions [..., F] -> logits [...]: above 0 for a region that looks like the source."""

    def __init__(self, features: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, regions: Tensor) -> Tensor:
        logits: Tensor = self.layers(regions)
        return logits[..., 0]

    @torch.no_grad()
    def weights(self, clusters: Tensor) -> Tensor:
        """The weights w_k [...] of clusters [..., m, F]: the mean over a cluster's regions of the probability of the source."""
        return torch.sigmoid(self(clusters)).mean(dim=-1)
