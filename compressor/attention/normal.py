"""What an attention's weights alone prove to be surplus, moved into dimensions and heads that nobody reads.

A head's value dimensions matter only through W_o W_v, its query and key dimensions only through [W_q b_q]ᵀ W_k, and
two heads with the same such form attend alike, so that their W_o W_v add up. Rank factorisations on rows (never on a
Gram matrix) bring each product to its rank; what is left over is zero, for every input.

Shape letters: K key / value heads, G query heads for each, D dimensions of a head, E input features, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.algebra.span import Columns, coefficients, spanned
from compressor.attention.dense import DenseAttention

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-6}
"""A row whose residual outside the span of others is below this part of its length is a combination of them."""
PROBES = 4
"""Random vectors on which the bilinear forms of heads are compared."""


def spare_rows(rows: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of (D, E) that others span, the others, and the coefficients (dropped, kept)."""
    x = rows.double().T
    sizes = x.norm(dim=0)
    independent = not len(rows)
    if 0 < len(rows) <= len(x) and bool((sizes > 0).all()):  # no row is nearer to the span of the others than this
        independent = float(torch.linalg.svdvals(x / sizes)[-1]) > tolerance
    if independent:
        return torch.arange(0), torch.arange(len(rows)), x.new_zeros(0, len(rows))
    tap = Columns(x, torch.zeros(len(rows), dtype=x.dtype), sizes, torch.ones(len(rows), dtype=torch.bool))
    dropped, _ = spanned([tap], torch.arange(len(rows)), tolerance)
    kept = torch.tensor([d for d in range(len(rows)) if d not in set(dropped.tolist())], dtype=torch.long)
    return dropped, kept, coefficients(tap, dropped, kept, tolerance)


def ranked(left: Tensor, right: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor, int]:
    """Factors of the same leftᵀ right, both (D, ·), whose rows from the rank on are zero; the rank is returned last.

    The last column of `left` is a constant's: rows of `left` need to be combinations of others without it only, and
    what it lacks then, times `right`, is returned third (·,): leftᵀ right is the same but for that in its last row.
    """
    left, right = left.clone(), right.clone()
    size = len(left)
    dropped, kept, share = spare_rows(left[:, :-1], tolerance)
    offset = left[dropped, -1] - share @ left[kept, -1]
    constant = offset @ right[dropped]
    right[kept] += share.T @ right[dropped]
    left, right = left[kept], right[kept]
    dropped, kept, share = spare_rows(right, tolerance)
    left[kept] += share.T @ left[dropped]
    left, right = left[kept], right[kept]
    rank = len(left)
    fill = size - rank
    return (
        torch.cat([left, left.new_zeros(fill, left.shape[1])]),
        torch.cat([right, right.new_zeros(fill, right.shape[1])]),
        constant,
        rank,
    )


class _Factors:
    """The weights of one attention in float64, by key / value head: `k`, `v` (K, D, E + 1) with the bias last, `q`
    (K, D, G·(E + 1)) and `o` (K, D, G·O) side by side for the G query heads that share it.
    """

    def __init__(self, attention: DenseAttention, reader: nn.Linear) -> None:
        self.shared = attention.shared
        self.fixed = attention.fixed is not None or attention.cap is not None  # a cap feels the keys' bias
        self.together = attention.normed_together
        self.heads = len(attention.scale) // self.shared
        self.scale = attention.scale.double().cpu()
        self.k, self.v = (self._read(layer) for layer in (attention.k, attention.v))
        self.q = self._beside(self._read(attention.q, self.shared))
        self.o = self._beside(reader.weight.detach().double().cpu().T.unflatten(0, (self.heads * self.shared, -1)))
        added = attention.per_head()
        self.added = None if added is None else added.detach().double().cpu()

    def _read(self, layer: nn.Linear, times: int = 1) -> Tensor:
        weight = layer.weight.detach().double().cpu()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().cpu()
        return torch.cat([weight, bias[:, None]], 1).unflatten(0, (self.heads * times, -1)).clone()

    def _beside(self, heads: Tensor) -> Tensor:
        return heads.unflatten(0, (self.heads, -1)).transpose(1, 2).flatten(2).clone()

    def apart(self, factor: Tensor) -> Tensor:
        """(K, D, G·X) -> (K·G·D, X): rows as a layer has them."""
        return factor.unflatten(2, (self.shared, -1)).transpose(1, 2).flatten(0, 2)

    def _forms(self) -> list[Tensor]:
        """(K, ·) what the logits of a head depend on. The key's bias moves all logits of a query alike: ignored,
        but where more is done with it (see `DenseAttention.fixed`).
        """
        scale = self.scale.reshape(self.heads, 1, -1, 1)
        q = (scale * self.q.unflatten(2, (self.shared, -1))).flatten(2)
        added = [] if self.added is None else [self.added.reshape(self.heads, -1)]
        if self.fixed:
            return [q.flatten(1), self.k.flatten(1), *added]
        generator = torch.Generator().manual_seed(1)
        key = torch.randn(self.k.shape[2] - 1, PROBES, generator=generator, dtype=torch.float64)
        return [torch.einsum("hde,hdf,fp->hep", q, self.k[..., :-1], key).flatten(1), *added]

    def alike(self, tolerance: float) -> list[list[int]]:
        """Heads that attend alike, together; each by itself where none may go."""
        if self.together:
            return [[head] for head in range(self.heads)]
        forms = [(form, form.norm(dim=1)) for form in self._forms()]

        def same(one: int, other: int) -> bool:
            return all(
                float((form[one] - form[other]).norm()) <= tolerance * max(float(sizes[one]), float(sizes[other]))
                for form, sizes in forms
            )

        groups: list[list[int]] = []
        for head in range(self.heads):
            group = next((group for group in groups if same(head, group[0])), None)
            if group is None:
                groups.append([head])
            else:
                group.append(head)
        return groups


