"""A run trains on a relabelled index as on any set."""

from pathlib import Path

import numpy as np
import pytest
from clipdata import npz_folder
from jobs import LOCAL, STEPS, reid_run

from datasets.errors import InputError
from datasets.example_set import ARCHIVE, OPTIONS
from datasets.pack import pack
from datasets.pack_videos import VideoOptions, pack_videos
from datasets.relabel import relabel, write_relabelled
from datasets.shards.index import split_of
from trainers.engine.run import Run


def test_a_run_on_a_bucket_with_its_new_index_in_a_folder(s3_url: str, tmp_path: Path) -> None:
    """Joined, divided and new identities in one csv."""
    set_url = f"{s3_url}/set"
    index = pack("omniglot", ARCHIVE, set_url, OPTIONS)
    train = split_of(index, "train")
    names = train.names
    keys = [index.keys[sample] for sample in train.samples(np.arange(train.counts[0]))]
    lines = [
        "accept,kind,probability,identity,other,keys",
        f"yes,mixture,1,{names[0]},,{' '.join(keys[5:9])}",
        f"yes,wrong,1,{names[0]},{names[1]},{keys[0]}",
        f"yes,wrong,1,{names[0]},,{keys[1]}",
        f"yes,same,1,{names[2]},{names[3]},",
    ]
    (tmp_path / "decisions.csv").write_text("\n".join(lines))
    relabel(set_url, str(tmp_path / "decisions.csv"), str(tmp_path / "new"))
    reid_run(tmp_path, data=(str(tmp_path / "new"),), cluster=LOCAL, name="run", runs=str(tmp_path / "runs")).run()
    metrics = Run(str(tmp_path / "runs"), "run").read_json("metrics.json")
    assert metrics["step"] == STEPS
    assert metrics["score"] > 0


def test_clips_are_refused(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "npz", [("right",), ("left",), ("up",)])
    index = pack_videos("frames_npz", folder, str(tmp_path / "set"), VideoOptions(test="round=2"))
    with pytest.raises(InputError, match="its identities are video clips"):
        write_relabelled(index, ["a"] * len(index), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
