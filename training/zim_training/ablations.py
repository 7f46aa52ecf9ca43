"""The rows of the paper's ablations: which settings each trains with, and one table of scores."""

from __future__ import annotations

from typing import Any

#: table: (what is trained, {row: changed settings})
TABLES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "3": (
        "converter",
        {
            "neither": {"sga": 0.0, "stl": 0.0},
            "SGA": {"sga": 0.5, "stl": 0.0},
            "STL": {"sga": 0.0, "stl": 0.5},
            "both": {"sga": 0.5, "stl": 0.5},
        },
    ),
    "4a": (
        "matte",
        {
            "neither": {"attention": "none", "decoder": "sam"},
            "masked attention": {"attention": "paper", "decoder": "sam"},
            "pixel decoder": {"attention": "none", "decoder": "hierarchical"},
            "both": {"attention": "paper", "decoder": "hierarchical"},
        },
    ),
    "4b": (
        "matte",
        {
            "none": {"attention": "none"},
            "token to image": {"attention": "paper", "side": "t2i"},
            "image to token": {"attention": "paper", "side": "i2t"},
            "both": {"attention": "paper", "side": "both"},
        },
    ),
    "8a": ("matte", {f"sigma {s}": {"sigma": float(s)} for s in (11, 21, 41)}),
    "8b": ("matte", {f"lambda {x}": {"gradient": float(x)} for x in (5, 10, 20)}),
}


def layout(rows: dict[str, dict[str, float]]) -> list[str]:
    """Lay scores out as a Markdown table, a row for each setting."""
    keys = [k for k in next(iter(rows.values())) if not k.endswith("_label")]
    lines = ["| row | " + " | ".join(k.replace("_", " ") for k in keys) + " |"]
    lines.append("|---|" + "---:|" * len(keys))
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[k]:.3f}" for k in keys) + " |")
    return lines
