#!/usr/bin/env python
"""Write the tables of docs/model_zoo.md: a row for each config, computed from the config.

    python tools/analysis_tools/model_zoo.py            # write it
    python tools/analysis_tools/model_zoo.py --check    # status 1 if the page has others

Parameters are those of the model, which is built without memory.  Multiply-adds are the backbone's, exact for a layout
that keeps the wanted share of one input: the square of a detector, a window of a segmentor.  Memory is that of
docs/memory.json, which estimate_memory.py writes.  What is published is a fact of the papers and model cards, and
stands here; so are the licences of the weights.

Each family has two tables for a dataset, figures and commands, which fit into a page of 1280 px beside the
site's two lists: one table for all was twice as wide.
"""
import argparse
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from apt_dense.benchmark.inputs import synthetic_scales
from apt_dense.benchmark.report import rewrite
from apt_dense.core.files import write_atomically
from apt_dense.core.flops import multiply_adds
from apt_dense.core.layout import TokenLayout
from apt_dense.core.vit import PackedViT
from apt_dense.extras import from_extra

with from_extra('mm'):
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    import apt_dense.mm  # noqa: F401

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs/model_zoo.md'
KEPT = (1.0, 0.7, 0.5)
# Dense and APT (short fine-tuning): box mAP on COCO, mIoU on ADE20K.  The dense figures are those of EVA-02's model
# cards, the others of the APT paper, which has none for the base model on ADE20K.
PUBLISHED = {
    'eva02_b_coco': ('58.93', '58.79'), 'eva02_l_coco': ('62.28', '62.07'), 'eva02_b_ade20k_512': ('55.25', None),
    'eva02_l_ade20k_512': ('59.77', '59.70'), 'eva02_l_ade20k_640': ('60.05', '60.01'),
}
# Family -> licence of its weights; docs/model_zoo.md says where it is said.
FAMILIES = {'eva02': 'Apache-2.0', 'dinov3': 'DINOv3 License', 'dinov2': 'Apache-2.0', 'mae': 'CC-BY-NC 4.0',
            'vit': '-'}  # of the file that is chosen
NONE = '-'
TITLES = {'eva02': 'EVA-02', 'dinov3': 'DINOv3', 'dinov2': 'DINOv2', 'mae': 'MAE', 'vit': 'ViT',
          'coco': 'COCO', 'ade20k': 'ADE20K', 'in1k': 'ImageNet'}
KINDS = {'': 'short, added parameters', 'entire': 'short, entire model', 'full': 'full, from pre-training',
         '24gb': 'short, on 24 GB'}
FIGURES = ('config', 'training', 'px', 'params', 'trained', 'published', 'G at 1', '0.7', '0.5', 'GB')
COMMANDS = ('command', 'licence')


class Row(NamedTuple):
    """One config: what stands in its name."""
    path: Path
    apt: bool
    model: str
    kind: str

    @classmethod
    def of(cls, path: Path) -> 'Row | None':
        """None for the demos' configs."""
        families = '|'.join(FAMILIES)
        shape = rf'(apt_)?((?:{families})_[blh]_(?:coco|ade20k|in1k)(?:_\d+)?)(?:_(\w+))?'
        found = re.fullmatch(shape, path.stem)
        return found and cls(path, bool(found[1]), found[2], found[3] or '')

    @property
    def training(self) -> str:
        if not self.apt:
            return 'dense twin' + (f', {self.kind}' if self.kind else '')
        # The added parameters alone are EVA-02's.
        return KINDS[self.kind or ('' if self.model.startswith('eva02') else 'entire')]

    @property
    def published(self) -> str:
        """'-' for what the papers do not have: they fine-tune for the short time, at the official size."""
        value = None if self.kind in ('full', '24gb') else PUBLISHED.get(self.model, (None, None))[self.apt]
        return NONE if value is None else f'{value} {"mAP" if "coco" in self.model else "mIoU"}'

    @property
    def family(self) -> str:
        return self.model.partition('_')[0]

    @property
    def group(self) -> str:
        """Family and dataset, the heading that it stands under."""
        return f'{TITLES[self.family]} on {TITLES[self.model.split("_")[2]]}'

    @property
    def licence(self) -> str:
        """Of the weights that it starts from; a classifier's full training starts from MAE's."""
        return FAMILIES['mae' if self.family == 'vit' and self.kind == 'full' else self.family]

    @property
    def command(self) -> str:
        """Dense models whose weights are published are tested, the others trained; short fine-tuning wants a model."""
        if not self.apt and self.family == 'eva02':
            return f'`apt-dense test {self.path.stem} FILE`'
        start = 'DENSE' if self.apt else 'FILE' if self.family == 'vit' else ''
        source = f' --cfg-options load_from={start}' if start and self.kind != 'full' else ''
        return f'`apt-dense train {self.path.stem} --amp{source}`'