def concentrate(attention: DenseAttention, reader: nn.Linear) -> bool:
    """Move everything surplus in `attention` (changed in place) into trailing zero dimensions and zero heads.

    `reader` is the linear layer that reads the heads (`attention.out`, or one elsewhere), changed as well; it gains a
    bias where a constant needs one. The function stays the same up to rounding. Nothing is changed, and False
    returned, where no head and no dimension of all heads at once would become surplus.
    """
    tolerance = TOLERANCE[torch.float64 if reader.weight.dtype == torch.float64 else torch.float32]
    factors = _Factors(attention, reader)
    size = factors.v.shape[1]
    constant = torch.zeros(len(reader.weight), dtype=torch.float64)
    value_ranks, logit_ranks = [0] * factors.heads, [0] * factors.heads
    for group in factors.alike(tolerance):
        parts = [group]
        left, right, shift, rank = ranked(factors.v[group].flatten(0, 1), factors.o[group].flatten(0, 1), tolerance)
        if rank > (len(group) - 1) * size:  # all of these heads are needed: each by itself
            parts = [[head] for head in group]
        for part in parts:
            if part != group:
                left, right, shift, rank = ranked(factors.v[part[0]], factors.o[part[0]], tolerance)
            factors.v[part], factors.o[part] = (x.unflatten(0, (len(part), -1)) for x in (left, right))
            constant += shift.unflatten(0, (factors.shared, -1)).sum(0)
            for place, head in enumerate(part):
                value_ranks[head] = min(max(rank - place * size, 0), size)
    for head in range(factors.heads):
        if factors.together or (factors.fixed and value_ranks[head] > 0):
            logit_ranks[head] = factors.k.shape[1]
        elif value_ranks[head] == 0:
            factors.q[head], factors.k[head] = 0.0, 0.0
        else:
            key, query, _, rank = ranked(factors.k[head], factors.q[head], tolerance)
            factors.q[head], factors.k[head], logit_ranks[head] = query, key, rank
    spare_heads = 0 in value_ranks and not factors.together
    if not spare_heads and max(value_ranks) == size and max(logit_ranks) == factors.k.shape[1]:
        return False
    _write(attention, reader, factors, constant)
    return True


def _write(attention: DenseAttention, reader: nn.Linear, factors: _Factors, constant: Tensor) -> None:
    numbers = {"q": factors.apart(factors.q), "k": factors.k.flatten(0, 1), "v": factors.v.flatten(0, 1)}
    with torch.no_grad():
        for leaf, rows in numbers.items():
            layer: nn.Linear = getattr(attention, leaf)
            layer.weight.copy_(rows[:, :-1])
            if layer.bias is not None:
                layer.bias.copy_(rows[:, -1])
        reader.weight.copy_(factors.apart(factors.o).T)
        if bool(constant.any()):
            if reader.bias is None:
                reader.bias = nn.Parameter(torch.zeros_like(reader.weight[:, 0]), reader.weight.requires_grad)
            reader.bias.add_(constant.to(reader.bias))
