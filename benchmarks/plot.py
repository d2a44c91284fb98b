"""The picture of time per unit over the number of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def draw(sizes: Sequence[int], by_size: Mapping[str, Sequence[float]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "benchmarks"  # the same picture for the same figures
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name, values in by_size.items():
        axes.plot(sizes, values, marker="o", label=name.replace("`", ""))
    axes.set(xscale="log", xlabel="units spawned at once", ylabel="microseconds a unit", ylim=(0, None))
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
