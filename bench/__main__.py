"""The bench's command line: ``make bench``, or ``python -m bench``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench import report, sections
from bench.machine import cores, measure
from bench.peers import PEERS
from bench.workloads import TRAINING


def some_of(known: Iterable[str]) -> Callable[[Any, Any, str | None], list[str]]:
    """An option's callback: names by commas, each of them known."""

    def split(_: Any, __: Any, value: str | None) -> list[str]:
        names = [n for n in (value or "").split(",") if n]
        if wrong := [n for n in names if n not in known]:
            raise click.BadParameter(f"no {wrong[0]!r}; there are {', '.join(known)}")
        return names

    return split


EPILOG = """\b
Examples:
  python -m bench                                 everything, in some ten minutes
  python -m bench --quick --only linreg,mlp       two workloads and all other sections, three rounds
  python -m bench --sections training --peers jax,torch
"""


@click.command(epilog=EPILOG)
@click.option("--only", callback=some_of(TRAINING), help="Training workloads, by commas.")
@click.option("--peers", callback=some_of(PEERS), help="Peers, by commas.")
@click.option("--sections", "chosen", callback=some_of(sections.SECTIONS),
              help=f"Of {', '.join(sections.SECTIONS)}, by commas.")  # fmt: skip
@click.option("--engine", default="native", show_default=True, help="Ours: this engine.")
@click.option("--rounds", default=7, show_default=True, help="Turns of each worker.")
@click.option("--quick", is_flag=True, help="Three rounds.")
@click.option("--threads", default=None, type=int, help="Threads; physical cores by default.")
@click.option("--out", default=Path(__file__).parent / "results", type=Path,
              help="Where bench.json and bench.png go; bench/results by default.")  # fmt: skip
def main(only: list[str], peers: list[str], chosen: list[str], engine: str, rounds: int,
         quick: bool, threads: int | None, out: Path) -> None:  # fmt: skip
    """Our training steps beside the peers', alternating, in one run on one machine.

    Ratios mean something; absolute times drift. Let nothing else run meanwhile.
    """
    console = Console(width=max(100, Console().width), soft_wrap=True)
    sections.bytecode()
    peers = peers or [n for n, p in PEERS.items() if p.default]
    with console.status("measuring the machine") as status:
        machine = measure(threads or len(cores()))
        found: dict[str, Any] = {"machine": dataclasses.asdict(machine)}
        console.print(report.machine(found["machine"]))
        bench = sections.Bench(
            f"trivium:{engine}", peers, only, 3 if quick else rounds, machine, status.update
        )
        for section in chosen or sections.SECTIONS:
            for name, figures in getattr(bench, section)():
                found.setdefault(section, {})[name] = figures
                console.print(report.SHOW[section](figures, found["machine"]))
    for path in report.save(found, out):
        console.print(f"saved {path}")


if __name__ == "__main__":
    main()
