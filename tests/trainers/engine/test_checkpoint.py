"""Checkpoints: what comes back is what was stored, and nothing in a file is ever run."""

import pickle
from pathlib import Path

import pytest
import torch

from datasets.errors import InputError
from trainers.engine.checkpoint import read_state, write_state


@pytest.fixture
def state() -> dict[str, object]:
    task = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimiser = torch.optim.AdamW(task.parameters())
    task(torch.randn(4, 3)).sum().backward()
    optimiser.step()
    journal = {"step": 7, "records": [{"step": 1, "loss": 0.5}], "text": "ä", "none": None}
    versions = [[1, torch.rand(5), torch.arange(5)]]
    return {"task": task.state_dict(), "optimiser": optimiser.state_dict(), "journal": journal, "versions": versions}


def test_round_trip(tmp_path: Path, state: dict[str, object]) -> None:
    write_state(tmp_path / "state.pt", state)
    found = read_state(tmp_path / "state.pt")
    assert found["journal"] == state["journal"]
    torch.testing.assert_close(found["task"], state["task"], rtol=0, atol=0)
    torch.testing.assert_close(found["optimiser"], state["optimiser"], rtol=0, atol=0)
    assert torch.equal(found["versions"][0][2], torch.arange(5))


class Code:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_is_refused(tmp_path: Path, how: str) -> None:
    held = {"task": Code(tmp_path / "ran")}
    if how == "torch":
        torch.save(held, tmp_path / "state.pt")
    else:
        (tmp_path / "state.pt").write_bytes(pickle.dumps(held))
    with pytest.raises(InputError) as error:
        read_state(tmp_path / "state.pt", "s3://bucket/run/state.pt")
    assert str(error.value).startswith("the checkpoint cannot be read")
    assert "s3://bucket/run/state.pt" in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_cut_off_anywhere(tmp_path: Path, state: dict[str, object]) -> None:
    write_state(tmp_path / "whole.pt", state)
    data = (tmp_path / "whole.pt").read_bytes()
    for length in [0, 1, 4, 100, len(data) // 3, len(data) // 2, len(data) - 100, len(data) - 1]:
        (tmp_path / "state.pt").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"state\.pt; it is damaged"):
            read_state(tmp_path / "state.pt")


@pytest.mark.parametrize(
    "data", [b"hello", b"{}", b"\x80\x02.", b"\x80\x04K\x01.", b"(((", b"cos\nsystem\n.", bytes(100), b"PK\x03\x04" + bytes(50)]
)
def test_other_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        read_state(tmp_path / "state.pt")


def test_random_bytes(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    for length in range(1, 300, 3):
        (tmp_path / "state.pt").write_bytes(bytes(torch.randint(0, 256, (length,), generator=random).tolist()))
        with pytest.raises(InputError):
            read_state(tmp_path / "state.pt")


def test_flipped_bits(tmp_path: Path, state: dict[str, object]) -> None:
    """Read whole or refused: the zip's checksums tell."""
    write_state(tmp_path / "whole.pt", state)
    data = (tmp_path / "whole.pt").read_bytes()
    read = refused = 0
    for place in torch.randint(0, len(data), (200,), generator=torch.Generator().manual_seed(0)).tolist():
        (tmp_path / "state.pt").write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            found = read_state(tmp_path / "state.pt")
        except InputError:
            refused += 1
            continue
        read += 1  # a bit of the padding between the zip's members, which nothing reads
        assert found["journal"] == state["journal"]
        torch.testing.assert_close((found["task"], found["optimiser"]), (state["task"], state["optimiser"]), rtol=0, atol=0)
    assert refused > read
