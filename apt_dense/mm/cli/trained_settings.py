"""What a model does otherwise than in the training that its weights are of, where no parameter shows it."""
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from apt_dense.core.vit import PackedViT
from apt_dense.mm.cli.saved_config import config_of
from apt_dense.mm.errors import DataError

# Of the backbone, where both merge patches: of a dense model's training they say nothing.
OF_MERGING = ('scorer', 'rope_anchor', 'pos_anchor', 'proportional_attention')


def changed_settings_of_model(cfg: Config, meta: object, name: str) -> list[str]:
    """One line for each setting of the backbone that the weights were not trained with.

    Args:
        cfg: of the model that is, or will be, loaded.
        meta: of the checkpoint, which may hold the config of its training; nothing is said of one that does not.
        name: of the checkpoint.
    """
    try:
        stored = config_of(meta, name)
    except DataError:
        return []
    now, then = _backbone(cfg), _backbone(stored)
    if not now or not then or now['type'] != then['type'] or 1 in (now['num_scales'], then['num_scales']):
        return []
    return [f'backbone.{key} is {now[key]!r} here and was {then[key]!r} in the training of {name}'
            for key in OF_MERGING if now.get(key) != then.get(key)]


def _backbone(cfg: Config | None) -> dict[str, Any]:
    """The settings of a config's backbone, with the defaults of its family; {} if it is no ``PackedViT``."""
    backbone = dict(((cfg or {}).get('model') or {}).get('backbone') or {})
    try:
        family = MODELS.get(backbone['type'])
    except (KeyError, RuntimeError, TypeError):  # no name, or one that nothing has
        return {}
    return {**family.default_arguments(), **backbone} if family and issubclass(family, PackedViT) else {}
