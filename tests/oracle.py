"""A slow, obvious APT-EVA-02: plain torch and Python loops, one patch and one token at a time.

Written from the paper and the facts of the official code, and independent of ``apt_dense``: it takes a state dict (or
``dict(model.named_parameters())``, for gradients) and the arguments that the model was built with, under their names
there.  The dtype follows the input.
"""
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
DEFAULTS = {
    'patch_size': 16, 'depth': 12, 'num_heads': 12, 'window_size': 32, 'global_block_indexes': (1, 3, 5, 7, 9, 11),
    'out_indices': (-1,), 'with_cls_token': False, 'num_scales': 1, 'thresholds': (), 'scorer': 'entropy',
    'detail_branch': 'zero', 'rope_anchor': 'corner', 'img_mean': MEAN, 'img_std': STD
}


class Token(NamedTuple):
    """A patch of scale s: 2**s cells a side, top-left cell (y, x); a prefix row has scale -1."""
    image: int
    window: tuple[int, int]
    y: int
    x: int
    scale: int

    def cells(self) -> list[tuple[int, int]]:
        """The cells that the patch covers."""
        side = 2**self.scale if self.scale >= 0 else 0
        return [(self.y + dy, self.x + dx) for dy in range(side) for dx in range(side)]


def luma(image: Tensor) -> Tensor:
    """RGB (3, H, W) -> grey (H, W)."""
    return 0.2989 * image[0] + 0.5870 * image[1] + 0.1140 * image[2]


def entropy_of_patch(grey: Tensor, bins: int = 512) -> float:
    """Grey (h, w) in 0..255, float32 -> bits."""
    shares = [count / grey.numel() for count in torch.histc(grey, bins, 0, 255).tolist() if count]
    return -sum(share * math.log2(share) for share in shares)


