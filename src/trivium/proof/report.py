"""What a comparison found: rows of evidence, a verdict, a table; as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trivium.atomic import together, write


class VerificationError(AssertionError):
    """A model is not what it was carried from. ``.report`` has the evidence."""

    def __init__(self, report: Report):
        super().__init__(f"{report.verdict}\n{report.table()}")
        self.report = report


@dataclass
class Row:
    """One comparison: its kind ("output", "gradient", ...), its name, and the errors.

    ``source_error`` and ``target_error`` are those of each model against our reading of it in
    float64, ``apart`` is between the two readings (0 where both are one Graph). None may pass
    ``limit``, which comes from what rounding can explain at that point.
    """

    kind: str
    name: str
    case: str
    source_error: float
    target_error: float
    limit: float
    apart: float = 0.0
    detail: str = ""
    """What differs, in words, where it is not a matter of numbers."""

    @classmethod
    def differs(cls, kind: str, name: str, case: str, who: Iterable[str], words: str) -> Row:
        """A difference that is no matter of how much. ``who`` errs: source, target, "" (apart)."""
        wrong = {f"{w}_error" if w else "apart": float("inf") for w in who}
        return cls(kind, name, case, **{"source_error": 0.0, "target_error": 0.0} | wrong,
                   limit=0.0, detail=words)  # fmt: skip

    @classmethod
    def same(cls, kind: str, name: str, case: str) -> Row:
        """Equal, bit for bit."""
        return cls(kind, name, case, 0.0, 0.0, 0.0)

    @property
    def ok(self) -> bool:
        """Do the model, its counterpart and their readings agree?"""
        return bool(max(self.source_error, self.target_error, self.apart) <= self.limit)


@dataclass
class Report:
    """What was compared, and how it went. True when everything agreed."""

    source: str
    target: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ran: dict[str, str] = field(default_factory=dict)
    """What ran each model: "PyTorch 2.13", or "read, not run"."""
    first_divergence: str | None = None
    """Where the two first differ: a node, or else an output, a parameter, a layer's state."""
    shared: bool = True
    """Was the target made from our reading of the source?"""

    @property
    def ok(self) -> bool:
        """Did every comparison hold (and was there one)?"""
        return bool(self.rows) and all(r.ok for r in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def misread(self) -> list[str]:
        """The models that, running, are not what our reader made of them."""
        found = []
        if any(not r.source_error <= r.limit for r in self.rows):
            found.append(self.source)
        if not self.shared and any(not r.target_error <= r.limit for r in self.rows):
            found.append(self.target)
        return found

    @property
    def verdict(self) -> str:
        """One line."""
        bad = [r for r in self.rows if not r.ok]
        names = f"{self.source} and {self.target}"
        if self.ok:
            return f"{names} agree in {len(self.rows)} comparisons"
        where = f"; first divergence: {self.first_divergence}" if self.first_divergence else ""
        count = f"{len(bad)} of {len(self.rows)} comparisons"
        if self.misread:
            who = " and ".join(dict.fromkeys(self.misread))
            return f"{who} was misread: the model itself differs from our reading in {count}{where}"
        return f"{names} differ in {count}{where}"

    def worst(self, kind: str) -> float | None:
        """The target's largest error among the rows of a kind; None if nothing was compared."""
        errors = [r.target_error for r in self.rows if r.kind == kind]
        return max(errors) if errors else None

    def table(self, most: int = 12) -> str:
        """A line per kind, then the rows that failed."""
        lines = [f"{'what':<12} {'compared':>8} {'source error':>13} {'target error':>13}  verdict"]
        for kind in dict.fromkeys(r.kind for r in self.rows):
            rows = [r for r in self.rows if r.kind == kind]
            source = max(r.source_error for r in rows)
            target = max(max(r.target_error, r.apart) for r in rows)
            verdict = "ok" if all(r.ok for r in rows) else "DIFFERS"
            lines.append(f"{kind:<12} {len(rows):>8} {source:>13.1e} {target:>13.1e}  {verdict}")
        bad = [r for r in self.rows if not r.ok]
        lines += [f"  {_words(r)}" for r in bad[:most]]
        lines += [f"  and {len(bad) - most} more"] * (len(bad) > most)
        lines += [f"ran: {name}: {by}" for name, by in self.ran.items()]
        lines += [f"note: {n}" for n in self.notes]
        return "\n".join(lines)

    __str__ = table

    def to_json(self) -> str:
        """Everything, for machines."""
        more = {"ok": self.ok, "verdict": self.verdict, "misread": self.misread}
        return json.dumps(asdict(self) | more, indent=1)

    def save(self, path: str | Path) -> None:
        """Write the report beside what it is about: JSON and, with the ending .txt, text."""
        path = Path(path)
        with together():
            write(path, self.to_json())
            write(path.with_suffix(".txt"), f"{self.verdict}\n{self.table()}\n")


def _words(row: Row) -> str:
    what = f"{row.kind} {row.name} [{row.case}]"
    if row.detail:
        return f"{what}: {row.detail}"
    errors = {"source": row.source_error, "target": row.target_error, "readings apart": row.apart}
    bad = ", ".join(f"{n} {e:.1e}" for n, e in errors.items() if not e <= row.limit)
    return f"{what}: {bad}, at most {row.limit:.1e}"
