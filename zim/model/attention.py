"""Attention: SAM's relative-position attention and ZIM's prompt-aware masked attention.

Each kind is one plain function in reference form (explicit logits, softmax in float32). Faster
forms of the first stand beside it and are tested against it; all of them are exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zim.config import MaskedAttentionConfig
from zim.model.fast import tracing
from zim.processor import bfloat16_units

#: a cell of the attention map covers this many pixels of the model frame
STRIDE = 16


def relative_positions(table: Tensor, queries: int, keys: int) -> Tensor:
    """Look up relative position embeddings for one axis.

    Args:
        table: ``(2 * n - 1) d``, trained for a grid of side n; interpolated linearly for others.
        queries: number of query positions.
        keys: number of key positions.

    Returns:
        ``queries keys d``.
    """
    length = 2 * max(queries, keys) - 1
    if table.shape[0] != length:
        resized = F.interpolate(table.float().T[None], size=length, mode="linear")
        table = resized[0].T.to(table.dtype)
    at, to = (torch.arange(n, device=table.device, dtype=torch.float32) for n in (queries, keys))
    at, to = at[:, None] * max(keys / queries, 1.0), to[None] * max(queries / keys, 1.0)
    offset = (at - to) + (keys - 1) * max(queries / keys, 1.0)
    return table[offset.long()]


def rel_pos_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Attend within a grid with SAM's decomposed relative position bias.

    Args:
        q: ``b heads n d`` queries, ``n = h * w`` in row-major order; k and v have the same shape.
        k: keys.
        v: values.
        rel_h: ``h h d`` embeddings of vertical offsets (:func:`relative_positions`).
        rel_w: ``w w d`` embeddings of horizontal offsets.
        grid: ``(h, w)``.

    Returns:
        ``b heads n d``.
    """
    h, w = grid
    b, heads, n, d = q.shape
    logits = (q * d**-0.5) @ k.transpose(-2, -1)
    cells = q.reshape(b, heads, h, w, d)
    bias_h = torch.einsum("bnhwd,hkd->bnhwk", cells, rel_h)
    bias_w = torch.einsum("bnhwd,wkd->bnhwk", cells, rel_w)
    logits = logits.view(b, heads, h, w, h, w)
    logits = logits + bias_h[..., :, None] + bias_w[..., None, :]
    weights = logits.view(b, heads, n, n).softmax(-1, dtype=torch.float32).to(v.dtype)
    return weights @ v


