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

from apt_dense.converting import check_target, converter_options, read_config, report, run, write_converted
from apt_dense.core.checkpoint_files import load_official
from apt_dense.core.conversion import convert
from apt_dense.core.eva02_keys import TASKS


def parse_args() -> argparse.Namespace:
    parser = converter_options(__doc__)
    parser.add_argument('--task', choices=['auto', *TASKS], default='auto', help='default: recognised from the keys')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_target(args)
    state_dict, entry, others = load_official(args.source, args.weights)
    shapes, classes = read_config(args.config)
    conversion = convert(state_dict, args.task, shapes)
    write_converted(args, conversion, classes, task=conversion.task, entry=entry)
    print(report(conversion, f'task:        {conversion.task}', entry, others))
    print(f'written:     {args.target}')


if __name__ == '__main__':
    run(main)
