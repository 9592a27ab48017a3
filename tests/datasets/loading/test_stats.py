"""Counters: samples, skipped samples, draws by difficulty, and the stores' counts over all loader processes."""

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.difficulty import Difficulty
from datasets.loading.stats import LoaderStats
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import SamplerConfig

N = 40


def batch(step: int, labels: list[int], version: int = 0, bad: int = 0, gets: int = 0) -> dict[str, Any]:
    storage = {"gets": gets, "bytes": 10 * gets, "hits": 0, "retries": 1}
    return {"step": step, "labels": torch.tensor(labels), "version": version, "bad": ["x"] * bad, "storage": storage}


def test_stores_counts_add_up_over_loader_processes() -> None:
    tally = LoaderStats(2)
    for step, gets in enumerate((3, 5, 6, 9)):  # processes 0 and 1 in turn, each counting from its start
        tally.count(batch(step, [1, 2], bad=step % 2, gets=gets))
    wanted = {"samples": 8, "skipped": 2, "gets": 15, "bytes": 150, "hits": 0, "retries": 2}
    assert {name: tally.counts[name] for name in wanted} == wanted
    assert not tally.draws.any()  # there is no version


@settings(max_examples=30)
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=60), st.integers(0, 2**32 - 1))
def test_draws_fall_into_the_tenth_of_their_identity(labels: list[int], seed: int) -> None:
    cosine = np.random.default_rng(seed).permutation(N).astype(np.float32)  # the identities' ranks by difficulty
    table = DifficultyTable(N, SamplerConfig())
    table.put(Difficulty(1, cosine, np.zeros((N, 1), np.int64)))
    tally = LoaderStats(1, table)
    tally.count(batch(0, labels, version=1))
    wanted = np.bincount([int(cosine[label]) * 10 // N for label in labels], minlength=10)
    assert tally.draws.tolist() == wanted.tolist()
    tally.count(batch(1, labels))  # drawn evenly: no version was in force
    assert tally.draws.sum() == len(labels)
