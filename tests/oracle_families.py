"""The slow, obvious encoders of the other families: plain torch and Python loops, one patch and one token at a time.

As tests/oracle.py, whose tokens, attention and expansion it uses.  A family is described by plain settings, see
``FAMILIES``; nothing of ``apt_dense`` is used.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracle import Token, attention, runs_of, token_list

# prefix: class token, registers; placed: how many of them have a position; table: how positions reach another grid.
FAMILIES = {
    'vit': dict(prefix=1, placed=1, table='bicubic', mlp='gelu', eps=1e-6),
    'dinov2': dict(prefix=5, placed=1, table='bicubic_antialias', mlp='gelu', eps=1e-6),
    'swiglu': dict(prefix=1, placed=1, table='bicubic', mlp='swiglu', eps=1e-6),
    'clip': dict(prefix=1, placed=1, table='bicubic', mlp='quick_gelu', eps=1e-5),
    'dinov3': dict(prefix=5, placed=0, table='none', mlp='gelu', eps=1e-5),
    'sam3': dict(prefix=0, placed=0, table='tiled', mlp='gelu', eps=1e-6)}


def oracle_tokens(state: dict[str, Tensor], x: Tensor, scales: Tensor, family: str, *, patch_size: int, num_scales: int,
                  depth: int, num_heads: int, window_size: int = 0, global_blocks: tuple[int, ...] = (),
                  rope_cells: int = 24, anchor: str = 'corner') -> Tensor:
    """(B, 3, H, W), normalised, and its scale map -> the packed tokens after the last norm: (T, C)."""
    facts = FAMILIES[family]
    tokens = token_list(scales, window_size, num_scales, facts['prefix'])
    rows = _embed(state, x, tokens, facts, patch_size)
    if 'norm_pre.weight' in state:
        rows = _norm(state, 'norm_pre', rows, facts['eps'])
    head_dim = rows.shape[1] // num_heads
    for index in range(depth):
        local = window_size > 0 and index not in global_blocks
        own = {name.removeprefix(f'blocks.{index}.'): value for name, value in state.items()
               if name.startswith(f'blocks.{index}.')}
        turns = [_turns(family, token, scales.shape[1:], window_size if local else 0, head_dim, rope_cells, anchor)
                 for token in tokens]
        rows = _block(own, rows, runs_of(tokens, local), turns, num_heads, facts, halves=family == 'dinov3')
    return _norm(state, 'norm', rows, facts['eps']) if 'norm.weight' in state else rows


def _embed(state: dict[str, Tensor], x: Tensor, tokens: list[Token], facts: dict, patch: int) -> Tensor:
    weight, bias = state['patch_embed.proj.weight'], state.get('patch_embed.proj.bias')
    prefix = [state[name][0] for name in ('cls_token', 'reg_token') if name in state]
    prefix = list(torch.cat(prefix)) if prefix else []
    for index in range(facts['placed']):
        prefix[index] = prefix[index] + state['pos_embed'][0, index]
    grid, rows, turn = (x.shape[2] // patch, x.shape[3] // patch), [], 0
    for token in tokens:
        if token.scale < 0:
            rows.append(prefix[turn % len(prefix)])
            turn += 1
            continue
        side = patch * 2**token.scale
        crop = x[token.image, :, token.y * patch:token.y * patch + side, token.x * patch:token.x * patch + side][None]
        small = F.interpolate(crop, scale_factor=1 / 2**token.scale, mode='bilinear', align_corners=False)
        row = F.conv2d(small, weight, bias)[0, :, 0, 0]
        if token.scale:
            detail = F.conv2d(crop, weight, bias, stride=patch)
            for _ in range(token.scale):
                detail = F.conv2d(detail, state['patch_embed.conv_down.weight'], state['patch_embed.conv_down.bias'], 2)
            row = row + state['patch_embed.zero_mlp.weight'] @ detail[0, :, 0, 0] + state['patch_embed.zero_mlp.bias']
        rows.append(row + _position(state, facts, grid, token) if 'pos_embed' in state else row)
    return torch.stack(rows)


def _position(state: dict[str, Tensor], facts: dict, grid: tuple[int, int], token: Token) -> Tensor:
    """The table at the grid of cells, and from there (bicubic, antialias) at the token's scale."""
    entries = state['pos_embed'][0, facts['placed']:].double()
    side = math.isqrt(len(entries))
    table = entries.T.reshape(1, -1, side, side)
    if facts['table'] == 'tiled':
        table = torch.stack([torch.stack([table[0, :, y % side, x % side] for x in range(grid[1])], 1)
                             for y in range(grid[0])], 1)[None]
    elif (side, side) != grid:
        table = F.interpolate(table, size=grid, mode='bicubic', antialias=facts['table'] == 'bicubic_antialias')
    if token.scale:
        size = (grid[0] >> token.scale, grid[1] >> token.scale)
        # One axis at a time: torch 2.13 gives wrong rows for an antialiased result of width 1.
        table = F.interpolate(table, size=(size[0], grid[1]), mode='bicubic', antialias=True)
        table = F.interpolate(table.mT, size=size[::-1], mode='bicubic', antialias=True).mT
    return table[0, :, token.y >> token.scale, token.x >> token.scale].to(state['pos_embed'].dtype)


