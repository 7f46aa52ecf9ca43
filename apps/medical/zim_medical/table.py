"""The table of cases: one row per picture, class, mode and model, written as the run goes on.

The rows of a picture are appended in one write. A run that was killed leaves at most one torn
picture behind; resuming cuts it off and goes on, and the finished file is the same, byte for byte.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zim.errors import OutputError

KEY = ("dataset", "case_id", "axis", "slice")
COLUMNS = (
    "preset",
    "dataset", "case_id", "patient_id", "axis", "slice", "class", "mode", "model", "threshold",
    "mask_select", "n_regions", "prompt", "iou", "dice", "pred_area", "gt_area", "empty_pred",
    "height", "width",
)  # fmt: skip
SURFACE = ("hd95_mm", "nsd")
ORACLE = ("iou_oracle",)
#: last column: 1 in the last row of a picture, by which a torn end is recognised
END = "end"


class CaseTable:
    """``cases.csv``, resumable."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        """Open a table, or start it; what a killed run left incomplete is cut off."""
        self.path, self.columns = path, columns
        self.done: set[tuple[str, ...]] = set()
        if path.exists():
            self._repair()
        else:
            self._append(_line(self.columns))

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Append all the rows of one picture."""
        lines = [
            _line([*(_text(row.get(column)) for column in self.columns[:-1]), last])
            for row, last in zip(rows, ["0"] * (len(rows) - 1) + ["1"], strict=True)
        ]
        self._append("".join(lines))
        self.done.add(_key(rows[0]))

    def has(self, dataset: str, case_id: str, axis: int | None, index: int) -> bool:
        """Tell whether a picture's rows are complete."""
        return (dataset, case_id, _text(axis), str(index)) in self.done

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield every row as text."""
        with self.path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)

    def _append(self, text: str) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error

    def _repair(self) -> None:
        data = self.path.read_bytes()
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        if lines and lines[0].decode() != _line(self.columns):
            raise OutputError(
                f"{self.path} has other columns; give another --output, or --overwrite"
            )
        complete = 1
        for number, line in enumerate(lines[1:], 2):
            if line.rstrip(b"\r\n").endswith(b",1"):
                complete = number
                values = next(csv.reader([line.decode()]))
                self.done.add(_key(dict(zip(self.columns, values, strict=True))))
        kept = b"".join(lines[:complete]) or _line(self.columns).encode()
        if kept != data:
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_bytes(kept)
            temporary.replace(self.path)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(_text(row[name]) for name in KEY)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _line(values: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()
