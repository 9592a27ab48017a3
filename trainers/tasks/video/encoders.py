"""Encoders over time: an RNN, causal convolutions (TCN), and attention with convolutions (Conformer), each with a state.

B videos, T frames, F features, H outputs. A causal encoder gives the same outputs for a video in chunks of any length, because it
returns its state after each; ``real`` [B, T] says which frames are not padding at a video's end. One that is not causal takes
whole videos only.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

EncoderKind = Literal["rnn", "tcn", "conformer"]
KERNEL = 3  # frames of a convolution of the TCN; its dilation doubles from layer to layer
NEAR = 7  # frames of the Conformer's convolution
WINDOW = 64  # frames that attention looks back
HEADS = 4


class Encoder(Protocol):
    """What the encoders have in common."""

    outputs: int

    def __call__(self, features: Tensor, real: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Features [B, T, F] after ``state`` (None: at the start) -> outputs [B, T, H], and the state after them."""


class Recurrent(nn.Module):
    """GRU or LSTM."""

    def __init__(self, features: int, hidden: int, layers: int, cell: Literal["gru", "lstm"], *, causal: bool) -> None:
        super().__init__()
        self.outputs, self.causal = hidden * (1 if causal else 2), causal
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.rnn = kind(features, hidden, layers, batch_first=True, bidirectional=not causal)

    def forward(self, features: Tensor, real: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        if real is None or self.causal:
            outputs, state = self.rnn(features, state)
            return outputs, state
        packed = pack_padded_sequence(features, real.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False)
        outputs, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=features.shape[1])
        return outputs, None


class TimeConvolution(nn.Module):
    """A convolution over time [B, T, H] -> [B, T, H] of ``kernel`` frames, causal or centred; the state is its last inputs."""

    def __init__(self, width: int, kernel: int, dilation: int, *, causal: bool, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, dilation=dilation, groups=groups)
        self.reach, self.causal = (kernel - 1) * dilation, causal

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        before = self.reach if self.causal else self.reach // 2
        x = torch.cat([x.new_zeros(x.shape[0], before, x.shape[2]) if past is None else past, x], dim=1)
        last = x[:, x.shape[1] - before :]
        out: Tensor = self.conv(F.pad(x, (0, 0, 0, self.reach - before)).transpose(1, 2)).transpose(1, 2)
        return out, last


class Convolutions(nn.Module):
    """A residual TCN (Bai et al., arXiv 1803.01271) that looks back 2 ** (layers + 1) - 2 frames."""

    def __init__(self, features: int, hidden: int, layers: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.outputs = hidden
        self.enter = nn.Linear(features, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        self.convs = nn.ModuleList(TimeConvolution(hidden, KERNEL, 2**layer, causal=causal) for layer in range(layers))
        self.mixes = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(hidden)

    def forward(self, features: Tensor, real: Tensor | None, state: Sequence[Tensor] | None) -> tuple[Tensor, Any]:
        x, states = self.enter(features), []
        for layer, (norm, conv, mix) in enumerate(zip(self.norms, self.convs, self.mixes, strict=True)):
            out, last = conv(_without_padding(norm(x), real), state[layer] if state else None)
            x = x + self.dropout(mix(F.gelu(out)))
            states.append(last)
        return self.norm(x), tuple(states)


class Attention(nn.Module):
    """Self-attention of each frame to those of the last `WINDOW`, or to all, with rotary positions (Su et al., arXiv 2104.09864).

    The state is the keys and values of the last `WINDOW` frames.
    """

    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, real: Tensor | None, past: Tensor | None) -> tuple[Tensor, Tensor]:
        queries, keys, values = self.project(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, T, D]
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        place = torch.arange(keys.shape[2], device=x.device)
        own = place[keys.shape[2] - queries.shape[2] :]
        away = own[:, None] - place[None, :]
        seen = (away >= 0) & (away < WINDOW) if self.causal else torch.ones_like(away, dtype=torch.bool)
        if real is not None and not self.causal:  # a causal frame never sees the padding at the end
            seen = seen & real[:, None, None, :]
        mixed = F.scaled_dot_product_attention(_rotated(queries, own), _rotated(keys, place), values, attn_mask=seen)
        kept = torch.stack([keys, values])[:, :, :, -(WINDOW - 1) :]
        return self.out(mixed.transpose(1, 2).flatten(2)), kept


class Conformer(nn.Module):
    """Layers of attention, depthwise convolution and a perceptron: a Conformer (Gulati et al., Interspeech 2020) with one
    perceptron a layer instead of two halves, and no batch norm."""

    def __init__(self, features: int, hidden: int, layers: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.outputs = hidden
        self.enter = nn.Linear(features, hidden)
        self.norms = nn.ModuleList(nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3)) for _ in range(layers))
        self.attentions = nn.ModuleList(Attention(hidden, causal=causal) for _ in range(layers))
        self.convs = nn.ModuleList(TimeConvolution(hidden, NEAR, 1, causal=causal, groups=hidden) for _ in range(layers))
        self.mixes = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.wide = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * hidden, hidden))
            for _ in range(layers)
        )
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(hidden)

    def forward(self, features: Tensor, real: Tensor | None, state: Sequence[Tensor] | None) -> tuple[Tensor, Any]:
        x, states = self.enter(features), list[Tensor]()
        layers = zip(self.norms, self.attentions, self.convs, self.mixes, self.wide, strict=True)
        for layer, (norms, attention, conv, mix, wide) in enumerate(layers):
            kept, last = state[2 * layer : 2 * layer + 2] if state else (None, None)
            out, kept = attention(norms[0](x), real, kept)  # type: ignore[index]
            x = x + self.dropout(out)
            out, last = conv(_without_padding(norms[1](x), real), last)  # type: ignore[index]
            x = x + self.dropout(mix(F.gelu(out)))
            x = x + self.dropout(wide(norms[2](x)))  # type: ignore[index]
            states += [kept, last]
        return self.norm(x), tuple(states)


def _without_padding(x: Tensor, real: Tensor | None) -> Tensor:
    """Zeros after a video's end, as a convolution sees them beyond the end of a batch."""
    return x if real is None else x * real[:, :, None]


def _rotated(x: Tensor, place: Tensor) -> Tensor:
    """Rotate pairs of features [.., T, D] by angles that grow with ``place`` [T]: products depend on distances alone."""
    half = x.shape[-1] // 2
    angles = place[:, None] * 0.01 ** (torch.arange(half, device=x.device) / half)  # from 1 to nearly 1/100 radian a frame
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
