#!/usr/bin/env python
"""Convert an official EVA-02 checkpoint for the configs of this project.

    python tools/model_converters/eva02_to_mm.py eva02_L_coco_sys.pth checkpoints/eva02_l_coco.pth
    python tools/model_converters/eva02_to_mm.py eva02_L_pt_m38m_p14to16.pt checkpoints/eva02_L_pt_m38m_p14to16.pth

Reads detection (detectron2), segmentation (mmsegmentation) and pre-trained files, .pth, .pt or .safetensors, without
running code in them.  Every key is mapped or dropped on purpose; otherwise no file is written.  With --config the
result is checked against that config's model, positions and patches are resampled to it, and the names and colours of
its classes are stored, for drawings.
"""
import argparse
import sys
from pathlib import Path

import torch

from apt_dense.core.checkpoint_files import load_official
from apt_dense.core.conversion import Conversion, convert
from apt_dense.core.eva02_keys import TASKS
from apt_dense.core.files import check_target, write_atomically
from apt_dense.extras import from_extra


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, metavar='SRC')
    parser.add_argument('target', type=Path, metavar='DST')
    parser.add_argument('--task', choices=['auto', *TASKS], default='auto', help='default: recognised from the keys')
    parser.add_argument('--config', help='check names and shapes against this model, store its classes')
    parser.add_argument('--weights', metavar='ENTRY', help="which entry of the file to take, such as 'model_ema'")
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    return parser.parse_args()


def read_config(config: str) -> tuple[dict, dict]:
    """Names and shapes of a config's model, which takes no memory; its dataset's classes and palette."""
    import torch
    with from_extra('mm'):
        from mmengine.registry import DATASETS, MODELS, DefaultScope

    from apt_dense.mm import compat
    from apt_dense.mm.cli.config_files import read_config as read_any
    compat.filter_library_warnings()
    cfg = read_any(config)
    cfg.model.pop('trainable', None)  # it logs what is trained
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        with torch.device('meta'):
            shapes = {name: tensor.shape for name, tensor in MODELS.build(cfg.model).state_dict().items()}
        metainfo = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True)).metainfo
    return shapes, {name: metainfo[name] for name in ('classes', 'palette') if name in metainfo}


def report(conversion: Conversion, entry: str, others: list[str]) -> str:
    """What became of the file, in lines."""
    parameters = sum(tensor.numel() for tensor in conversion.state_dict.values())
    lines = [f'task:        {conversion.task}', f'taken from:  {entry or "the whole file"}',
             f'mapped:      {len(conversion.mapped)} keys, {parameters / 1e6:.1f} M values',
             f'dropped:     {len(conversion.dropped)} keys without a counterpart here'
             + (f': {", ".join(conversion.dropped[:6])}{", ..." if len(conversion.dropped) > 6 else ""}'
                if conversion.dropped else ''),
             'left over:   none']
    lines += [f'resampled:   {line}' for line in conversion.resampled]
    if others:
        lines.append(f'not used:    entries {", ".join(others)}')
    if conversion.absent:
        lines.append(f'not in it:   {", ".join(conversion.absent)}')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    if args.target.exists() and args.source.exists() and args.target.samefile(args.source):
        raise ValueError(f'SRC and DST are the same file, {args.source}')
    if args.target.exists() and not args.force:
        raise ValueError(f'{args.target} exists: remove it, or replace it with --force')
    check_target(args.target)
    state_dict, entry, others = load_official(args.source, args.weights)
    shapes, classes = read_config(args.config) if args.config else (None, {})
    conversion = convert(state_dict, args.task, shapes)
    meta = dict(converted_from=args.source.name, task=conversion.task, entry=entry)
    if classes:
        meta['dataset_meta'] = classes
    content = dict(meta=meta, state_dict=conversion.state_dict)
    write_atomically(args.target, lambda file: torch.save(content, file))
    print(report(conversion, entry, others))
    print(f'written:     {args.target}')


if __name__ == '__main__':
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        print(f'error: {error}\nNothing was written.', file=sys.stderr)
        sys.exit(2)
