"""The project's configs by name, from any directory: ``_base_ = 'apt_dense::apt_eva02_l_coco.py'``."""
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config

import apt_dense
from apt_dense.mm.compat.replacing import replace_once

CONFIGS = Path(apt_dense.__file__).parent / '.mim/configs'


def know_own_configs() -> None:
    """Let a config inherit those of this package, as it can from OpenMMLab's: they lie in ``.mim/configs``.

    mmengine knows these packages only, wants a folder in the name, and gives what is inherited the package's scope,
    in which it looks for every class.  Ours are in mmengine's own registries, and the config's ``default_scope`` says
    where the rest is, so no scope is set.

    Delete when mmengine knows packages that are not OpenMMLab's.
    """

    def make(original: Callable) -> Callable:

        def get_cfg_path(name: str, file: str) -> tuple[str, str | None]:
            package, separator, path = name.partition('::')
            return (str(CONFIGS / path), None) if separator and package == 'apt_dense' else original(name, file)

        return get_cfg_path

    replace_once(Config, '_get_cfg_path', make, static=True)
