"""Figures as tables, as JSON, as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from bench.sections import Figures

OURS, PEER, LIMIT = "#c8442f", "#9aa5b1", "#222222"


def microseconds(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(title: str, *headings: str) -> Table:
    """The first column on the left, numbers on the right."""
    made = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    for heading in headings:
        made.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    return made


def machine(m: Figures) -> str:
    """What it is, and what it can do."""
    peak = f"{m['peak_one']:.0f} GFLOP/s on one core, {m['peak_all']:.0f} on {m['threads']}"
    what = f"{m['cpu']}, {m['cores']} cores, {m['instructions']}"
    return f"{what}; measured: {peak}, copies at {m['copy']:.0f} GB/s {m['note']}"


def training(f: Figures, _: Figures) -> RenderableType:
    """One workload: every worker, its time, times the best peer's, times the limit, its memory."""
    times, ours, limit = f["times_us"], f["ours"], f["limit_us"]
    made = table(f["title"], "", "us", "min", "max", "of best peer", "of limit", "MB")
    best = min((t["median"] for n, t in times.items() if n != ours), default=None)
    for name in sorted(times, key=lambda n: times[n]["median"]):
        t = times[name]
        share = f["ratio"]["median"] if name == ours and f["ratio"] else None
        if share is None and best:
            share = t["median"] / best
        made.add_row(
            name, microseconds(t["median"]), microseconds(t["min"]), microseconds(t["max"]),
            "-" if share is None else f"{share:.2f}",
            microseconds(t["median"] / limit) if limit else "-",
            f"{f['info'][name]['steps_mb']:.0f}",
            style="bold" if name == ours else None,
        )  # fmt: skip
    if limit:
        made.add_row("limit", microseconds(limit), style="dim")
    for name, why in f["absent"].items():
        kind, text = next(iter(why.items()))
        made.add_row(f"{name}: {kind}" if kind == "unfit" else f"{name}: {text}", style="dim")
    return made


def contraction(f: Figures, m: Figures) -> RenderableType:
    """A product: GFLOP/s, and the share of the measured peak."""
    told = []
    for name, t in f["times_us"].items():
        rate, peak = f["flops"] / t["median"] / 1e3, m["peak_all"]
        share = f", {rate / peak:.0%} of the peak" if peak else ""
        told.append(f"{name} {microseconds(t['median'])} us, {rate:.0f} GFLOP/s{share}")
    told += [f"{n}: {next(iter(why.values()))}" for n, why in f["absent"].items()]
    return f"{f['title']}: {'; '.join(told)}"


def contention(f: Figures, _: Figures) -> RenderableType:
    """How much slower beside a busy neighbour."""
    made = table("the CNN beside a process that keeps one core busy",
                 "", "quiet us", "busy us", "times as long")  # fmt: skip
    for name, w in sorted(f["workers"].items(), key=lambda i: i[1]["slower"]["median"]):
        quiet, busy = (microseconds(w[k]["median"]) for k in ("quiet_us", "busy_us"))
        style = "bold" if name == f["ours"] else None
        made.add_row(name, quiet, busy, f"{w['slower']['median']:.2f}", style=style)
    return made


def first(f: Figures, _: Figures) -> RenderableType:
    """Compiled, and from the cache."""
    cold, warm = (f[k]["median"] for k in ("compiled_ms", "cached_ms"))
    return f"the first CNN step: {cold:.0f} ms compiled, {warm:.0f} ms from the cache"


SHOW = {
    "training": training,
    "contractions": contraction,
    "contention": contention,
    "first": first,
}


def save(found: dict[str, Any], folder: Path) -> list[Path]:
    """``bench.json``, and ``bench.png`` where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / "bench.json"]
    made[0].write_text(json.dumps(found, indent=1) + "\n")
    if found.get("training"):
        try:
            picture(found, folder / "bench.png")
        except ImportError:
            return made
        made.append(folder / "bench.png")
    return made


def picture(found: dict[str, Any], path: Path) -> None:
    """Bars per workload, ours in red, the limit as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    items = found["training"]
    figure, every = plt.subplots(1, len(items), figsize=(4.4 * len(items), 3.4), squeeze=False)
    for axes, (name, f) in zip(every[0], items.items(), strict=True):
        times, limit = f["times_us"], f["limit_us"]
        order = sorted(times, key=lambda n: -times[n]["median"])
        values = [times[n]["median"] for n in order]
        if limit and limit < min(values) / 20:
            limit = None  # far below anything: the line would leave no room for the bars
        labels = [n.replace("trivium:", "trivium, ") for n in order]
        bars = axes.barh(labels, values, color=[OURS if n == f["ours"] else PEER for n in order])
        axes.bar_label(bars, [f" {microseconds(v)}" for v in values], fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(left=min([*values, limit or values[0]]) / 2, right=max(values) * 3)
        if limit:
            axes.axvline(limit, color=LIMIT, linestyle=":", linewidth=1)
            axes.text(limit, len(order) - 0.45, "limit", fontsize=8, ha="center")
        told = f"\n{f['ratio']['median']:.2f} of the best peer" if f["ratio"] else ""
        axes.set_title(f"{name}{told}", fontsize=10)
        axes.set_xlabel("microseconds a training step (log)", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    m = found["machine"]
    figure.suptitle(f"{m['cpu']}, {m['threads']} threads", fontsize=9, color="#555555")
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    plt.close(figure)
