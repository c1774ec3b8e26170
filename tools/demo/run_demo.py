#!/usr/bin/env python
"""Train, evaluate and draw a demo config, and say where everything is; `make demo` calls it.

    python tools/demo/run_demo.py configs/apt_eva02_ti_demo_det.py --work-dir work_dirs/apt_eva02_ti_demo_det

An interrupted run goes on from its last checkpoint.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from apt_dense.extras import from_extra

with from_extra('mm'):
    from mmengine.config import Config
    from mmengine.runner import find_latest_checkpoint

    import apt_dense.mm  # noqa: F401  mmengine knows the package's configs by name
    from apt_dense.mm.cli.device import gpu_signs

TOOLS = Path(__file__).parents[1]
METRICS = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50', 'mIoU', 'mAcc', 'aAcc', 'kept_tokens')
NUM_GRIDS = 8  # validation images whose patch grid is drawn


def run(script: str, *arguments: object) -> float:
    """Run one of the tools; return its seconds.  Exits with the tool's status if it fails."""
    start = time.perf_counter()
    print(f'\n[demo] {script} {" ".join(map(str, arguments))}', flush=True)
    status = subprocess.run([sys.executable, TOOLS / script, *map(str, arguments)]).returncode
    if status:
        sys.exit(status)
    return time.perf_counter() - start


def newest(paths) -> Path:
    return max(paths, key=lambda path: path.stat().st_mtime)


def set_environment() -> None:
    """Of the tools that are started: threads that suit a shared CPU, and no GPU that does not work."""
    # Waiting threads give up their core: where another process wants it, spinning ones slow training down tenfold.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    os.environ.setdefault('OMP_NUM_THREADS', str(min(os.cpu_count() or 1, 4)))
    if not gpu_signs():  # whatever torch is built for: the demo is made for the CPU
        os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('--work-dir', type=Path, required=True)
    args = parser.parse_args()
    set_environment()
    cfg = Config.fromfile(args.config)
    seconds = run('train.py', args.config, '--work-dir', args.work_dir, '--resume')
    checkpoint = find_latest_checkpoint(str(args.work_dir))
    predictions = args.work_dir / 'predictions'
    seconds += run('test.py', args.config, checkpoint, '--work-dir', args.work_dir, '--show-dir', predictions)
    # mmengine names its folders by time; the metrics of a test are a file of the same name inside.
    metrics_file = newest(path for path in args.work_dir.glob('*/*.json') if path.stem == path.parent.name)
    metrics = json.loads(metrics_file.read_text())
    dataset = cfg.val_dataloader.dataset
    folder = Path(dataset.data_root, dataset.data_prefix['img_path' if cfg.default_scope == 'mmseg' else 'img'])
    images = sorted(folder.iterdir())[:NUM_GRIDS]
    grids = args.work_dir / 'patches'
    if cfg.model.backbone.num_scales > 1:
        run('analysis_tools/visualize_patches.py', *images, '--config', args.config, '--out-dir', grids)

    print(f'\n[demo] training and evaluation took {seconds / 60:.1f} minutes')
    for name, value in metrics.items():
        if name.endswith(METRICS):
            print(f'[demo] {name}: {value:.3f}')
    print(f'[demo] checkpoint:             {checkpoint}')
    print(f'[demo] log and scalars:        {metrics_file.parent}')
    print(f'[demo] truth | predictions:    {predictions}')
    if grids.is_dir():
        print(f'[demo] patch grids:            {grids}')


if __name__ == '__main__':
    main()
