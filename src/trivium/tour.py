"""The guided tour: one model, trained on real digits, carried everywhere, proven there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import trivium as tv
from trivium.atomic import write
from trivium.convert import OUT
from trivium.engines import DEFAULT, ENGINES
from trivium.framework import FRAMEWORKS
from trivium.proof.report import Report

GOAL = 0.97


class DigitsCNN(tv.nn.Module):
    """conv, pool, conv, pool, dense, dense. Only what comes out is declared, never what goes in."""

    def __init__(self) -> None:
        self.conv1 = tv.nn.Conv2d(16, 3, padding=1)
        self.conv2 = tv.nn.Conv2d(32, 3, padding=1)
        self.pool = tv.nn.MaxPool2d(2)
        self.fc1 = tv.nn.Linear(64)
        self.fc2 = tv.nn.Linear(10)

    def forward(self, x: Any) -> Any:
        """Images (batch, 1, 8, 8) -> scores (batch, 10)."""
        x = self.pool(tv.relu(self.conv1(x)))
        x = self.pool(tv.relu(self.conv2(x)))
        x = tv.relu(self.fc1(tv.flatten(x, start=1)))
        return self.fc2(x)


@dataclass
class Road:
    """One row of the table."""

    name: str
    verdict: str
    outputs: float | None = None
    gradients: float | None = None
    seconds: float | None = None
    where: str = ""
    ok: bool = True


def run(out: Path, epochs: int = 24, engine: str | None = None) -> bool:
    """Walk the whole tour; True when every road that is open was proven."""
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    x, y, xt, yt = tv.data.digits()
    console.print(f"[bold]1. Train[/] on {len(x)} handwritten digits, {len(xt)} held out")
    tv.seed(0)
    model = DigitsCNN()
    model.compile(
        optimizer=tv.optim.Adam(0.002), loss="cross_entropy", metrics=["accuracy"], engine=engine
    )
    start = time.perf_counter()
    model.fit(x, y, epochs=epochs, batch_size=32, validation_data=(xt, yt))
    seconds = time.perf_counter() - start
    accuracy = model.evaluate(xt, yt)["accuracy"]
    console.print(
        f"   {accuracy:.1%} of the held-out digits are right, after {seconds:.1f} s"
        f" on the {engine or DEFAULT} engine"
    )
    ok = accuracy >= GOAL
    if not ok:
        console.print(f"   [red]less than the {GOAL:.0%} that was promised[/]")

    path = out / "digits.tv"
    tv.save(model, path, x[:2])
    again = tv.load(path)
    same = bool(np.array_equal(np.asarray(again(xt)), np.asarray(model(xt))))
    console.print(f"[bold]2. Save and load[/] {path}: {'the same bits' if same else 'other bits'}")

    console.print("[bold]3. Carry[/] it to every framework that is installed, and prove it there")
    roads = []
    for name in FRAMEWORKS:
        with console.status(f"   {name} ..."):
            roads.append(_road(name, model, xt[:5], out))
    console.print(_table(roads))
    if any(r.verdict == "not installed" for r in roads):
        console.print("   make tour FRAMEWORKS=all installs every framework first (about 3 GB)")
    return ok and same and all(r.ok for r in roads)


def _road(name: str, model: Any, example: Any, out: Path) -> Road:
    engine = ENGINES[FRAMEWORKS[name].runtime or name]
    if engine.version() is None:
        return Road(name, "not installed", where=f"to get it: {engine.remedy}")
    start = time.perf_counter()
    try:
        if name == "onnx":
            path = out / "digits.onnx"
            tv.save(model, path, example)
            report = _report_in_onnxruntime(path, model, example)
        else:
            path = out / f"digits_{name}.py"
            write(path, tv.emit(model, name, example))
            report = _report(OUT[name](model, example))
    except (tv.VerificationError, tv.UnsupportedError) as error:
        return Road(name, "REFUSED", where=str(error).splitlines()[0], ok=False)
    seconds = time.perf_counter() - start
    report.save(out / f"digits_{name}.report.json")
    verdict = "same" if report.ok else "DIFFERS"
    return Road(
        name,
        verdict,
        report.worst("output"),
        report.worst("gradient"),
        seconds,
        str(path),
        report.ok,
    )


def _report(native: Any) -> Report:
    report: Report = (
        native[0].report if isinstance(native, tuple) else native.report
    )  # JAX: (fn, params)
    return report


def _report_in_onnxruntime(path: Path, model: Any, example: Any) -> Report:
    import onnx

    return tv.verify(model, onnx.load(str(path)), example, gradients=False, steps=0)


def _table(roads: list[Road]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in ("road", "verdict", "outputs", "gradients", "time"):
        table.add_column(heading, no_wrap=True)
    table.add_column("where", overflow="fold")
    for r in roads:
        table.add_row(
            r.name, r.verdict, *("" if e is None else f"{e:.1e}" for e in (r.outputs, r.gradients)),
            "" if r.seconds is None else f"{r.seconds:.1f} s", r.where,
        )  # fmt: skip
    return table


__all__ = ["DigitsCNN", "Road", "run"]
