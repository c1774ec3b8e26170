"""The small detector and its data, for tools that take a config."""
from tests.mm.conftest import coco_root, plain_config_dumps, scope, tiny_config

__all__ = ['coco_root', 'plain_config_dumps', 'scope', 'tiny_config']
