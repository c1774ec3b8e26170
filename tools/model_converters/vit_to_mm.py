#!/usr/bin/env python
"""Convert a plain vision transformer of timm, transformers, open_clip or its authors for the configs of this project.

    python tools/model_converters/vit_to_mm.py dinov3-vitl16/ checkpoints/dinov3_l.pth
    python tools/model_converters/vit_to_mm.py mae_pretrain_vit_large.pth mae_l.pth --config configs/mae_l_ade20k_512.py

Reads ViT, MAE, DeiT, DINOv2, DINOv3, CLIP's image encoder and SAM 3's: a .safetensors, .bin, .pth or .pt file, the
index of several, or a folder as transformers writes it, without running code in them.  Every key is mapped or dropped
on purpose; otherwise no file is written.  With --config the result is checked against that config's model, positions
and patches are resampled to it, and the names and colours of its classes are stored, for drawings.  A classifier's head
is kept for the config of a classifier.
"""
import argparse

from apt_dense.converting import check_target, converter_options, read_config, report, run, write_converted
from apt_dense.core.checkpoint_folders import read_checkpoint
from apt_dense.core.vit_conversion import convert_vit
from apt_dense.core.vit_keys import FAMILIES


def parse_args() -> argparse.Namespace:
    parser = converter_options(__doc__)
    parser.add_argument('--family', choices=['auto', *FAMILIES], default='auto',
                        help='default: recognised from the keys')
    parser.add_argument('--head', choices=['auto', 'keep', 'drop'], default='auto',
                        help="a classifier's last layer; default: kept for a config that has one")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_target(args)
    checkpoint = read_checkpoint(args.source, args.weights)
    shapes, classes = read_config(args.config)
    head = dict(auto=None, keep=True, drop=False)[args.head]
    conversion = convert_vit(checkpoint.state_dict, args.family, shapes, head)
    write_converted(args, conversion, classes, family=conversion.family, names_of=conversion.source,
                    entry=checkpoint.entry)
    print(report(conversion, f'family:      {conversion.family}, {conversion.class_name}; names of '
                 f'{conversion.source}', checkpoint.entry, checkpoint.others))
    print(f'written:     {args.target}')


if __name__ == '__main__':
    run(main)
