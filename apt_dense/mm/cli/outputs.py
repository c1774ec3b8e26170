"""What a test writes and draws: the options of tools/test.py."""
import os

from mmengine.config import Config, ConfigDict

from apt_dense.mm.cli import pictures  # noqa: F401  (registers what is named here)
from apt_dense.mm.cli.launch import LaunchError, scope_of
from apt_dense.mm.cli.start import SCOPES
from apt_dense.mm.data.output_names import LABEL_MAPS, common_folder
from apt_dense.mm.preflight.datasets import datasets_of, steps_of

PICKLES = ('.pkl', '.pickle')  # of a detector's predictions, and a classifier's
DUMPERS = {'mmdet': 'DumpDetResults', 'mmengine': 'DumpLogits'}
VISUALIZATION = {
    'mmdet': ('DetVisualizationHook', 'DetLocalVisualizer'),
    'mmseg': ('SegVisualizationHook', 'SegLocalVisualizer'),
}


def set_visualization(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Draw the predictions for every test image: on the screen, into a directory, or both.

    Both tasks write show_dir/FOLDERS/NAME, with the image's folders below its data prefix.  Deviation from
    mmsegmentation, whose hook draws every 50th image: all of them.

    Args:
        wait_time: seconds that each picture stays on the screen.

    Raises:
        LaunchError: for a classifier, of which nothing is drawn, or if the pictures would overwrite the images.
    """
    scope = scope_of(cfg)
    if scope not in VISUALIZATION:
        raise LaunchError('--show and --show-dir draw detections and label maps: a classifier has neither, leave them '
                          'out (--out FILE.pkl writes its logits)')
    hook_type, visualizer_type = VISUALIZATION[scope]
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hook = hooks.visualization = hooks.get('visualization') or ConfigDict(type=hook_type)
    if not cfg.get('visualizer'):
        cfg.visualizer = dict(type=visualizer_type, vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
    if show_dir:
        _check_apart(cfg, '--show-dir', show_dir)
        options = dict(pred_score_thr=hook.get('score_thr', 0.3)) if scope == 'mmdet' else {}
        hooks.visualization = dict(
            type='DrawPredictionsHook', out_dir=show_dir, image_root=common_folder(_dataset(cfg)), show=show,
            wait_time=wait_time, loading=_loading_step(cfg), **options)
        return
    hook.update(draw=True, show=show, wait_time=wait_time)
    if scope == 'mmseg':
        hook.interval = 1


def set_output(cfg: Config, out: str) -> None:
    """Write the predictions of a test: detections and logits into a pickle file, label maps into a directory.

    A label map is out/FOLDERS/NAME.png, with the image's folders below its data prefix.

    Raises:
        LaunchError: if a detector's or classifier's file is not a .pkl or .pickle, a segmentor has no IoUMetric to
            write the maps, or they would overwrite the data.
    """
    scope = scope_of(cfg)
    if scope in DUMPERS:
        if not out.endswith(PICKLES):
            raise LaunchError(f'--out {out}: the predictions of a {SCOPES[scope]} are written to a file named *.pkl')
        cfg.test_evaluator = [*_metrics(cfg), dict(type=DUMPERS[scope], out_file_path=out)]
        return
    writers = [metric for metric in _metrics(cfg) if metric.get('type') == 'IoUMetric']
    if not writers:
        raise LaunchError('--out needs an IoUMetric in test_evaluator: it writes the label maps')
    writers[0].output_dir = out
    keep_folders(cfg)


def keep_folders(cfg: Config) -> None:
    """Let label maps that a test writes keep the folders of their images, whether --out or the config asks for them.

    Raises:
        LaunchError: if they would overwrite the data.
    """
    for metric in _metrics(cfg):
        if metric.get('type') == 'IoUMetric' and metric.get('output_dir'):
            _check_apart(cfg, '--out', metric.output_dir)
            from apt_dense.mm import seg  # noqa: F401  (registers it; detection runs without mmsegmentation)
            metric.update(type='FolderIoUMetric', image_root=common_folder(_dataset(cfg)))


def _metrics(cfg: Config) -> list[ConfigDict]:
    metrics = cfg.get('test_evaluator') or []
    return metrics if isinstance(metrics, list) else [metrics]


def _dataset(cfg: Config) -> ConfigDict | None:
    return (cfg.get('test_dataloader') or {}).get('dataset')


def _loading_step(cfg: Config) -> dict | None:
    """The step of the test pipeline that loads the pictures: what is drawn is what the model was given."""
    for source in datasets_of(cfg, 'test'):
        for step in steps_of(source.settings.get('pipeline')):
            if str(step.get('type')).endswith(('LoadImageFromFile', 'LoadCheckedImage')):
                return dict(step)
    return None


def _check_apart(cfg: Config, option: str, folder: str) -> None:
    """Check that files named like the images do not become the images, or their label maps."""
    for taken in (common_folder(_dataset(cfg)), common_folder(_dataset(cfg), LABEL_MAPS)):
        if taken and os.path.realpath(taken) == os.path.realpath(folder):
            raise LaunchError(f'{option} {folder} holds the test data, which would be overwritten: choose another '
                              'directory')


def check_label_maps(cfg: Config) -> None:
    """Check that a segmentor's test has label maps to compare with, or asks for none.

    Raises:
        LaunchError: if the pipeline loads no label maps and a metric wants them, or predictions are only to be written
            and --out does not say where.
    """
    if scope_of(cfg) != 'mmseg':
        return
    loads = any('Label' in str(step.get('type')) or 'Annotations' in str(step.get('type'))
                for step in steps_of(cfg.test_dataloader.dataset.pipeline))
    for metric in _metrics(cfg):
        if metric.get('format_only') and not metric.get('output_dir'):
            raise LaunchError('test_evaluator.format_only=True writes label maps and evaluates nothing: say where, '
                              'with --out DIRECTORY')
        if not metric.get('format_only') and not loads:
            raise LaunchError('the test pipeline loads no label maps, so there is nothing to evaluate: set '
                              'test_evaluator.format_only=True and --out DIRECTORY to write predictions only')


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
