"""What a converted checkpoint must fit: the names and shapes of a config's model, and its classes."""
import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope

from apt_dense.mm import compat
from apt_dense.mm.cli import config_files


def read_config(config: str) -> tuple[dict, dict]:
    """Names and shapes of a config's model, which takes no memory; its dataset's classes and palette."""
    compat.filter_library_warnings()
    cfg = config_files.read_config(config)
    cfg.model.pop('trainable', None)  # it logs what is trained
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        with torch.device('meta'):
            shapes = {name: tensor.shape for name, tensor in MODELS.build(cfg.model).state_dict().items()}
        metainfo = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True)).metainfo
    return shapes, {name: metainfo[name] for name in ('classes', 'palette') if name in metainfo}
