"""ONNX files come from anyone: what is damaged, unknown or hostile is refused, and named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trivium.graph import GraphError, UnsupportedError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from test_onnx import FLOAT, MODELS, example, model_of, write  # noqa: E402
from trivium.frameworks.onnx.open import read  # noqa: E402


def conv_model(**attrs: Any) -> Any:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "/stem/Conv", **attrs)
    return model_of(
        [node], {"x": ("batch", 3, 8, 8)}, weights={"w": np.ones((4, 3, 3, 3), "f4")}, y=4
    )


def test_not_an_onnx_file(tmp_path: Path) -> None:
    for name, content in (("a.onnx", b"\xff\xfe no model"), ("b.onnx", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GraphError, match=f"{name} is no ONNX file"):
            read(tmp_path / name)
    whole = conv_model().SerializeToString()
    for cut in range(1, len(whole), 37):
        (tmp_path / "c.onnx").write_bytes(whole[:cut])
        with pytest.raises((GraphError, UnsupportedError)):
            read(tmp_path / "c.onnx")
    (tmp_path / "d.onnx").write_bytes(whole)
    assert read(str(tmp_path / "d.onnx")).state_dict()["w"].shape == (4, 3, 3, 3)


def test_flipped_bytes_never_crash(tmp_path: Path, rng: Any) -> None:
    model, graph = example(*MODELS["residual"])
    whole, refusals = write(graph, model.state_dict()).SerializeToString(), 0
    for _ in range(200):
        content = bytearray(whole)
        for at in rng.integers(len(content), size=6):
            content[at] = rng.integers(256)
        (tmp_path / "m.onnx").write_bytes(content)
        try:
            read(tmp_path / "m.onnx")
        except (GraphError, UnsupportedError):
            refusals += 1
    assert refusals > 100


def test_names_that_are_no_text() -> None:
    model = conv_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    damaged = model.SerializeToString().replace(b"batch", b"ba\xe8ch")
    with pytest.raises(GraphError):
        read(onnx.ModelProto.FromString(damaged))


def test_what_is_wrong_is_named() -> None:
    def broken(change: Any) -> Any:
        model = conv_model()
        change(model)
        return model

    def dims(model: Any) -> None:
        model.graph.initializer[0].dims[0] = 1 << 40

    def negative(model: Any) -> None:
        model.graph.initializer[0].dims[0] = -4

    def undefined(model: Any) -> None:
        model.graph.node[0].input[0] = "nowhere"

    def kind(model: Any) -> None:
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64

    for change, words in (
        (dims, "w"),
        (negative, "w"),
        (undefined, "nowhere"),
        (kind, "output 'y'"),
    ):
        with pytest.raises((GraphError, UnsupportedError), match=words):
            read(broken(change))
    with pytest.raises((GraphError, UnsupportedError), match=r"/stem/Conv.*\(Conv\)"):
        read(conv_model(strides=[1, 2, 3]))
    with pytest.raises((GraphError, UnsupportedError), match=r"/stem/Conv"):
        read(conv_model(group=2))


def test_unknown_operators_and_missing_attributes() -> None:
    inputs = {"x": (2, 3)}
    node = helper.make_node("FusedThing", ["x"], ["y"], "/a/b/F", domain="com.example")
    model = model_of([node], inputs)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(UnsupportedError, match=r"com.example::FusedThing.*/a/b/F"):
        read(model)
    with pytest.raises(UnsupportedError, match=r"operator Det .*/a/Det"):
        read(model_of([helper.make_node("Det", ["x"], ["y"], "/a/Det")], inputs))
    with pytest.raises(GraphError, match=r"(?s)axis.*Concat"):
        read(model_of([helper.make_node("Concat", ["x", "x"], ["y"])], inputs))
    with pytest.raises(UnsupportedError, match=r"opset 6.*version_converter"):
        read(model_of([helper.make_node("Relu", ["x"], ["y"])], inputs, opset=6))


def test_sizes_that_would_take_all_memory() -> None:
    huge = np.array([1 << 40], np.int64)
    shape = helper.make_node("ConstantOfShape", ["n"], ["y"])
    with pytest.raises(GraphError, match=r"4,398,046,511,104 bytes or more, this machine has"):
        read(model_of([shape], {}, weights={"n": huge}, y=1))
    many = {"n": huge, "v": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Expand", ["v", "n"], ["e"]),
        helper.make_node("Cast", ["e"], ["y"], to=FLOAT),
    ]
    with pytest.raises((GraphError, UnsupportedError), match="bytes or more"):
        read(model_of(nodes, {}, weights=many, y=1))
    tile = helper.make_node("Tile", ["x", "n"], ["y"])
    with pytest.raises(UnsupportedError, match="tiling"):
        read(model_of([tile], {"x": (2,)}, weights={"n": huge}, y=1))


def test_external_data_stays_inside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    numbers = np.arange(108, dtype="f4").reshape(4, 3, 3, 3)
    (tmp_path / "secret.bin").write_bytes(numbers.tobytes())
    (folder / "weights.bin").write_bytes(numbers.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")

    def save(location: str, **extra: int) -> Path:
        model = conv_model()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **extra}.items():
            tensor.external_data.add(key=key, value=str(value))
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        return folder / "m.onnx"

    np.testing.assert_array_equal(read(save("weights.bin")).state_dict()["w"], numbers)
    outside = ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin", "absent.bin", "")
    for location in outside:
        with pytest.raises((UnsupportedError, GraphError), match="tensor 'w'"):
            read(save(location))
    with pytest.raises(GraphError, match="is shorter"):
        read(save("weights.bin", length=1 << 20))
    with pytest.raises(GraphError, match="432 bytes"):
        read(save("weights.bin", length=100))
    with pytest.raises(UnsupportedError, match="not a file"):
        read(onnx.load(str(save("weights.bin")), load_external_data=False))