def laplacian(grey: Tensor) -> Tensor:
    """Grey (H, W) in 0..1 -> absolute response of the 8-connected Laplacian, reflected at the border."""
    height, width = grey.shape
    response = torch.zeros_like(grey)
    for y in range(height):
        for x in range(width):
            around = [grey[_reflect(y + dy, height), _reflect(x + dx, width)] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            response[y, x] = abs(9 * grey[y, x] - sum(around))
    return response


def upsampling_error(image: Tensor, factor: float) -> Tensor:
    """(3, H, W) in 0..1 -> (H, W): mean squared error after bilinear down- and upsampling."""
    height, width = image.shape[1:]
    small = F.interpolate(image[None], size=[max(1, int(side * factor)) for side in (height, width)], mode='bilinear')
    return (F.interpolate(small, size=(height, width), mode='bilinear')[0] - image).pow(2).mean(0)


def patch_scores(image: Tensor, scorer: str, patch_size: int, num_scales: int, bins: int = 512) -> list[Tensor]:
    """(B, 3, H, W) in 0..255 -> num_scales maps (B, ceil(H / side), ceil(W / side)), one patch at a time."""
    image = image.float()
    batch, _, height, width = image.shape
    maps = []
    for scale in range(num_scales):
        side = patch_size * 2**scale
        maps.append(torch.zeros(batch, math.ceil(height / side), math.ceil(width / side)))
        for i in range(batch):
            pixels = None if scorer in PRICES else _pixel_scores(image[i], scorer, side)
            for y in range(maps[-1].shape[1]):
                for x in range(maps[-1].shape[2]):
                    if pixels is None:
                        place = y * side, x * side, side
                        maps[-1][i, y, x] = _break_even_price(image[i], place, patch_size // 2, PRICES[scorer])
                    elif scorer.startswith('variance'):
                        patch = variance(image[i], y * side, x * side, side)
                        maps[-1][i, y, x] = _score(patch, f'{scorer}_error_max' if scorer.endswith('max') else scorer,
                                                   side, bins, min(8, patch_size))
                    else:
                        patch = pixels[y * side:(y + 1) * side, x * side:(x + 1) * side]
                        maps[-1][i, y, x] = _score(patch, scorer, side, bins, min(8, patch_size))
    return maps


def _pixel_scores(image: Tensor, scorer: str, side: int) -> Tensor:
    """(3, H, W) -> (H, W): what is reduced over each patch of this side."""
    public = 0.5 if side < 32 * 2**0.5 else 0.25
    if scorer == 'upsampling_error':
        return upsampling_error(image / 255, public)
    if scorer == 'upsampling_error_max':
        return upsampling_error(luma(image)[None] / 255, public)
    if scorer.startswith('resizing_error'):
        return upsampling_error(luma(image)[None] / 255, _resized_by(side))
    if scorer.startswith('laplacian'):
        return laplacian(luma(image) / 255)
    return luma(image)


def _resized_by(side: int) -> float:
    """1/2 for 32 px, 1/4 for 64, 1/8 for 128; other sides as the nearest of them."""
    return 0.5 if side < 32 * 2**0.5 else 0.25 if side < 64 * 2**0.5 else 0.125


def _resizing_distortion(image: Tensor, y: int, x: int, side: int, cell: int, power: float = 1) -> float:
    error = upsampling_error(luma(image)[None] / 255, _resized_by(side)).double()
    return sum((error[a:a + cell, b:b + cell].sum().item() / cell**2)**power for a in range(y, y + side, cell)
               for b in range(x, x + side, cell))


def _variance_distortion(image: Tensor, y: int, x: int, side: int, cell: int) -> float:
    return variance(image, y, x, side).mean().item() * (side // cell)**2


def variance(image: Tensor, y: int, x: int, side: int) -> Tensor:
    """(3, H, W) in 0..255 -> (side, side): squared distance of the colours from their mean over a patch."""
    rows = torch.arange(y, y + side).clamp(max=image.shape[1] - 1)
    cols = torch.arange(x, x + side).clamp(max=image.shape[2] - 1)
    patch = image[:, rows][:, :, cols].double() / 255
    return (patch - patch.mean((1, 2), keepdim=True)).pow(2).mean(0)


PRICES = {'rate_distortion': _resizing_distortion, 'rate_distortion_squared': partial(_resizing_distortion, power=2),
          'variance_price': _variance_distortion}


def _break_even_price(image: Tensor, place: tuple[int, int, int], cell: int, distortion: Callable[..., float]) -> float:
    """The price of a token at which the patch whole costs as much as its best quadtree below, by bisection."""
    top, left, side = place
    whole = {(y, x, s): distortion(image, y, x, s, cell) for s in (side >> n for n in range(10)) if s > cell
             for y in range(top, top + side, s) for x in range(left, left + side, s)}

    def cut(y: int, x: int, side: int, price: float) -> float:
        half = side // 2
        return sum(best(y + dy, x + dx, half, price) for dy in (0, half) for dx in (0, half))

    def best(y: int, x: int, side: int, price: float) -> float:
        return price if side == cell else min(whole[y, x, side] + price, cut(y, x, side, price))

    low, high = 0.0, whole[top, left, side]
    for _ in range(60):
        middle = (low + high) / 2
        cheaper = whole[top, left, side] + middle <= cut(top, left, side, middle)
        low, high = (low, middle) if cheaper else (middle, high)
    return high


def _score(patch: Tensor, scorer: str, side: int, bins: int, block: int) -> float:
    if scorer == 'entropy':
        return entropy_of_patch(patch, bins) if patch.shape == (side, side) else 1e6
    padded = patch.new_zeros(side, side)
    padded[:patch.shape[0], :patch.shape[1]] = patch
    if scorer.endswith('error_max'):
        return max(padded[y:y + block, x:x + block].mean().item() for y in range(0, side, block)
                   for x in range(0, side, block))
    reduce = {'laplacian_max': torch.max, 'laplacian_std': torch.std}.get(scorer, torch.mean)
    return reduce(padded).item()


def _reflect(index: int, length: int) -> int:
    """-1 -> 1, length -> length - 2."""
    return length - 1 - abs(length - 1 - abs(index))


def select_scales(scores: list[Tensor], thresholds: tuple[float, ...]) -> Tensor:
    """S maps of scores, fine to coarse, and S - 1 thresholds -> (B, H, W): the scale of the patch over each cell."""
    scales = torch.zeros(scores[0].shape, dtype=torch.int64)
    batch, height, width = scales.shape
    for i in range(batch):
        for y in range(height):
            for x in range(width):
                for scale in range(len(scores) - 1, 0, -1):  # from the coarsest down: the first that is smooth
                    if scores[scale][i, y >> scale, x >> scale] < thresholds[scale - 1]:
                        scales[i, y, x] = scale
                        break
    return scales


def token_list(scales: Tensor, window_size: int, num_scales: int, num_prefix: int = 0) -> list[Token]:
    """(B, H, W) -> tokens by image, window (raster), root inside the window (raster), Z-order inside the root."""
    batch, height, width = scales.shape
    side_y, side_x = (window_size, window_size) if window_size else (height, width)
    root = 2**(num_scales - 1)
    tokens = []
    for i in range(batch):
        # Among several windows, the prefix of an image is one of its own.
        apart = (-1, -1) if (side_y, side_x) != (height, width) else (0, 0)
        tokens += [Token(i, apart, 0, 0, -1)] * num_prefix
        for wy in range(0, height, side_y):
            for wx in range(0, width, side_x):
                for y in range(wy, wy + side_y, root):
                    for x in range(wx, wx + side_x, root):
                        tokens += [Token(i, (wy, wx), *corner) for corner in _visit(scales[i], y, x, num_scales - 1)]
    return tokens


def _visit(scales: Tensor, y: int, x: int, scale: int) -> Iterator[tuple[int, int, int]]:
    if scales[y, x] == scale:
        yield y, x, scale
    else:
        half = 2**(scale - 1)
        for corner in ((y, x), (y, x + half), (y + half, x), (y + half, x + half)):
            yield from _visit(scales, *corner, scale - 1)


def runs_of(tokens: list[Token], windowed: bool) -> list[list[int]]:
    """The tokens that attend among themselves: lists of indexes, in the order in which they first appear."""
    runs: dict[tuple, list[int]] = {}
    for index, token in enumerate(tokens):
        runs.setdefault((token.image, token.window if windowed else None), []).append(index)
    return list(runs.values())


def attention(q: Tensor, k: Tensor, v: Tensor, runs: list[list[int]]) -> Tensor:
    """(T, heads, head_dim) each -> the same: dense softmax of each run and head."""
    out = torch.zeros_like(q)
    for run in runs:
        for head in range(q.shape[1]):
            weights = torch.softmax(q[run, head] @ k[run, head].T / math.sqrt(q.shape[2]), 1)
            out[run, head] = weights @ v[run, head]
    return out


def rope_angles(token: Token, grid: tuple[int, int], window_size: int, head_dim: int, anchor: str) -> list[float]:
    """Angles of the head_dim / 2 pairs of a token: position t of n is t / n * 16, theta 10000, rows then columns.

    window_size 0 means positions in the image.
    """
    angles = []
    for cell, length in zip((token.y, token.x), grid, strict=True):
        t, n = (cell % window_size, window_size) if window_size else (cell, length)
        if anchor == 'center':
            t = t + (2**token.scale - 1) / 2
        for pair in range(head_dim // 4):
            angles.append(0.0 if token.scale < 0 else t / n * 16 / 10000**(2 * pair / (head_dim // 2)))
    return angles


def rope_turns(token: Token, grid: tuple[int, int], window_size: int, head_dim: int, anchor: str) -> Tensor:
    """cos + i sin of ``rope_angles``; 'interpolated' is the mean of those of the cells of the token."""
    cells = [token._replace(y=y, x=x, scale=0) for y, x in token.cells()] if anchor == 'interpolated' else []
    angles = torch.tensor([rope_angles(one, grid, window_size, head_dim, 'corner' if cells else anchor)
                           for one in cells or [token]], dtype=torch.float64)
    return torch.complex(angles.cos(), angles.sin()).mean(0)


def rotate(x: Tensor, angles: list[float]) -> Tensor:
    """One token (heads, head_dim): turn the pairs (0, 1), (2, 3), ... by their angles."""
    channels = []
    for pair, angle in enumerate(angles):
        a, b = x[:, 2 * pair], x[:, 2 * pair + 1]
        channels += [a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)]
    return torch.stack(channels, 1)


def embed(state: dict[str, Tensor], x: Tensor, tokens: list[Token], settings: dict) -> Tensor:
    """(B, 3, H, W), normalised -> (T, C), positions included."""
    patch, branch = settings['patch_size'], settings['detail_branch']
    proj = state['patch_embed.proj.weight'], state['patch_embed.proj.bias']
    grid = (x.shape[2] // patch, x.shape[3] // patch)
    rows = []
    for token in tokens:
        if token.scale < 0:
            rows.append((state['cls_token'] + state['pos_embed'][:, :1])[0, 0])
            continue
        side = patch * 2**token.scale
        crop = x[token.image, :, token.y * patch:token.y * patch + side, token.x * patch:token.x * patch + side]
        resized = F.interpolate(crop[None], scale_factor=1 / 2**token.scale, mode='bilinear', align_corners=False)
        row = F.conv2d(resized, *proj)[0, :, 0, 0]
        if token.scale > 0 and branch != 'none':
            detail = F.conv2d(crop[None], *proj, stride=patch)
            for _ in range(token.scale):
                detail = F.conv2d(detail, state['patch_embed.conv_down.weight'], state['patch_embed.conv_down.bias'],
                                  stride=2)
            detail = detail[0, :, 0, 0]
            if branch != 'residual':
                detail = state['patch_embed.zero_mlp.weight'] @ detail + state['patch_embed.zero_mlp.bias']
            row = row + detail
        rows.append(row + _position(state['pos_embed'], grid, token))
    return torch.stack(rows)


def _position(pos_embed: Tensor, grid: tuple[int, int], token: Token) -> Tensor:
    """The pre-training table, resampled to the grid of cells, and from there (antialias) to the token's scale."""
    side = math.isqrt(pos_embed.shape[1] - 1)
    table = pos_embed[0, 1:].T.reshape(1, -1, side, side).double()  # in float32 torch is off by 5e-6
    if (side, side) != grid:
        table = F.interpolate(table, size=grid, mode='bicubic', align_corners=False)
    if token.scale:
        size = (grid[0] // 2**token.scale, grid[1] // 2**token.scale)
        # One axis at a time: torch 2.13 gives wrong rows for an antialiased result of width 1.
        table = F.interpolate(table, size=(size[0], grid[1]), mode='bicubic', align_corners=False, antialias=True)
        table = F.interpolate(table.mT, size=size[::-1], mode='bicubic', align_corners=False, antialias=True).mT
    return table[0, :, token.y >> token.scale, token.x >> token.scale].to(pos_embed.dtype)


def block(state: dict[str, Tensor], x: Tensor, runs: list[list[int]], angles: list[list[float]],
          num_heads: int) -> Tensor:
    """(T, C) -> (T, C); ``state`` holds the block's own keys."""

    def norm(name: str, value: Tensor) -> Tensor:
        centred = value - value.mean(1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f'{name}.weight'] + state[f'{name}.bias']

    def linear(name: str, value: Tensor, bias: str | None) -> Tensor:
        return value @ state[f'{name}.weight'].T + (0 if bias is None else state[bias])

    y = norm('norm1', x)
    q, k, v = (linear(f'attn.{name}_proj', y, bias).reshape(len(y), num_heads, -1) for name, bias in
               (('q', 'attn.q_bias'), ('k', None), ('v', 'attn.v_bias')))
    q, k = (torch.stack([rotate(row, angle) for row, angle in zip(part, angles, strict=True)]) for part in (q, k))
    x = x + linear('attn.proj', attention(q, k, v, runs).reshape(x.shape), 'attn.proj.bias')
    y = norm('norm2', x)
    gate = linear('mlp.w1', y, 'mlp.w1.bias')
    hidden = gate * torch.sigmoid(gate) * linear('mlp.w2', y, 'mlp.w2.bias')
    return x + linear('mlp.w3', norm('mlp.ffn_ln', hidden), 'mlp.w3.bias')


def expand(x: Tensor, tokens: list[Token], shape: tuple[int, int, int]) -> Tensor:
    """(T, C) -> (B, C, H, W): each token's value over its cells."""
    rows: list[Tensor | None] = [None] * math.prod(shape)
    for row, token in zip(x, tokens, strict=True):
        for y, cell_x in token.cells():
            index = (token.image * shape[1] + y) * shape[2] + cell_x
            assert rows[index] is None, 'two tokens cover one cell'
            rows[index] = row
    return torch.stack(rows).reshape(*shape, -1).permute(0, 3, 1, 2)


def scale_map(x: Tensor, settings: dict) -> Tensor:
    """(B, 3, H, W), a normalised image of whole grey levels -> (B, H, W)."""
    mean, std = (torch.tensor(settings[key], dtype=torch.float64).reshape(3, 1, 1) for key in ('img_mean', 'img_std'))
    image = (x.detach().double() * std + mean).mul(1000).round() / 1000  # padding is at the mean: three decimals
    patch, num_scales = settings['patch_size'], settings['num_scales']
    return select_scales(patch_scores(image, settings['scorer'], patch, num_scales), settings['thresholds'])


def oracle_backbone(state: dict[str, Tensor], x: Tensor, **arguments) -> tuple[Tensor, ...]:
    """(B, 3, H, W), normalised -> (B, C, H / patch_size, W / patch_size) of each of ``out_indices``.

    Args:
        state: the model's state dict or parameters, in the input's dtype.
        x: an image of whole grey levels, normalised (see ``scale_map``).
        arguments: those of ``APTEVA02``; of those left out, the defaults.
    """
    settings = {**DEFAULTS, **arguments}
    depth, num_heads = settings['depth'], settings['num_heads']
    window = settings['window_size']
    scales = scale_map(x, settings)
    tokens = token_list(scales, window, settings['num_scales'], settings['with_cls_token'])
    head_dim = state['pos_embed'].shape[2] // num_heads
    global_blocks = [index % depth for index in settings['global_block_indexes']]
    y = embed(state, x, tokens, settings)
    outputs = {}
    for index in range(depth):
        local = window > 0 and index not in global_blocks
        angles = [rope_angles(token, scales.shape[1:], window if local else 0, head_dim, settings['rope_anchor'])
                  for token in tokens]
        prefix = f'blocks.{index}.'
        own = {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
        y = block(own, y, runs_of(tokens, local), angles, num_heads)
        outputs[index] = expand(y, tokens, tuple(scales.shape))
    return tuple(outputs[index] for index in sorted(index % depth for index in settings['out_indices']))
