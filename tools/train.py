"""Train a detector, a segmentor or a classifier; the options are those of mmdetection's tools/train.py.

A run that was killed goes on with --resume as if nothing had happened.  On SIGTERM or SIGUSR1 the training saves a
checkpoint and exits with status 75.
"""
import argparse
import sys

from apt_dense.mm.cli import launch, precision, start
from apt_dense.mm.cli.dataset_files import check_dataset_files
from apt_dense.mm.fault_tolerance import make_fault_tolerant
from apt_dense.mm.preflight.configs_kinds import check_settings
from apt_dense.mm.preflight.configs_loading import check_loaders
from apt_dense.mm.preflight.run import check_before_start


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--amp', action='store_true',
        help='mixed precision, in validation too: bfloat16; float16 with a loss scaler on GPUs before Ampere')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the learning rate from the config's batch size to this one")
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from this checkpoint, or without a value from the last one in the work directory')
    launch.add_common_arguments(parser)
    launch.add_check_argument(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args)
    check_settings(cfg, 'train', 'val')
    launch.check_trainable(cfg)
    precision.set_amp(cfg, args.amp)
    if args.auto_scale_lr:
        launch.set_auto_scale_lr(cfg)
    launch.check_pretrained(cfg.model)
    check_loaders(cfg, 'train', 'val')
    check_dataset_files(cfg, 'train', 'val')
    make_fault_tolerant(cfg)
    with launch.claim_output_dirs(cfg):
        start.set_start(cfg, args.resume)
        if not args.no_check:
            check_before_start(cfg, ['train', 'val'], later=['test'])
        launch.build_runner(cfg).train()


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
