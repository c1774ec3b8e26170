"""A model's predictions of a photograph, beside those of the same model with nothing merged."""
import threading
from collections.abc import Sequence

from apt_dense.demo.analysis import nearest_thresholds
from apt_dense.drawing.panels import Panel, join_panels
from apt_dense.extras import from_extra

with from_extra('mm'):
    import numpy as np
    from PIL import Image

    from apt_dense.mm.data.inputs import ConfigInputs
    from apt_dense.mm.errors import DataError
    from apt_dense.mm.inference import Model, load


class SideBySide:
    """Holds a model; several requests may come at once.

    Args:
        model, weights, device: of ``apt_dense.load``.

    Attributes:
        scorer: the model's; thresholds are of it.

    Raises:
        DataError: as ``apt_dense.load``.
    """

    def __init__(self, model: str, weights: str | None = None, device: str = 'auto'):
        self.model: Model = load(model, weights, device)
        if not self.model.thresholds:
            self.model = load(model, weights, device, kept=1.0)
        self.scorer = self.model.cfg.model.backbone.get('scorer', 'entropy')
        self._inputs = ConfigInputs(self.model.cfg, images=[])
        self._lock = threading.Lock()

    def draw(self, image: Image.Image, thresholds: Sequence[float], kept: float | None = None,
             min_score: float = 0.3) -> Image.Image:
        """Both predictions, with what each has processed.

        Args:
            thresholds: fine to coarse; a model of fewer patch sizes takes the finest.
            kept: in place of thresholds, the share of the tokens that the model is to keep of this picture.
        """
        count = len(self.model.thresholds)
        if len(thresholds) < count:
            raise DataError(f'got {len(thresholds)} thresholds for a model of {count + 1} patch sizes')
        panels, pixels = [], np.asarray(image)
        with self._lock:
            own = tuple(thresholds[:count])
            if kept is not None:
                own = nearest_thresholds(self._inputs.chooser, self._inputs.inputs_of(pixels), kept)
            named = 'thresholds ' + ' '.join(f'{value:g}' for value in own)
            for label, values in ((named, own), ('nothing merged', (-1.0,) * count)):
                self.model.thresholds = values
                (result,) = self.model.predict(pixels)
                panels.append(Panel(result.draw(min_score=min_score),
                                    f'{label}: {result.tokens.num_tokens} tokens, {result.tokens.kept:.1%} kept'))
        return join_panels([panels])
