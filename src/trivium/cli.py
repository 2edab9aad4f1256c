"""The command line: ``trivium tour | emit | convert | verify | inspect | engines``.

Exit codes: 0 yes, 1 no (two models differ, a tour that failed), 2 could not be asked (what was
wrong and what to do is said on stderr), 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import inspect as inspection
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

import trivium as tv
from trivium.atomic import together, writable, write
from trivium.convert import OUT, SOURCES, as_module, framework_of, graph_of
from trivium.dtype import as_dtype
from trivium.engines import ENGINES
from trivium.files import ENDINGS
from trivium.proof.report import Report, VerificationError

MODEL = (
    "MODEL is a file (.tv, .onnx, .keras, -symbol.json) or package.module:name, a model or a "
    "function that makes one. A file is read as data; verify and convert, once that is done, "
    "run it in its own framework too, without custom operators or layers. A module is your own "
    "code, and is imported."
)
_HINT = "Give the shape of each input, without the batch: --input 3,224,224 (or int64:128)"


# -- what the arguments mean -----------------------------------------------------------------------
def _examples(ctx: Any, param: Any, texts: tuple[str, ...]) -> tuple[Any, ...]:
    """``3,224,224`` or ``int64:128``: an input without its batch, as an array of two."""
    arrays = []
    for text in texts:
        dtype, _, sizes = text.rpartition(":")
        try:
            shape = tuple(int(s) for s in sizes.split(",") if s)
            if min(shape, default=1) < 1:
                raise ValueError
            arrays.append(np.zeros((2, *shape), as_dtype(dtype or "float32").numpy))
        except ValueError:
            raise click.BadParameter(
                f"{text!r} is no shape: whole numbers from 1 with commas between them, without the "
                "batch, and a dtype before them if it is not float32: 1,28,28 or int64:128"
            ) from None
        except (TypeError, MemoryError) as error:
            raise click.BadParameter(f"{text!r}: {error}") from None
    return tuple(arrays)


_SHAPE = click.option(
    "--input", "shapes", multiple=True, callback=_examples, metavar="[DTYPE:]SIZES",
    help="The shape of an input without the batch, for models that learn it from data: 1,28,28.",
)  # fmt: skip


def _model(spec: str, run: bool = False) -> Any:
    """The model that an argument means; a file to ``run`` stays a path."""
    path = Path(spec)
    if path.is_dir() and not (path / "saved_model.pb").exists():
        raise click.ClickException(f"{spec} is a folder. {MODEL}")
    if path.exists() and run:
        return path
    if path.exists():
        with _doing(f"reading {spec}"):
            return tv.load(path)
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise click.ClickException(f"there is no file {spec}. {MODEL}")
    made = _named(module, name)
    if isinstance(made, type) or (callable(made) and not _is_model(made)):
        made = _called(made, spec, name)
    if not _is_model(made):
        raise click.ClickException(f"{spec} is no model but {_what(made)}. {MODEL}")
    return made


def _what(item: Any) -> str:
    return "None" if item is None else f"of type {type(item).__name__}"


def _called(maker: Any, spec: str, name: str) -> Any:
    try:
        inspection.signature(maker).bind()
    except TypeError:
        raise click.ClickException(
            f"{spec} wants arguments: {name}{inspection.signature(maker)}. Write a function "
            "without any that makes the model, and name that"
        ) from None
    except ValueError:  # some builtins have no signature to show
        pass
    with _of_the_user(f"{spec}()"):
        return maker()


def _named(module: str, name: str) -> Any:
    """What ``name`` is in a module, which is imported from here or from where Python looks."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    with _of_the_user(f"importing {module}"):
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise click.ClickException(
                f"there is no module {error.name}, neither in {Path.cwd()} nor where this Python "
                "looks; go to the folder it is in, or install it"
            ) from None
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in dir(found) if not n.startswith("_")]
            close = difflib.get_close_matches(part, known, 3) or known[:10]
            has = f"; it has {', '.join(close)}" if close else ""
            raise click.ClickException(f"{module} has no {name}{has}")
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def _of_the_user(what: str) -> Iterator[None]:
    """An error in somebody's own module, in a line: what it was and where."""
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        trace = inspection.getinnerframes(error.__traceback__, 0) if error.__traceback__ else []
        where = f" ({trace[-1].filename}:{trace[-1].lineno})" if trace else ""
        raise click.ClickException(
            f"{what} failed: {type(error).__name__}: {error}{where}"
        ) from error


def _is_model(item: Any) -> bool:
    try:
        framework_of(item)
    except tv.UnsupportedError:
        return False
    return True