def bias_terms(
    q: Tensor, rel_h: Tensor, rel_w: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the two parts the bias of :func:`rel_pos_attention` is the sum of.

    Returns:
        ``b heads h w h`` over key rows and ``b heads h w w`` over key columns.
    """
    h, w = grid
    b, heads, _, d = q.shape
    cells = q.reshape(b, heads, h, w, d)
    # one matrix product per query row (column), since all its queries share an offset table
    rows = cells.permute(2, 0, 1, 3, 4).reshape(h, -1, d) @ rel_h.transpose(1, 2)
    columns = cells.permute(3, 0, 1, 2, 4).reshape(w, -1, d) @ rel_w.transpose(1, 2)
    rows = rows.view(h, b, heads, w, h).permute(1, 2, 0, 3, 4)
    return rows, columns.view(w, b, heads, h, w).permute(1, 2, 3, 0, 4)


def folded_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Do what :func:`rel_pos_attention` does with the bias inside a longer dot product.

    The bias of a query is one number per key row plus one per key column. Appended to the query,
    and as ones at a key's row and column appended to the key, they come out of the product itself:
    ``[q, rows, columns] . [k, e_row, e_column]``. The n x n bias never exists, and any fused
    attention kernel will do. Widths are filled up to a multiple of 32 (64 + 14 + 14 to 96).
    """
    h, w = grid
    b, heads, n, d = q.shape
    spare = -(d + h + w) % 32
    # the kernel scales the whole product, so the bias is made larger by as much
    rows, columns = bias_terms(q, rel_h * d**0.5, rel_w * d**0.5, grid)
    zero = q.new_zeros(())
    parts = [q.reshape(b, heads, h, w, d), rows, columns, zero.expand(b, heads, h, w, spare)]
    row = torch.eye(h, dtype=k.dtype, device=k.device).repeat_interleave(w, 0)
    column = torch.eye(w, dtype=k.dtype, device=k.device).repeat(h, 1)
    place = F.pad(torch.cat([row, column], 1), (0, spare))
    # kernels want one width for all three; the zeros appended to v are cut off again
    out = F.scaled_dot_product_attention(
        torch.cat(parts, -1).view(b, heads, n, d + h + w + spare),
        torch.cat([k, place.expand(b, heads, -1, -1)], -1),
        torch.cat([v, zero.expand(b, heads, n, h + w + spare)], -1),
        scale=d**-0.5,
    )
    return out[..., :d]


def sliced_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    grid: tuple[int, int],
    *,
    limit: int = 1 << 24,
) -> Tensor:
    """Do what :func:`rel_pos_attention` does, a slice of the bias at a time.

    In float32, where the longer product of :func:`folded_attention` costs more than it saves, the
    bias is written out for a few windows, or a few rows of queries of one head, and handed to the
    fused kernel as a mask.

    Args:
        q: as there, as are the other tensors.
        k: keys.
        v: values.
        rel_h: vertical offsets.
        rel_w: horizontal offsets.
        grid: ``(h, w)``.
        limit: bytes of bias that exist at a time.
    """
    h, w = grid
    b, heads, n, d = q.shape
    rows, columns = bias_terms(q, rel_h, rel_w, grid)
    rows, columns = rows.reshape(b, heads, n, h, 1), columns.reshape(b, heads, n, 1, w)
    out = q.new_empty(b, n, heads, d).transpose(1, 2)
    row_bytes = n * q.element_size()
    whole = max(1, limit // (row_bytes * n * heads))
    if row_bytes * n * heads <= limit:
        slices = [(slice(i, i + whole), slice(None), slice(None)) for i in range(0, b, whole)]
    else:
        step = max(1, limit // row_bytes)
        slices = [
            (slice(i, i + 1), slice(j, j + 1), slice(start, start + step))
            for i in range(b)
            for j in range(heads)
            for start in range(0, n, step)
        ]
    for some, head, queries in slices:
        bias = (rows[some, head, queries] + columns[some, head, queries]).flatten(-2)
        out[some, head, queries] = F.scaled_dot_product_attention(
            q[some, head, queries], k[some, head], v[some, head], attn_mask=bias
        )
    return out


def flex_rel_pos_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Do what :func:`rel_pos_attention` does with FlexAttention, compiled outside the CPU."""
    h, w = grid
    b, heads, n, _ = q.shape
    rows, columns = bias_terms(q, rel_h, rel_w, grid)
    rows, columns = rows.reshape(b, heads, n, h), columns.reshape(b, heads, n, w)

    def add_bias(score: Tensor, i: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + rows[i, head, query, key // w] + columns[i, head, query, key % w]

    return _flex(compiled=q.device.type != "cpu")(q, k, v, score_mod=add_bias)


@functools.cache
def _flex(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


RelPosAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[int, int]], Tensor]

#: what ``ImageEncoder.attention`` may be, beside "auto"
REL_POS_FORMS: dict[str, RelPosAttention] = {
    "reference": rel_pos_attention,
    "folded": folded_attention,
    "sliced": sliced_attention,
    "flex": flex_rel_pos_attention,
}


@torch.compiler.assume_constant_result  # a compiler would trace reading what Linux says
def _matrix_units() -> bool:
    return bfloat16_units() == "matrix"


def fastest_form(device: torch.device, dtype: torch.dtype) -> str:
    """Return the form of :data:`REL_POS_FORMS` that was measured fastest.

    On a CPU with matrix units (AMX, bfloat16) the longer product costs little; without them the
    product is what takes the time (``benchmarks/encoder.py``).
    """
    if device.type == "cuda":
        return "folded"
    if device.type == "cpu":
        return "folded" if dtype == torch.bfloat16 and _matrix_units() else "sliced"
    return "reference"


@dataclass(frozen=True)
class PromptAttention:
    """Where a prompt lets tokens look (paper Eq. 4 and 5), flattened over image cells.

    Attributes:
        gain: ``b n`` in [0, 1], the Gaussian M^p of positive points; None where not used.
        inside: ``b n`` bool, the box M^b (False means minus infinity); None where not used.
    """

    gain: Tensor | None
    inside: Tensor | None


def point_map(
    points: Tensor, use: Tensor, grid: tuple[int, int], sigma: float, stride: int = STRIDE
) -> Tensor:
    """Draw the Gaussian of Eq. 5: one bump per point, merged by maximum, peak 1.

    Args:
        points: ``b n 2`` pixel coordinates (x, y) in the model frame.
        use: ``b n`` bool, which points are drawn; those outside the grid never are.
        grid: ``(h, w)`` cells.
        sigma: standard deviation in cells.
        stride: pixels per cell.

    Returns:
        ``b h w`` float32; all zero where no point is drawn.
    """
    h, w = grid
    # int() truncates towards zero in the official client, so -0.9 still falls into cell 0
    cell = (points.float() / stride).trunc()
    x, y = cell.unbind(-1)
    use = use & (x >= 0) & (x < w) & (y >= 0) & (y < h)
    scale = -0.5 / sigma**2
    rows = torch.exp(scale * (torch.arange(h, device=cell.device) - y[..., None]) ** 2)
    columns = torch.exp(scale * (torch.arange(w, device=cell.device) - x[..., None]) ** 2)
    bumps = rows[..., :, None] * columns[..., None, :] * use[..., None, None]
    return bumps.amax(1) if bumps.shape[1] else bumps.new_zeros(len(points), h, w)


def box_map(boxes: Tensor, grid: tuple[int, int], stride: int = STRIDE) -> Tensor:
    """Mark the cells a box touches (Eq. 4: True is 0, False is minus infinity).

    Args:
        boxes: ``b 4`` as x0, y0, x1, y1 in the model frame; corners may be swapped.
        grid: ``(h, w)`` cells.
        stride: pixels per cell.

    Returns:
        ``b h w`` bool with at least one cell set.
    """
    h, w = grid
    corners = boxes.float().view(-1, 2, 2)
    low = (corners.amin(1) / stride).trunc()
    high = (corners.amax(1) / stride).trunc() + 1
    size = torch.tensor([w, h], device=boxes.device, dtype=low.dtype)
    low = torch.minimum(low.clamp_min(0), size - 1)
    high = torch.minimum(torch.maximum(high, low + 1), size)
    columns = torch.arange(w, device=boxes.device)
    rows = torch.arange(h, device=boxes.device)
    in_x = (columns >= low[:, :1]) & (columns < high[:, :1])
    in_y = (rows >= low[:, 1:]) & (rows < high[:, 1:])
    return in_y[:, :, None] & in_x[:, None, :]


def prompt_attention(
    points: Tensor, labels: Tensor, grid: tuple[int, int], config: MaskedAttentionConfig
) -> PromptAttention:
    """Turn prompts into attention masks; points and a box together give both.

    Args:
        points: ``b n 2`` pixels in the model frame.
        labels: ``b n``: 1 positive, 0 negative, 2 and 3 box corners, negative numbers are padding.
        grid: ``(h, w)`` cells of the image embedding.
        config: mode, sigma (scaled to the grid: sigma cells of a 64-cell side) and flags.
    """
    if config.mode == "none":
        return PromptAttention(None, None)
    drawn = (labels == 1) | ((labels == 0) if config.negative_points else False)
    gain: Tensor | None = None
    # asking whether any point is drawn would make a GPU wait
    if points.device.type != "cpu" or tracing() or drawn.any():
        gain = point_map(points, drawn, grid, config.sigma * max(grid) / 64)
        # Prompts without a drawn point are left alone, they must not be dimmed everywhere.
        gain = torch.where(drawn.any(1)[:, None, None], gain, torch.ones_like(gain)).flatten(1)
    first, last = labels == 2, labels == 3
    has_box = first.any(1) & last.any(1)
    boxes = torch.cat([_pick(points, first), _pick(points, last)], 1)
    inside = box_map(boxes, grid) | ~has_box[:, None, None]
    return PromptAttention(gain, inside.flatten(1))


def _pick(points: Tensor, chosen: Tensor) -> Tensor:
    return (points * chosen[..., None]).sum(1)


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: PromptAttention | None = None,
    mode: str = "none",
    cells: str = "keys",
    present: Tensor | None = None,
) -> Tensor:
    """Attention with ZIM's prompt masks (Eq. 5) and padding.

    Args:
        q: ``b heads n d``; k and v: ``b heads m d``.
        k: keys.
        v: values.
        mask: maps over image cells; None attends everywhere.
        mode: ``paper`` multiplies the logits by the point Gaussian, ``log_bias`` adds its log.
        cells: which side the image cells are on, ``keys`` (token-to-image) or ``queries``.
        present: ``b m`` bool, False for keys that are padding.

    Returns:
        ``b heads n d``.
    """
    logits = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
    dead: Tensor | None = None
    if mask is not None and mode != "none":
        axis = (
            (slice(None), None, None) if cells == "keys" else (slice(None), None, slice(None), None)
        )
        if mask.gain is not None:
            gain = mask.gain[axis]
            logits = logits * gain if mode == "paper" else logits + gain.clamp_min(1e-6).log()
        if mask.inside is not None:
            inside = mask.inside[axis]
            if cells == "keys":
                logits = logits.masked_fill(~inside, float("-inf"))
            else:
                dead = ~inside  # a cell outside the box receives nothing from any token
    if present is not None:
        logits = logits.masked_fill(~present[:, None, None], float("-inf"))
    out = logits.softmax(-1).to(v.dtype) @ v
    return out if dead is None else out.masked_fill(dead, 0)
