"""What a comparison found: rows of evidence, a verdict, a table; as text and as JSON."""

from __future__ import annotations

import json
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
    """One comparison: its kind ("output", "gradient", ...), name, and both sides' errors."""

    kind: str
    name: str
    case: str
    source_error: float
    target_error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Is the target as close to the oracle as it has to be?"""
        return bool(self.target_error <= self.limit)


@dataclass
class Report:
    """What was compared, and how it went. True when everything agreed."""

    source: str
    target: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first_divergence: str | None = None
    """Where the two first differ, node by node; None when they agree."""

    @property
    def ok(self) -> bool:
        """Did every comparison hold (and was there one)?"""
        return bool(self.rows) and all(r.ok for r in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def verdict(self) -> str:
        """One line."""
        bad = [r for r in self.rows if not r.ok]
        if self.ok:
            return f"{self.source} and {self.target} agree in {len(self.rows)} comparisons"
        where = f"; first divergence: {self.first_divergence}" if self.first_divergence else ""
        count = f"{len(bad)} of {len(self.rows)} comparisons"
        return f"{self.source} and {self.target} differ in {count}{where}"

    def worst(self, kind: str) -> float | None:
        """The target's largest error among the rows of a kind; None if nothing was compared."""
        errors = [r.target_error for r in self.rows if r.kind == kind]
        return max(errors) if errors else None

    def table(self, most: int = 12) -> str:
        """A line per kind, then the rows that failed."""
        lines = [f"{'what':<12} {'compared':>8} {'source error':>13} {'target error':>13}  verdict"]
        for kind in dict.fromkeys(r.kind for r in self.rows):
            rows = [r for r in self.rows if r.kind == kind]
            source, target = (
                max(getattr(r, f"{s}_error") for r in rows) for s in ("source", "target")
            )
            verdict = "ok" if all(r.ok for r in rows) else "DIFFERS"
            lines.append(f"{kind:<12} {len(rows):>8} {source:>13.1e} {target:>13.1e}  {verdict}")
        bad = [r for r in self.rows if not r.ok]
        for r in bad[:most]:
            lines.append(
                f"  {r.kind} {r.name} [{r.case}]: {r.target_error:.1e}, at most {r.limit:.1e}"
            )
        lines += [f"  and {len(bad) - most} more"] * (len(bad) > most)
        lines += [f"note: {n}" for n in self.notes]
        return "\n".join(lines)

    __str__ = table

    def to_json(self) -> str:
        """Everything, for machines."""
        return json.dumps(asdict(self) | {"ok": self.ok, "verdict": self.verdict}, indent=1)

    def save(self, path: str | Path) -> None:
        """Write the report beside what it is about: JSON and, with the ending .txt, text."""
        path = Path(path)
        with together():
            write(path, self.to_json())
            write(path.with_suffix(".txt"), f"{self.verdict}\n{self.table()}\n")