@contextlib.contextmanager
def _learning(spec: str, shapes: tuple[Any, ...]) -> Iterator[None]:
    """A model that was made just now may want data before it knows its sizes."""
    try:
        yield
    except ValueError as error:
        if shapes or Path(spec).exists():
            raise
        raise click.ClickException(f"{spec}: {error}. {_HINT}") from error


def _doing(what: str) -> Any:
    """Say what takes long, where somebody watches."""
    console = Console(stderr=True)
    return console.status(f"{what} ...") if console.is_terminal else contextlib.nullcontext()


class _Commands(click.Group):
    """The commands; when nobody reads their output any more, they end quietly."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes once more at exit: into nothing.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        return result


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(tv.__version__, prog_name="trivium")
@click.option("--traceback", is_flag=True, help="After an error, show where it was raised.")
def cli(traceback: bool) -> None:
    """One model, every framework, and the evidence that it is still the same model.

    \b
    Examples:
      trivium tour                               train a CNN and carry it to what is installed
      trivium engines                            what is installed
      trivium inspect model.onnx                 the Graph, as Python
      trivium emit model.keras --to torch        source that a person would have written
      trivium convert model.onnx model.keras     with a report of what was compared
      trivium verify model.onnx model.keras      exit code 0 when they agree, 1 when not

    `trivium COMMAND --help` has more of them. `python -m trivium` is the same.
    """


@cli.command(epilog=MODEL)
@click.argument("model")
@click.option("--to", "target", required=True, type=click.Choice(SOURCES), help="The framework.")
@click.option(
    "-o", "--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write MODEL_FRAMEWORK.py into this folder, instead of printing it.",
)  # fmt: skip
@_SHAPE
def emit(model: str, target: str, out: Path | None, shapes: tuple[Any, ...]) -> None:
    """Print the source of MODEL in another framework, or write it into a folder.

    \b
    Examples:
      trivium emit model.onnx --to torch
      trivium emit model.onnx --to torch -o sources           (sources/model_torch.py)
      trivium emit mypackage.models:ResNet --to keras --input 3,224,224
    """
    found = _model(model)
    with _learning(model, shapes), _doing(f"writing {model} for {target}"):
        source = tv.emit(found, target, *shapes)
    if out is None:
        click.echo(source, nl=False)
        return
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{_stem(model)}_{target}.py"
    write(path, source)
    click.echo(f"wrote {path}")


def _stem(spec: str) -> str:
    """What to call what was made of a model: "resnet18" of models/resnet18-symbol.json."""
    if Path(spec).exists():
        return Path(spec).stem.removesuffix("-symbol")
    return spec.rpartition(":")[2].rpartition(".")[2].lower()


@cli.command(epilog=MODEL)
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--to", "target", type=click.Choice(SOURCES), help="The framework, for a .py destination."
)
@_SHAPE
def convert(source: str, destination: Path, target: str | None, shapes: tuple[Any, ...]) -> None:
    """Carry SOURCE into DESTINATION, whose ending says the format, and verify it.

    The evidence is saved beside it: DESTINATION.report.json and .txt. When anything fails, or the
    models differ (exit code 1), nothing is written.

    \b
    Examples:
      trivium convert model.onnx model.keras
      trivium convert model.keras model.onnx
      trivium convert resnet18-symbol.json resnet18.onnx      (resnet18-0000.params beside it)
      trivium convert model.onnx model.py --to torch          (source, and its numbers in model.tv)
      trivium convert mymodels:make net.onnx --input 3,224,224
    """
    if destination.suffix not in (*ENDINGS, ".py"):
        raise click.UsageError(
            f"no format for the ending {destination.suffix!r} of {destination}: "
            f"there are {', '.join(ENDINGS)} and .py"
        )
    if (destination.suffix == ".py") != (target is not None):
        raise click.UsageError(
            f"a .py destination needs --to {'|'.join(SOURCES)}, and no other has it"
        )
    writable(destination)
    with tempfile.TemporaryDirectory(prefix="trivium-") as folder:
        made = Path(folder, destination.name)
        model = _model(source, run=True)
        with _learning(source, shapes), _doing(f"converting and verifying {source}"):
            report = _made(model, made, target, shapes)
        if not report.ok:
            raise VerificationError(report)
        report.save(made.with_suffix(".report.json"))
        with together():
            for file in sorted(Path(folder).iterdir()):
                there = destination.parent / file.name
                if not (there.exists() and Path(source).exists() and there.samefile(source)):
                    write(there, file.read_bytes())
    click.echo(f"{report.table()}\nwrote {destination}")


def _made(model: Any, path: Path, target: str | None, shapes: tuple[Any, ...]) -> Report:
    """Write ``path`` (a ``.py`` with its ``.tv``); what was compared with what."""
    module = as_module(model, *shapes)
    if target is None:
        tv.save(module, path, *shapes, verify=False)
        return tv.verify(model, path, *shapes)
    native = OUT[target](model, *shapes)
    first = "# Beside NumPy 2, first: from trivium.frameworks.mxnet.load import load; load()\n"
    write(path, first * (target == "mxnet") + tv.emit(module, target, *shapes))
    tv.save(module, path.with_suffix(".tv"), *shapes)
    report: Report = (native[0] if isinstance(native, tuple) else native).report
    return report


@cli.command(epilog=MODEL)
@click.argument("a")
@click.argument("b")
@click.option(
    "--steps", type=click.IntRange(min=0), default=3, show_default=True,
    help="Training steps to compare.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
@_SHAPE
def verify(a: str, b: str, steps: int, as_json: bool, shapes: tuple[Any, ...]) -> None:
    """Compare two models: outputs, gradients, training steps. Exit code 0 when they agree, else 1.

    A model that only infers (.onnx) is compared in what it puts out.

    \b
    Examples:
      trivium verify model.onnx model.keras
      trivium verify model.keras mymodels:make --steps 0 --input 3,224,224
      trivium verify model.tv model.onnx --json > report.json
    """
    sides = [_model(s, run=True) for s in (a, b)]
    with _learning(a, shapes), _learning(b, shapes), _doing(f"comparing {a} with {b}"):
        report = tv.verify(*sides, *shapes, steps=steps)
    click.echo(report.to_json() if as_json else f"{report.table()}\n{report.verdict}")
    sys.exit(0 if report.ok else 1)


@cli.command(epilog=MODEL)
@click.argument("model")
@_SHAPE
def inspect(model: str, shapes: tuple[Any, ...]) -> None:
    """Print the Graph of MODEL, as Python, and the sizes of its parameters.

    \b
    Examples:
      trivium inspect model.onnx
      trivium inspect resnet18-symbol.json
      trivium inspect mymodels:make --input int64:128
    """
    found = _model(model)
    with _learning(model, shapes):
        module = as_module(found, *shapes)
        graph = graph_of(module, *shapes)
    click.echo(str(graph))
    numbers = module.state_dict()
    click.echo(
        f"# {sum(a.size for a in numbers.values()):,} numbers "
        f"in {len(numbers)} parameters and states"
    )
    if Path(model).exists():
        click.echo("# read, not run: trivium verify runs it beside what was read")


@cli.command()
def engines() -> None:
    """List the engines: what is installed, and how to get what is not.

    \b
    Examples:
      trivium engines
    """
    for name, engine in ENGINES.items():
        version = engine.version()
        click.echo(f"{name:<12} {version or 'missing':<12} {'' if version else engine.remedy}")


@cli.command()
@click.option(
    "--epochs", type=click.IntRange(min=1), default=24, show_default=True,
    help="Passes over the training digits.",
)  # fmt: skip
@click.option(
    "--out",
    default="trivium-tour",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the model and the emitted sources go.",
)
@click.option("--engine", default=None, help="Train on another engine than the embedded one.")
def tour(epochs: int, out: Path, engine: str | None) -> None:
    """Train a CNN on real digits, save it, and carry it to every framework that is installed.

    \b
    Examples:
      trivium tour
      trivium tour --epochs 3 --engine torch --out my-tour
    """
    from trivium.tour import run

    sys.exit(0 if run(out, epochs, engine) else 1)


# -- how it ends -----------------------------------------------------------------------------------
def main() -> None:
    """The entry point: an error is a line of words and an exit code, never a traceback."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets on stderr
    asked = "--traceback" in sys.argv
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        if asked:
            raise
        error.show()
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("trivium: interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if asked:
            raise
        click.echo(f"trivium: {_words(error)}", err=True)
        sys.exit(1 if isinstance(error, VerificationError) else 2)


_REMEDIES = {
    errno.ENOENT: "there is no such file or folder; a folder to write into is made with mkdir -p",
    errno.EACCES: "permission denied; ask its owner, or write to another folder",
    errno.EISDIR: "that is a folder; name a file in it",
    errno.EROFS: "nothing can be written there; choose another folder",
    errno.ENOSPC: "the disk is full; nothing was changed",
}


def _words(error: Exception) -> str:
    """An error in words: what, where and, if it is known, what to do."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return where + _REMEDIES.get(error.errno, error.strerror or type(error).__name__)
    if isinstance(error, (ValueError, ImportError, OSError, VerificationError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (trivium --traceback COMMAND ... shows where)"
