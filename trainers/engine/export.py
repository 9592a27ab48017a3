"""Writes a trained model as one file that runs without this project: ONNX, or PyTorch's exported program.

Either file takes RGB images uint8 [B, 3, H, W], or clips [B, 3, T, H, W], (all fixed but B) and gives features [B, D], to be
compared by cosine, or whatever else the model gives.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.errors import InputError

TOLERANCE = 1e-4

_Run = Callable[[Tensor], Tensor]
Inputs = Callable[[int, tuple[int, ...]], Tensor]  # (batch, size) -> inputs


def random_images(batch: int, size: tuple[int, ...]) -> Tensor:
    """Images uint8 [batch, 3, *size], the same at every call."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(256, (batch, 3, *size), dtype=torch.uint8, generator=generator)


def exporter(
    path: Path, output: str = "features", inputs: Inputs = random_images
) -> Callable[[nn.Module, tuple[int, ...]], float]:
    """`export_onnx` or `export_program` to ``path``, by the ending of its name; raises InputError for another ending."""
    if path.suffix == ".onnx":
        return partial(export_onnx, path=path, output=output, inputs=inputs)
    if path.suffix == ".pt2":
        return partial(export_program, path=path, inputs=inputs)
    raise InputError("not a format to export to", str(path), "end it with .onnx or .pt2")


def export_onnx(
    embedder: nn.Module, size: tuple[int, ...], path: Path, output: str = "features", inputs: Inputs = random_images
) -> float:
    """Write an ONNX file (input "images", output named by ``output``) for ``size``: height, width; of clips frames before them.

    ``inputs``: makes a batch of inputs, by which the model is traced and checked.

    ``path`` is written whole or not at all, and only when onnxruntime's features equal the embedder's: returns the
    largest difference of L2-normalised features, raises RuntimeError from 1e-4 up, and InputError where it cannot be written.
    """
    return _export(embedder, size, path, partial(_write_onnx, output=output), partial(_load_onnx, output=output), inputs)


def export_program(embedder: nn.Module, size: tuple[int, ...], path: Path, inputs: Inputs = random_images) -> float:
    """Write what ``torch.export.load(path).module()`` reads; ``path`` ends in .pt2, the rest is as in ``export_onnx``."""
    if path.suffix != ".pt2":
        raise ValueError(f"an exported program's name must end in .pt2: {path}")
    return _export(embedder, size, path, _write_program, _load_program, inputs)


def _export(
    embedder: nn.Module,
    size: tuple[int, ...],
    path: Path,
    write: Callable[[nn.Module, Tensor, Path], None],
    load: Callable[[Path], _Run],
    inputs: Inputs,
) -> float:
    model = copy.deepcopy(embedder).eval()  # a copy: the caller's keeps its device, mode and memory format
    model = model.cpu().float().to(memory_format=torch.contiguous_format)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drafts = tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-")
    except OSError as error:
        raise InputError(f"cannot write there ({error.strerror})", str(path), "export to another place") from error
    with drafts as folder:
        draft = Path(folder) / path.name
        with warnings.catch_warnings():  # torch's exporter warns about its own internals, above all for recurrent layers
            warnings.simplefilter("ignore")
            write(model, inputs(2, size), draft)
        difference = _largest_difference(model, load(draft), size, inputs)
        if not difference < TOLERANCE:
            raise RuntimeError(f"{path}: the exported model's features differ by {difference:.2g}; nothing was written")
        draft.replace(path)
    return difference


@torch.no_grad()
def _largest_difference(model: nn.Module, run: _Run, size: tuple[int, ...], inputs: Inputs) -> float:
    differences = []
    for batch in (1, 3):
        images = inputs(batch, size)
        expected, got = model(images), run(images)
        if got.shape != expected.shape:
            raise RuntimeError(f"the exported model's features are {tuple(got.shape)}, not {tuple(expected.shape)}")
        differences.append((F.normalize(got, dim=1) - F.normalize(expected, dim=1)).abs().max())
    return torch.stack(differences).max().item()


def _write_onnx(model: nn.Module, images: Tensor, path: Path, output: str) -> None:
    torch.onnx.export(
        model,
        (images,),
        path,
        input_names=["images"],
        output_names=[output],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _load_onnx(path: Path, output: str) -> _Run:
    import onnxruntime  # here: a second in the way of every job's start

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([output], {"images": images.numpy()})[0])


def _write_program(model: nn.Module, images: Tensor, path: Path) -> None:
    shapes = {"images": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(model, (images,), dynamic_shapes=shapes), path)


def _load_program(path: Path) -> _Run:
    return torch.export.load(path).module()
