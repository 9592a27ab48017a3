"""Latency of one model for all face tasks against a model for each, side by side in one run.

    python -m benchmarks.attributes_latency [--json]

The nets are of the same backbone and untrained: their predictions do not change their cost. They take turns, so that a machine
whose speed drifts drifts for all of them, and ratios are taken within a turn. Seven tasks are the source's: its claim is one
model instead of seven.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass, field

import torch

from datasets.command_line import parse
from trainers.reports.console import summary_table
from trainers.tasks.attributes.model import Attributes, FaceModelConfig

ONE, DECOUPLED, SEVEN = "one model", "one model + decoupler", "seven models"


@dataclass(frozen=True)
class Latency:
    """Measure the time from images to all labels."""

    tasks: tuple[str, ...] = ("keypoints", "gender", "glasses", "mask", "age", "quality", "pose")
    model: FaceModelConfig = field(default_factory=FaceModelConfig)
    size: tuple[int, int] = (64, 64)
    batches: tuple[int, ...] = (1, 32)
    """Images at once."""
    turns: int = 60
    threads: int = 1
    """Threads of a pass on the CPU."""
    json: bool = False


@torch.no_grad()
def measure(options: Latency, batch: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each contender in each turn."""
    contenders = {
        ONE: Attributes(options.model, options.tasks, single=False),
        DECOUPLED: Attributes(options.model, options.tasks, single=False),
        SEVEN: Attributes(options.model, options.tasks, single=True),
    }
    contenders[DECOUPLED].insert_decoupler()
    images = torch.randint(256, (batch, 3, *options.size), dtype=torch.uint8).to(device)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for model in contenders.values():
        model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # as the jobs run them
    for turn in range(options.turns + 5):
        for name, model in contenders.items():
            began = time.perf_counter()
            model(images).cpu()  # waits for a GPU
            if turn >= 5:
                times[name].append((time.perf_counter() - began) * 1000)
    return times


def main(options: Latency) -> None:
    """Measure, and print."""
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = {batch: measure(options, batch, device) for batch in options.batches}
    results = {
        batch: {
            name: {
                "median_ms": statistics.median(values),
                "p90_ms": statistics.quantiles(values, n=10)[-1],
                "to_one_model": statistics.median(a / b for a, b in zip(values, times[ONE], strict=True)),
            }
            for name, values in times.items()
        }
        for batch, times in measured.items()
    }
    if options.json:
        print(json.dumps({"options": asdict(options), "device": str(device), "results": results}))
        return
    rows = [
        [batch, name, f"{r['median_ms']:.2f} ms", f"{r['p90_ms']:.2f} ms", f"{r['to_one_model']:.2f}"]
        for batch, of_batch in results.items()
        for name, r in of_batch.items()
    ]
    title = f"{options.model.backbone}, {options.size[0]}x{options.size[1]}, {len(options.tasks)} tasks, {device}"
    summary_table(title, ["images", "", "median", "p90", "x one model"], rows)


if __name__ == "__main__":
    main(parse(Latency, "python -m benchmarks.attributes_latency"))