def _turns(family: str, token: Token, grid: tuple[int, int], window: int, head_dim: int, rope_cells: int,
           anchor: str) -> list[complex]:
    """cos + i sin of each pair of channels; [] for a family that does not turn."""
    if family not in ('dinov3', 'sam3'):
        return []
    if token.scale < 0:
        return [1] * (head_dim // 2)
    places = token.cells() if anchor == 'interpolated' else [(token.y, token.x)]
    turns = []
    for place in places:
        axes = []
        for cell, side in zip(place, grid, strict=True):
            t, n = (cell % window, window) if window else (cell, side)
            t += (2**token.scale - 1) / 2 if anchor == 'center' else 0
            for pair in range(head_dim // 4):
                share = 4 * pair / head_dim
                angle = (2 * math.pi * (2 * (t + 0.5) / n - 1) / 100**share if family == 'dinov3'
                         else t / n * rope_cells / 10000**share)
                axes.append(complex(math.cos(angle), math.sin(angle)))
        half = head_dim // 4
        turns.append(axes if family == 'dinov3' else axes[half:] + axes[:half])  # SAM 3 has the column first
    return [sum(column) / len(turns) for column in zip(*turns, strict=True)]


def _turn(x: Tensor, turns: list[complex], halves: bool) -> Tensor:
    """One token (heads, head_dim)."""
    turned = list(x.unbind(1))
    for pair, turn in enumerate(turns):
        a, b = (pair, pair + len(turns)) if halves else (2 * pair, 2 * pair + 1)
        turn = complex(turn)
        turned[a], turned[b] = (x[:, a] * turn.real - x[:, b] * turn.imag, x[:, a] * turn.imag + x[:, b] * turn.real)
    return torch.stack(turned, 1)


def _norm(state: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(1, keepdim=True) + eps).sqrt()
    return scaled * state[f'{name}.weight'] + state[f'{name}.bias']


def _block(state: dict[str, Tensor], x: Tensor, runs: list[list[int]], turns: list[list[complex]], num_heads: int,
           facts: dict, halves: bool) -> Tensor:
    def linear(name: str, value: Tensor) -> Tensor:
        return value @ state[f'{name}.weight'].T + state.get(f'{name}.bias', 0)

    y = _norm(state, 'norm1', x, facts['eps'])
    q, k, v = (linear(f'attn.{name}_proj', y).reshape(len(y), num_heads, -1) for name in 'qkv')
    q, k = (torch.stack([_turn(row, turn, halves) for row, turn in zip(part, turns, strict=True)]) for part in (q, k))
    y = linear('attn.proj', attention(q, k, v, runs).reshape(x.shape))
    x = x + y * state.get('ls1.gamma', 1)
    y = _norm(state, 'norm2', x, facts['eps'])
    if facts['mlp'] == 'swiglu':
        gate = linear('mlp.w1', y)
        y = linear('mlp.w3', gate * torch.sigmoid(gate) * linear('mlp.w2', y))
    else:
        hidden = linear('mlp.fc1', y)
        gate = torch.sigmoid(1.702 * hidden) if facts['mlp'] == 'quick_gelu' else (
            (1 + torch.erf(hidden / math.sqrt(2))) / 2)
        y = linear('mlp.fc2', hidden * gate)
    return x + y * state.get('ls2.gamma', 1)
