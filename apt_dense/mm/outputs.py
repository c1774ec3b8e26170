"""What a test writes and draws: the options of tools/test.py."""
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

from apt_dense.mm.launch import LaunchError, scope_of

VISUALIZATION = {
    'mmdet': ('DetVisualizationHook', 'DetLocalVisualizer'),
    'mmseg': ('SegVisualizationHook', 'SegLocalVisualizer'),
}


def set_visualization(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Draw the predictions for every test image: on the screen, into a directory, or both.

    Detection writes WORK_DIR/TIMESTAMP/show_dir/NAME, segmentation show_dir/vis_data/vis_image/NAME.  Deviation from
    mmsegmentation, whose hook draws every 50th image: all of them.

    Args:
        wait_time: seconds that each picture stays on the screen.

    Raises:
        LaunchError: if default_scope is neither 'mmdet' nor 'mmseg', or a segmentor's pictures are to be shown and
            written at once, for which mmsegmentation's hook has no way.
    """
    scope = scope_of(cfg)
    if scope == 'mmseg' and show and show_dir:
        raise LaunchError('--show with --show-dir: mmsegmentation shows pictures or writes them, remove one of the two')
    hook_type, visualizer_type = VISUALIZATION[scope]
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hook = hooks.visualization = hooks.get('visualization') or ConfigDict(type=hook_type)
    hook.update(draw=True, show=show, wait_time=wait_time)
    if not cfg.get('visualizer'):
        cfg.visualizer = dict(type=visualizer_type, vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
    if scope == 'mmseg':
        hook.interval = 1
        if show_dir:
            cfg.visualizer.save_dir = show_dir
    elif show_dir:
        hook.test_out_dir = show_dir


def set_output(cfg: Config, out: str) -> None:
    """Write the predictions of a test: detection into a pickle file, segmentation as label maps into a directory.

    Raises:
        LaunchError: if a detector's file is not a .pkl or .pickle, or a segmentor has no IoUMetric to write the maps.
    """
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    if scope_of(cfg) == 'mmdet':
        if not out.endswith(('.pkl', '.pickle')):
            raise LaunchError(f'--out {out}: the predictions of a detector are written to a file named *.pkl')
        cfg.test_evaluator = [*metrics, dict(type='DumpDetResults', out_file_path=out)]
        return
    writers = [metric for metric in metrics if metric.get('type') == 'IoUMetric']
    if not writers:
        raise LaunchError('--out needs an IoUMetric in test_evaluator: it writes the label maps')
    writers[0].output_dir = out


def check_label_maps(cfg: Config) -> None:
    """Check that a segmentor's test has label maps to compare with, or asks for none.

    Raises:
        LaunchError: if the pipeline loads no label maps and a metric wants them, or predictions are only to be written
            and --out does not say where.
    """
    if scope_of(cfg) != 'mmseg':
        return
    loads = any('Label' in str(step.get('type')) or 'Annotations' in str(step.get('type'))
                for step in _steps(cfg.test_dataloader.dataset.pipeline))
    for metric in cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]:
        if metric.get('format_only') and not metric.get('output_dir'):
            raise LaunchError('test_evaluator.format_only=True writes label maps and evaluates nothing: say where, '
                              'with --out DIRECTORY')
        if not metric.get('format_only') and not loads:
            raise LaunchError('the test pipeline loads no label maps, so there is nothing to evaluate: set '
                              'test_evaluator.format_only=True and --out DIRECTORY to write predictions only')


def _steps(node: Any) -> Iterator[dict]:
    """The transforms of a pipeline, inside others too."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _steps(item)
    elif isinstance(node, dict):
        yield node
        yield from _steps(node.get('transforms'))


def set_tta(cfg: Config) -> None:
    """Test with the config's test-time augmentation.

    Raises:
        LaunchError: if the config has none.
    """
    absent = [key for key in ('tta_model', 'tta_pipeline') if not cfg.get(key)]
    if absent:
        raise LaunchError(f'--tta: {cfg.filename} has no {", ".join(absent)}; the ADE20K configs do')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
