"""nn.Module classes: what ``__init__`` declares, how a part is reached, what ``forward`` says."""

from __future__ import annotations

import keyword
from collections.abc import Mapping

from trivium.frameworks.writing.blocks import Layer, numbered
from trivium.frameworks.writing.classes import Class
from trivium.frameworks.writing.code import Member
from trivium.frameworks.writing.source import Emitter
from trivium.frameworks.writing.writer import Declared, Writer

BUFFER = ("torch.zeros(", "torch.ones(")
LINE = 84
"""Longer lists are written over several lines."""

_TAKEN = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double
    dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter
    get_submodule half ipu load_state_dict modules mtia named_buffers named_children named_modules
    named_parameters parameters register_backward_hook register_buffer register_forward_hook
    register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
    register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module
    register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu
    zero_grad _apply _backward_hooks _backward_pre_hooks _buffers _call_impl _compiled_call_impl
    _forward_hooks _forward_hooks_always_called _forward_hooks_with_kwargs _forward_pre_hooks
    _forward_pre_hooks_with_kwargs _get_backward_hooks _get_backward_pre_hooks _get_name
    _is_full_backward_hook _load_from_state_dict _load_state_dict_post_hooks
    _load_state_dict_pre_hooks _maybe_warn_non_full_backward_hook _modules _named_members
    _non_persistent_buffers_set _parameters _register_load_state_dict_pre_hook
    _register_state_dict_hook _replicate_for_data_parallel _save_to_state_dict _slow_forward
    _state_dict_hooks _state_dict_pre_hooks _version _wrapped_call_impl
    """.split()  # noqa: SIM905
)  # what an nn.Module has before anything is added; a test compares it with torch's
_OF_A_DICT = frozenset({"clear", "items", "keys", "pop", "update", "values"})


def attribute(name: str) -> str:
    """A name as nn.Module lets it be used: ``float_`` for "float", and so on for "float_".

    >>> attribute("conv1"), attribute("float"), attribute("float_")
    ('conv1', 'float_', 'float__')
    """
    return f"{name}_" if name.rstrip("_") in _TAKEN or name in _TAKEN else name


def plain(name: str) -> bool:
    """May it stand behind a dot?"""
    return name.isidentifier() and not keyword.iskeyword(name)


def indented(text: str) -> str:
    """Every line four further in."""
    return "\n".join("    " + line for line in text.split("\n"))


def call_of(name: str, items: list[str], brackets: str = "") -> str:
    """``name(items)``, over several lines if it is long."""
    opening, closing = f"{name}({brackets[:1]}", f"{brackets[1:]})"
    line = opening + ", ".join(items) + closing
    if brackets and len(line) <= LINE and "\n" not in line:
        return line
    return "\n".join([opening, *(indented(f"{item},") for item in items), closing])


def class_source(emitter: Emitter, cls: Class) -> str:
    """One class."""
    writer = _Writer(emitter, cls)
    body = cls.body
    lines = [f"class {cls.name}({writer.base}):"]
    arguments = "".join(f", {p}" for p in cls.signature(writer.literal))
    if body.members:
        text = "\n".join(writer.declarations())
        lines += [f"    def __init__(self{arguments}):", indented(indented(text))]
    if not body.chain:
        lines += [""] * bool(body.members)
        lines.append(f"    def forward({', '.join(['self', *writer.argument_names()])}):")
        lines += ["        " + line for line in writer.write()]
    return "\n".join(lines)


class _Writer(Writer):
    def __init__(self, emitter: Emitter, cls: Class):
        super().__init__(emitter, cls)
        self.members = {self.inner(n): code for n, code in self.body.members.items()}
        lists = numbered(self.members)
        self.base = (
            "nn.Sequential" if self.body.chain else "nn.ModuleList" if lists else "nn.Module"
        )

    # -- what holds what ---------------------------------------------------------------------------
    def children(self, path: str) -> list[str]:
        """What a container holds."""
        prefix = path + "." if path else ""
        below = [n[len(prefix) :] for n in self.members if n.startswith(prefix)]
        return list(dict.fromkeys(n.partition(".")[0] for n in below))

    def kind(self, path: str) -> str:
        """The class of the container at ``path``: a scope that is no class of its own."""
        if not path:
            return self.base
        children = self.children(path)
        held = [str(self.members.get(f"{path}.{c}", [""])[0]) for c in children]
        if numbered(children):
            own = all(text.startswith("nn.Parameter(") for text in held)
            return "nn.ParameterList" if own else "nn.ModuleList"
        free = any(text.startswith(("nn.Parameter(", *BUFFER)) for text in held)
        odd = not all(map(plain, children)) and not _OF_A_DICT & {*children}
        return "nn.ModuleDict" if odd and not free else "nn.Module"

    def place(self, name: str) -> str:
        """``self.layer1[0].conv1`` for the path ``layer1.0.conv1``."""
        text, parts = "self", name.split(".") if name else []
        for i, part in enumerate(parts):
            match self.kind(".".join(parts[:i])):
                case "nn.ModuleList" | "nn.Sequential" | "nn.ParameterList":
                    text += f"[{part}]"
                case "nn.ModuleDict":
                    text += f'["{part}"]'
                case _:
                    text = f"{text}.{part}" if plain(part) else f'getattr({text}, "{part}")'
        return text

    # -- __init__ ----------------------------------------------------------------------------------
    def declarations(self) -> list[str]:
        """The statements of ``__init__``."""
        items = {name: self.declared(code) for name, code in self.members.items()}
        for name in self.cls.optional:
            items[name] = self.asked(name, self.text_of(items[name]))
        for name in map(self.inner, self.emitter.fixed(self.body)):
            items[name] = f"{items[name][:-1]}, requires_grad=False)"
        if self.base != "nn.Module":
            texts = [self.text_of(item) for item in items.values()]
            if self.base == "nn.Sequential":
                return [call_of("super().__init__", texts), *self.frozen()]
            return [call_of("super().__init__", texts, "[]"), *self.frozen()]
        lines = ["super().__init__()", *(f"self.{n} = {n}" for n in self.cls.kept)]
        lines += self.filled("", items)
        return [*lines, *self.corrections(), *self.frozen()]

    def freeze(self, path: str, alone: bool) -> str:
        """See Writer."""
        theirs = ".".join(map(attribute, path.split("."))) if path else ""
        place = f"self.{theirs}" if path else "self"
        if not all(map(plain, theirs.split("."))) and path:
            place = f'self.get_{"parameter" if alone else "submodule"}("{theirs}")'
        return f"{place}.requires_grad_(False)"

    def filled(self, path: str, items: Mapping[str, Declared]) -> list[str]:
        """The statements that put something into the container ``path``, an nn.Module."""
        lines = []
        for child in self.children(path):
            name = f"{path}.{child}" if path else child
            lines += [self.held(path, child, self.made(name, items)), *self.later(name, items)]
        return lines

    def made(self, name: str, items: Mapping[str, Declared]) -> str:
        """The constructor call of a member, or of the container that this is."""
        if name in items:
            return self.text_of(items[name])
        inside = {c: self.made(f"{name}.{c}", items) for c in self.children(name)}
        match kind := self.kind(name):
            case "nn.ModuleList" | "nn.ParameterList":
                return call_of(kind, list(inside.values()), "[]")
            case "nn.ModuleDict":
                return call_of(kind, [f'"{c}": {text}' for c, text in inside.items()], "{}")
        return "nn.Module()"

    def later(self, name: str, items: Mapping[str, Declared]) -> list[str]:
        """What is put into the containers inside ``name`` that are made empty."""
        if name in items:
            return []
        if self.kind(name) == "nn.Module":
            return self.filled(name, items)
        return [line for c in self.children(name) for line in self.later(f"{name}.{c}", items)]

    def held(self, path: str, name: str, text: str) -> str:
        """``self.conv = nn.Conv2d(...)``."""
        where = self.place(path)
        if text.startswith(BUFFER):
            return f'{where}.register_buffer("{name}", {text})'
        if plain(name):
            return f"{where}.{name} = {text}"
        kind = "register_parameter" if text.startswith("nn.Parameter(") else "add_module"
        return f'{where}.{kind}("{name}", {text})'

    def text_of(self, item: Declared) -> str:
        """A chain as a Sequential over several lines."""
        if isinstance(item, str):
            return item
        return call_of("nn.Sequential", [self.text_of(i) for i in item])

    def corrections(self) -> list[str]:
        """nn.RNN has two biases; ours may have one, so the other stays zero and is not trained."""
        lines = []
        for name in self.one_bias():
            where = f"{self.place(self.inner(name))}.bias_hh_l0"
            lines.append(
                f"nn.init.zeros_({where}).requires_grad_(False)  # one bias, as the original"
            )
        return lines

    def one_bias(self) -> list[str]:
        """The recurrent layers of this class that have no second bias."""
        layers = [s for s in self.body.block.items if isinstance(s, Layer)]
        found = [s.path for s in layers if s.node.op == "rnn" and s.node.inputs[4] is None]
        return list(dict.fromkeys(found))

    # -- forward -----------------------------------------------------------------------------------
    def member(self, member: Member) -> str:
        """``self.conv1``, ``self.layers[0]``."""
        return self.place(self.inner(member.name))
