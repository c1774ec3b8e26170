"""Test a detector, a segmentor or a classifier; the options are those of mmdetection's tools/test.py."""
import argparse
import sys

from apt_dense.command_line import between
from apt_dense.core.files import check_folder, check_target
from apt_dense.mm.cli import launch, outputs, precision, start
from apt_dense.mm.cli.dataset_files import check_dataset_files
from apt_dense.mm.preflight.configs_kinds import check_settings
from apt_dense.mm.preflight.configs_loading import check_loaders
from apt_dense.mm.preflight.run import check_before_start


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or an address that mmengine can load')
    parser.add_argument(
        '--out', help='write the predictions: detection and classification, a .pkl file; segmentation, a directory of '
        'PNG label maps')
    parser.add_argument(
        '--tta', action='store_true', help="test-time augmentation: the config's tta_pipeline and tta_model")
    parser.add_argument('--amp', action='store_true', help='mixed precision: bfloat16; float16 on GPUs before Ampere')
    parser.add_argument('--show', action='store_true', help='show the predictions on the screen')
    parser.add_argument('--show-dir', help='draw truth beside predictions into this directory')
    parser.add_argument('--wait-time', type=between(0), default=2, help='seconds that --show keeps a picture')
    launch.add_common_arguments(parser)
    launch.add_check_argument(parser)
    return parser.parse_args()


def check_outputs(args: argparse.Namespace, work_dir: str) -> None:
    """Check before a test, which may take hours, that what it finds can be written."""
    check_folder(work_dir, '--work-dir')
    if args.show_dir:
        check_folder(args.show_dir, '--show-dir')
    if args.out:
        (check_target if args.out.endswith(outputs.PICKLES) else check_folder)(args.out, '--out')


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args)
    if not launch.rank_of(args.launcher):
        check_outputs(args, cfg.work_dir)
    check_settings(cfg, 'test')
    start.set_tested(cfg, args.checkpoint, 'the second argument')
    if args.show or args.show_dir:
        outputs.set_visualization(cfg, args.show, args.show_dir, args.wait_time)
    if args.amp:
        precision.set_test_amp(cfg)
    if args.tta:
        outputs.set_tta(cfg)
    if args.out:
        outputs.set_output(cfg, args.out)
    outputs.keep_folders(cfg)
    outputs.check_label_maps(cfg)
    check_loaders(cfg, 'test')
    check_dataset_files(cfg, 'test')
    if not args.no_check:
        check_before_start(cfg, ['test'])
    launch.build_runner(cfg).test()


if __name__ == '__main__':
    sys.exit(launch.run_tool(main))