def rows() -> Iterator[Row]:
    """Of all configs: by family and dataset, then by model, the dense twin first."""
    found = filter(None, map(Row.of, (ROOT / 'configs').glob('*.py')))
    known = list(PUBLISHED)
    yield from sorted(found, key=lambda row: (
        known.index(row.model) if row.model in known else len(known), list(FAMILIES).index(row.family),
        row.group, row.model, row.apt, list(KINDS).index(row.kind)))


def count_multiply_adds(backbone: PackedViT, size_px: int, kept: float) -> int:
    """Of one square input of which a share of the tokens is kept, padding and class token included."""
    side = size_px // backbone.patch_size
    scales = synthetic_scales(kept, side, side, backbone.num_scales)[None]
    layout = TokenLayout.from_scales(scales, backbone.window_size, backbone.num_scales, backbone.num_prefix)
    return multiply_adds(backbone, layout).total


def memory_of(config: str, size_px: int, parameters: int, with_cp: bool, counted: dict[str, dict]) -> str:
    """One image in GB, with or without with_cp.

    Raises:
        ValueError: for a config that was not counted, or was another model when it was.
    """
    figures = counted.get(config)
    if figures is None or (figures['size_px'], figures['parameters']) != (size_px, parameters):
        raise ValueError(f'docs/memory.json has no figures of {config} at {size_px} px: count them, '
                         f'estimate_memory.py configs/{config}.py PHOTO --save docs/memory.json')
    blocks = figures['blocks_with_cp' if with_cp else 'blocks']
    return f'{(figures["weights"] + blocks + figures["rest"]) / 1e9:.1f}'


def figures_of(row: Row, counted: dict[str, dict]) -> list[str]:
    """A row of the table of figures."""
    cfg = Config.fromfile(row.path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model)
    size_px = cfg.model.backbone.img_size
    sizes = [parameter.numel() for parameter in model.parameters()]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    counts = [f'{count_multiply_adds(model.backbone, size_px, kept) / 1e9:.0f}' if row.apt or kept == 1 else NONE
              for kept in KEPT]
    return [f'`{row.path.stem}`', row.training, str(size_px), f'{sum(sizes) / 1e6:.1f}', f'{trained / 1e6:.1f}',
            row.published, *counts, memory_of(row.path.stem, size_px, sum(sizes), model.backbone.with_cp, counted)]


def markdown(headings: Sequence[str], lines: Iterable[Sequence[str]], num_texts: int) -> str:
    """A table whose first columns are texts, the others figures."""
    rule = ['---'] * num_texts + ['---:'] * (len(headings) - num_texts)
    return '\n'.join(f'| {" | ".join(line)} |' for line in [headings, rule, *lines])


def tables() -> str:
    """The page's tables, in Markdown."""
    counted = json.loads((ROOT / 'docs/memory.json').read_text(encoding='utf-8'))
    parts = []
    for title, group in itertools.groupby(rows(), lambda row: row.group):
        group = list(group)
        parts += [f'### {title}', markdown(FIGURES, (figures_of(row, counted) for row in group), 2),
                  markdown(COMMANDS, ((row.command, row.licence) for row in group), 2)]
    return '\n\n'.join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; status 1 if the page has other tables')
    args = parser.parse_args(arguments)
    old = PAGE.read_text(encoding='utf-8')
    new = rewrite(old, 'zoo', tables())
    if args.check:
        print(f'{PAGE}: {"as computed" if new == old else "other tables than are computed: run this without --check"}')
        return int(new != old)
    write_atomically(PAGE, new)
    print(f'{PAGE}: written')
    return 0


if __name__ == '__main__':
    sys.exit(main())
