"""The command line: ``trivium tour | emit | convert | verify | inspect | engines``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import click

import trivium as tv
from trivium.convert import OUT, as_module, framework_of, graph_of
from trivium.engines import ENGINES

MODEL = (
    "MODEL is a file (.tv, .onnx, .keras, -symbol.json) or package.module:name, a model or a "
    "function that makes one. A file is only read, never run; a module is your own code, "
    "and is imported."
)


def _model(spec: str) -> Any:
    """The model that an argument means."""
    if Path(spec).suffix and Path(spec).exists():
        return tv.load(spec)
    module, colon, name = spec.partition(":")
    if not colon:
        raise click.ClickException(f"there is no file {spec}. {MODEL}")
    sys.path.insert(0, "")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    made = found
    if isinstance(made, type) or (callable(made) and not _is_model(made)):
        made = made()
    return made


def _is_model(item: Any) -> bool:
    try:
        framework_of(item)
    except tv.UnsupportedError:
        return False
    return True


def _specs(shapes: tuple[str, ...]) -> list[Any]:
    """``3,224,224`` or ``int64:128``: an input without its batch."""
    import numpy as np

    specs = []
    for text in shapes:
        dtype, _, sizes = text.rpartition(":")
        shape = (2, *(int(s) for s in sizes.split(",") if s))
        specs.append(np.zeros(shape, dtype or "float32"))
    return specs


_SHAPE = click.option(
    "--input", "shapes", multiple=True, metavar="[DTYPE:]SIZES",
    help="The shape of an input without the batch, for models that learn it from data: 1,28,28.",
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(tv.__version__, prog_name="trivium")
def cli() -> None:
    """One model, every framework, and the evidence that it is still the same model.

    \b
    Examples:
      trivium tour                               train a CNN and carry it to what is installed
      trivium engines                            what is installed
      trivium inspect model.onnx                 the Graph, as Python
      trivium emit model.keras --to torch        source that a person would have written
      trivium convert model.onnx model.keras     with a report of what was compared
      trivium verify model.onnx model.keras      exit code 0 when they agree, 1 when not
    """


@cli.command(epilog=MODEL)
@click.argument("model")
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Choice(["torch", "keras", "mxnet", "jax", "tensorflow"]),
)
@_SHAPE
def emit(model: str, target: str, shapes: tuple[str, ...]) -> None:
    """Print the source of MODEL in another framework.

    \b
    Examples:
      trivium emit model.onnx --to torch
      trivium emit mypackage.models:ResNet --to keras --input 3,224,224
    """
    click.echo(tv.emit(_model(model), target, *_specs(shapes)), nl=False)


@cli.command(epilog=MODEL)
@click.argument("source")
@click.argument("destination", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--to", "target", type=click.Choice(list(OUT)), help="The framework, for a .py destination."
)
@_SHAPE
def convert(source: str, destination: Path, target: str | None, shapes: tuple[str, ...]) -> None:
    """Carry SOURCE into DESTINATION, whose ending says the format, and verify it.

    The evidence is saved beside it: DESTINATION.report.json.

    \b
    Examples:
      trivium convert model.onnx model.keras
      trivium convert model.keras model.onnx
      trivium convert model.onnx model.py --to torch     (source, and its numbers in model.tv)
    """
    model, examples = _model(source), _specs(shapes)
    module = as_module(model, *examples)
    if destination.suffix == ".py":
        if target is None:
            raise click.ClickException(
                "a .py destination needs --to torch|keras|tensorflow|mxnet|jax"
            )
        native = OUT[target](model, *examples)
        destination.write_text(tv.emit(module, target, *examples))
        tv.save(module, destination.with_suffix(".tv"), *examples)
        report = getattr(native, "report", None)
    else:
        tv.save(module, destination, *examples)
        report = tv.verify(module, tv.load(destination), *examples)
        if not report.ok:
            raise click.ClickException(report.verdict + "\n" + report.table())
    if report is not None:
        report.save(destination.with_suffix(".report.json"))
        click.echo(report.table())
    click.echo(f"wrote {destination}")


@cli.command(epilog=MODEL)
@click.argument("a")
@click.argument("b")
@click.option("--steps", default=3, show_default=True, help="Training steps to compare.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
@_SHAPE
def verify(a: str, b: str, steps: int, as_json: bool, shapes: tuple[str, ...]) -> None:
    """Compare two models: outputs, gradients, training steps. Exit code 0 when they agree."""
    report = tv.verify(_model(a), _model(b), *_specs(shapes), steps=steps)
    click.echo(report.to_json() if as_json else f"{report.table()}\n{report.verdict}")
    sys.exit(0 if report.ok else 1)


@cli.command(epilog=MODEL)
@click.argument("model")
@_SHAPE
def inspect(model: str, shapes: tuple[str, ...]) -> None:
    """Print the Graph of MODEL, as Python, and the sizes of its parameters."""
    examples = _specs(shapes)
    module = as_module(_model(model), *examples)
    click.echo(str(graph_of(module, *examples)))
    numbers = module.state_dict()
    click.echo(
        f"# {sum(a.size for a in numbers.values()):,} numbers "
        f"in {len(numbers)} parameters and states"
    )


@cli.command()
def engines() -> None:
    """List the engines: what is installed, and how to get what is not."""
    for name, engine in ENGINES.items():
        version = engine.version()
        click.echo(f"{name:<12} {version or 'missing':<12} {'' if version else engine.remedy}")


@cli.command()
@click.option("--epochs", default=24, show_default=True, help="Passes over the training digits.")
@click.option(
    "--out",
    default="trivium-tour",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the model and the emitted sources go.",
)
@click.option("--engine", default=None, help="Train on another engine than the embedded one.")
def tour(epochs: int, out: Path, engine: str | None) -> None:
    """Train a CNN on real digits, save it, and carry it to every framework that is installed."""
    from trivium.tour import run

    sys.exit(0 if run(out, epochs, engine) else 1)


def main() -> None:
    """The entry point: expected errors in one line, exit code 2."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Abort:
        sys.exit(130)
    except (
        tv.VerificationError,
        ValueError,
        ImportError,
        FileNotFoundError,
        KeyError,
        TypeError,
    ) as error:
        click.echo(f"trivium: {error}", err=True)
        sys.exit(1 if isinstance(error, tv.VerificationError) else 2)
