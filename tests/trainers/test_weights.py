"""Weights from files, S3 and the web: found in any nesting, under any prefix, in order; refused where they do not fit."""

import argparse
import math
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from datasets.errors import InputError, UnreachableError
from datasets.object_storage import open_objects
from trainers.tasks.attributes.model import FaceModelConfig
from trainers.tasks.backbones import build_backbone, build_level_backbone, try_model
from trainers.tasks.detection.detector import Detector, DetectorConfig
from trainers.tasks.reid.model import Embedder, ModelConfig
from trainers.tasks.video.sequence_model import SequenceModelConfig
from trainers.tasks.weights import fetched, full_path, grid_of, load_weights, matched, report_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's folder of fetched files: a new one for each test."""
    monkeypatch.setenv("HARDSHARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def trained(seed: int = 7) -> dict[str, Tensor]:
    """A state of ResNet-18 with a classifier, as if trained: also its statistics differ from a new model's."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = models.resnet18(num_classes=5).state_dict()
    return {n: torch.rand_like(t) + 0.5 if "running" in n else t + 3 if t.dtype == torch.int64 else t for n, t in state.items()}


def put(path: Path, content: Any) -> str:
    """The content as a file, in the format that the name's ending says."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


def is_of(model: nn.Module, state: dict[str, Tensor], prefix: str = "") -> bool:
    """Whether all tensors of a backbone are those of the state."""
    return all(torch.equal(tensor, state[prefix + name].to(tensor.dtype)) for name, tensor in model.state_dict().items())


def refusal(weights: str, backbone: str = "resnet18") -> str:
    """The one line by which a file is refused."""
    with pytest.raises(InputError) as error:
        build_backbone(backbone, weights)
    assert "\n" not in str(error.value)
    return str(error.value)


NESTED: dict[str, Any] = {
    "as it is": lambda s: s,
    "in a checkpoint": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
    "two levels deep": lambda s: {"run": {"best": {"weights": s}}, "names": ["a", "b"]},
    "of two models": lambda s: {"student": {n: torch.zeros_like(t) for n, t in s.items()}, "teacher": s},
    "of DDP": lambda s: {"model": {f"module.{n}": t for n, t in s.items()}},
    "of a detector": lambda s: {f"backbone.body.{n}": t for n, t in s.items()} | {"rpn.head.weight": torch.zeros(3, 3)},
    "beside another encoder": lambda s: (
        {f"module.encoder_q.{n}": t for n, t in s.items()} | {f"module.encoder_k.{n}": t * 0 for n, t in s.items()}
    ),
    "in half precision": lambda s: {n: t.half() if t.is_floating_point() else t for n, t in s.items()},
    "renamed, in order": lambda s: {f"layer_{number}.{n.rpartition('.')[2]}": t for number, (n, t) in enumerate(s.items())},
    "without counters": lambda s: {f"base.{n}": t for n, t in s.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("nesting", NESTED)
def test_a_backbone_is_found_in_every_nesting(nesting: str, tmp_path: Path) -> None:
    state = trained()
    content = NESTED[nesting](state)
    model, features = build_backbone("resnet18", put(tmp_path / "weights.pth", content))
    assert features == 512
    if nesting == "in half precision":
        state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    wanted = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert len(wanted) == 100  # of 20 convolutions and 20 batch norms
    assert all(torch.equal(tensor, state[name].to(tensor.dtype)) for name, tensor in wanted.items())
    assert "weights: 100 of 100 tensors" in report_of(model)
    assert "not in the file" not in report_of(model)


def test_the_report_names_how_and_what_was_not_used(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in trained().items()}
    del state["module.layer4.1.bn2.bias"]
    path = put(tmp_path / "w.pt", {"state_dict": state})
    model, _ = build_backbone("resnet18", path)
    assert report_of(model) == (
        f"weights: 99 of 100 tensors, named state_dict.module.*, from {path}; not in the file: layer4.1.bn2.bias; "
        "not used: module.fc.weight, module.fc.bias"
    )
    assert report_of(build_backbone("resnet18")[0]) == ""


def test_the_driver_prints_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig("resnet18", weights=put(tmp_path / "w.safetensors", trained()))
    try_model(config.backbone, config.weights, lambda: Embedder(config), torch.zeros(2, 3, 32, 32))
    assert capsys.readouterr().out.startswith("weights: 100 of 100 tensors, by name, from ")


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    state = trained()
    Path(put(tmp_path / "w.safetensors", state)).rename(tmp_path / "w.pt")
    assert is_of(build_backbone("resnet18", str(tmp_path / "w.pt"))[0], state)


def test_older_files_of_pytorch_are_read(tmp_path: Path) -> None:
    state = trained()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert is_of(build_backbone("resnet18", str(tmp_path / "old.pth"))[0], state)


def test_a_hardshard_run_gives_its_backbone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    embedder = Embedder(ModelConfig(embedding=16))
    path = put(tmp_path / "model.pt", {"embedder": embedder.state_dict(), "config": "{}", "size": [32, 32]})
    model, _ = build_backbone("small", path)
    assert is_of(model, embedder.state_dict(), "backbone.")


def test_levels_and_detectors_take_files(tmp_path: Path) -> None:
    state = trained()
    path = put(tmp_path / "w.pt", state)
    levels, _, _ = build_level_backbone("resnet18", path)
    assert is_of(levels, state)
    assert "100 of 100" in report_of(levels)
    detector: Any = Detector(DetectorConfig("resnet18", path, regions=16), 2)
    assert is_of(detector.backbone.body, state)
    assert "100 of 100" in report_of(detector)
    again = Detector(DetectorConfig("resnet18", str(tmp_path / "gone.pt"), regions=16), 2, fetch=False)
    again.load_state_dict(detector.state_dict())


# Refused


def test_too_few_tensors_are_refused(tmp_path: Path) -> None:
    state = trained()
    names = [n for n in state if not n.endswith("num_batches_tracked") and not n.startswith("fc")]
    half, fewer = ({name: state[name] for name in names[:count]} for count in (50, 49))
    assert "50 of 100" in report_of(build_backbone("resnet18", put(tmp_path / "half.pt", half))[0])
    path = put(tmp_path / "fewer.pt", fewer)
    assert refusal(path).startswith(f"only 49 of the backbone's 100 tensors are in the file: {path}; is it of this backbone? It")
    assert "only 0 of" in refusal(put(tmp_path / "none.pt", {"epoch": 3}))
    mobile = put(tmp_path / "other.pt", models.mobilenet_v3_small().state_dict())
    assert "of this backbone? It lacks conv1.weight, bn1.weight, bn1.bias and 97 more, and has features.0.0.weight" in refusal(
        mobile
    )


def test_equal_shapes_in_another_order_are_not_taken(tmp_path: Path) -> None:
    state = {f"renamed.{number}": tensor for number, tensor in enumerate(reversed(trained().values()))}
    assert "only 0 of" in refusal(put(tmp_path / "w.pt", state))


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_no_object_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    assert "nothing is unpickled" in refusal(put(tmp_path / "bad.pt", {"state_dict": trained(), "args": Malicious(mark)}))
    assert not mark.exists()
    line = refusal(put(tmp_path / "args.pt", {"model": trained(), "args": argparse.Namespace(lr=1)}))
    assert "the file holds a argparse.Namespace, and nothing is unpickled" in line
    assert "save the model's state_dict() alone" in line


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut", b"\xff" * 8 + b'{"a"'])
def test_a_damaged_file_is_refused_in_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    assert str(tmp_path / "w.pt") in refusal(str(tmp_path / "w.pt"))


def test_a_file_cut_in_the_middle_is_refused(tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        path = Path(put(tmp_path / name, trained()))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert str(path) in refusal(str(path))


def test_what_is_no_dict_or_not_there_is_refused(tmp_path: Path) -> None:
    assert "holds a Tensor, not a dict" in refusal(put(tmp_path / "t.pt", torch.zeros(3)))
    assert f"no such file of weights: {tmp_path / 'gone.pt'}" in refusal(str(tmp_path / "gone.pt"))
    assert "cannot be read" in refusal(str(tmp_path))


# Names


def test_configs_keep_full_paths_and_open_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for config in (ModelConfig, FaceModelConfig, SequenceModelConfig, DetectorConfig):
        assert config(weights="some/w.pt").weights == str(tmp_path / "some" / "w.pt")
        assert config(weights="s3://bucket/w.pt").weights == "s3://bucket/w.pt"
        assert config(backbone="mine:net", weights="some/w.pt").weights == "some/w.pt"  # the user's own matter
        assert config(backbone="resnet18", weights="DEFAULT").weights == "DEFAULT"
    assert full_path("~/w.pt") == str(Path("~/w.pt").expanduser())


@pytest.mark.parametrize("url", ["gs://bucket/w.pt", "file:///w.pt", "s3://bucket", "s3://bucket/", "https://host"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="give a path, s3://bucket/key or https://host/file"):
        ModelConfig(weights=url)


def test_a_name_that_is_neither_known_nor_a_file() -> None:
    for config in (ModelConfig, DetectorConfig):
        with pytest.raises(InputError, match="no weights of this name: V3; use one of IMAGENET1K_V1, DEFAULT; or name a file"):
            config(backbone="resnet18", weights="V3")


# Positional embeddings


class Tokens(nn.Module):
    """The part of a vision transformer that has positions: one class token, then a grid."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.patch_embed = nn.Identity()
        self.patch_embed.grid_size = (height, width)  # type: ignore[assignment]
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + height * width, 2))


def plane(height: int, width: int) -> Tensor:
    """Embeddings [1, 1 + h w, 2] that grow evenly to the right and down: centres of cells in 0..1; the class token is -5."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    cells = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(1, -1, 2)
    return torch.cat([torch.full((1, 1, 2), -5.0), cells], dim=1)


@pytest.mark.parametrize(("old", "new"), [((14, 14), (8, 4)), ((14, 14), (16, 8)), ((8, 4), (16, 8)), ((14, 14), (14, 14))])
def test_positional_embeddings_are_resized_to_the_models_grid(old: tuple[int, int], new: tuple[int, int], tmp_path: Path) -> None:
    """An even slope stays one at any size, but for the border, where bicubic interpolation repeats the edge."""
    model = Tokens(*new)
    load_weights(model, put(tmp_path / "w.pt", {"pos_embed": plane(*old)}))
    found, expected = model.pos_embed.detach(), plane(*new)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[:, 0], expected[:, 0])
    inner = [part[:, 1:].reshape(*new, 2)[1:-1, 1:-1] for part in (found, expected)]
    torch.testing.assert_close(inner[0], inner[1], atol=0.025, rtol=0)


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_grid_is_a_square_or_has_the_wanted_ratio(height: int, width: int) -> None:
    found = grid_of(height * width, height / width)
    side = math.isqrt(height * width)
    assert found == ((side, side) if side * side == height * width else (height, width))


def test_embeddings_of_another_width_do_not_fit() -> None:
    model = Tokens(4, 4)
    assert not matched(model, {"pos_embed": torch.zeros(1, 10, 3)}).tensors
    assert not matched(model, {"pos_embed": torch.zeros(1, 1, 2)}).tensors


def test_a_vision_transformer_of_timm_takes_weights_of_another_size(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    source = timm.create_model("test_vit", num_classes=3)  # of 160x160: a grid of 10x10
    path = put(tmp_path / "vit.pt", source.state_dict())
    model, features = build_backbone("timm/test_vit", path, size=(128, 64))
    assert features == 64
    assert model.pos_embed.shape == (1, 1 + 8 * 4, 64)
    own, theirs = model.state_dict(), source.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own if name != "pos_embed")
    assert "not used: head.weight, head.bias" in report_of(model)


# Remote files


def test_weights_in_s3_are_fetched_once_and_again_when_they_change(s3_url: str, home: Path, tmp_path: Path) -> None:
    objects, url = open_objects(s3_url), f"{s3_url}/some/w.pt"
    state = trained()
    objects.put_file("some/w.pt", Path(put(tmp_path / "w.pt", state)))
    assert is_of(build_backbone("resnet18", url)[0], state)
    copies = list((home / "weights").iterdir())
    assert len(copies) == 1
    written = copies[0].stat().st_mtime_ns
    assert is_of(build_backbone("resnet18", url)[0], state)
    assert list((home / "weights").iterdir()) == copies
    assert copies[0].stat().st_mtime_ns == written
    other = trained(8)
    objects.put_file("some/w.pt", Path(put(tmp_path / "w.pt", other)))
    assert is_of(build_backbone("resnet18", url)[0], other)
    assert f"no such file of weights: {s3_url}/some/w; correct the URL" in refusal(f"{s3_url}/some/w")
    assert "no such bucket" in refusal("s3://there-is-none/w.pt")


class Counted(SimpleHTTPRequestHandler):
    """A web server of a folder that counts its answers."""

    asked: Counter[str]

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        if self.path == "/cut":  # an answer that breaks off
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"ten bytes.")
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of the folder ``tmp_path``."""
    Counted.asked = Counter()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Counted, directory=str(tmp_path))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_nodes_workers_download_a_file_once(web: str, tmp_path: Path) -> None:
    state = trained()
    put(tmp_path / "w.pt", state)
    url = f"{web}/w.pt?signature=secret"
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(fetched, [url] * 8))
    assert len(set(paths)) == 1
    assert sum(Counted.asked.values()) == 1
    model, _ = build_backbone("resnet18", url)
    assert is_of(model, state)
    assert f"from {web}/w.pt" in report_of(model)
    assert "secret" not in report_of(model)


def test_a_web_server_that_refuses_or_is_not_there(web: str, home: Path) -> None:
    assert f"the server answers 404 File not found: {web}/gone.pt; correct the URL" in refusal(f"{web}/gone.pt?key=secret")
    assert not list((home / "weights").glob("*"))
    for url in ("http://user:secret@127.0.0.1:9/w.pt", f"{web}/cut", "http://host:port/w.pt"):
        with pytest.raises(UnreachableError, match="cannot be downloaded") as error:
            fetched(url)
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)
    assert not list((home / "weights").glob("*"))


def test_a_home_that_cannot_be_written_is_named(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARDSHARD_HOME", str(tmp_path / "file"))
    assert "the weights cannot be stored" in refusal(f"{web}/w.pt")
