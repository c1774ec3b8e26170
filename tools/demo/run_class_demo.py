#!/usr/bin/env python
"""Train the demo's dense classifier, fine-tune it with APT for a short time, and compare; `make demo-cls` calls it.

    python tools/demo/run_class_demo.py --work-dir work_dirs/demo_cls

An interrupted run goes on from its last checkpoint.
"""
import argparse
import json
import time
from pathlib import Path

from run_demo import newest, run, set_environment

from apt_dense.extras import from_extra

with from_extra('mm'):
    from mmengine.config import Config
    from mmengine.runner import find_latest_checkpoint

CONFIGS = Path(__file__).parents[2] / 'configs'
DENSE, APT = CONFIGS / 'vit_ti_demo_cls.py', CONFIGS / 'apt_vit_ti_demo_cls.py'
UNMERGED = ['--cfg-options', 'model.backbone.num_scales=1', 'model.backbone.thresholds=()']
NUM_GRIDS = 8


def trained(config: Path, work_dir: Path, *options: object) -> str:
    """Train, or go on; the last checkpoint."""
    run('train.py', config, '--work-dir', work_dir, '--resume', *options)
    return find_latest_checkpoint(str(work_dir))


def tested(config: Path, checkpoint: str, work_dir: Path, *options: object) -> dict[str, float]:
    """Test; the metrics."""
    run('test.py', config, checkpoint, '--work-dir', work_dir, *options)
    return json.loads(newest(path for path in work_dir.glob('*/*.json') if path.stem == path.parent.name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, required=True)
    args = parser.parse_args()
    set_environment()
    start, folder, rows = time.perf_counter(), args.work_dir, {}
    dense = trained(DENSE, folder / 'dense')
    rows['dense'] = tested(DENSE, dense, folder / 'dense_test')
    longer = trained(APT, folder / 'dense_longer', *UNMERGED, f'load_from={dense}')
    rows['dense, trained as long as APT'] = tested(DENSE, longer, folder / 'dense_longer_test')
    rows['Resizing: large patches, untrained'] = tested(APT, dense, folder / 'resizing_test')
    apt = trained(APT, folder / 'apt', '--cfg-options', f'load_from={dense}')
    rows['APT'] = tested(APT, apt, folder / 'apt_test')
    dataset = Config.fromfile(APT).val_dataloader.dataset
    images = sorted(Path(dataset.data_root, dataset.data_prefix.img_path).glob('*/*'))
    images = images[::max(1, len(images) // NUM_GRIDS)][:NUM_GRIDS]
    run('analysis_tools/visualize_patches.py', *images, '--config', APT, '--out-dir', folder / 'patches')

    print(f'\n[demo] took {(time.perf_counter() - start) / 60:.1f} minutes')
    print(f'[demo] {"":36}{"top-1":>8}{"top-5":>8}{"kept tokens":>14}')
    for name, metrics in rows.items():
        print(f'[demo] {name:36}{metrics["accuracy/top1"]:8.1f}{metrics["accuracy/top5"]:8.1f}'
              f'{metrics["test_kept_tokens"]:14.2f}')
    print(f'[demo] checkpoint:    {apt}')
    print(f'[demo] patch grids:   {folder / "patches"}')


if __name__ == '__main__':
    main()
