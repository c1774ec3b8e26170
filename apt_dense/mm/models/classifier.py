"""A classifier on a vision transformer with patches of adaptive size."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from apt_dense.core.reduced import PackedRows
from apt_dense.mm.data.accuracy import labels_of
from apt_dense.mm.models.freeze import FreezeMixin
from apt_dense.mm.models.normalisation import check_model_normalisation

POOLINGS = ('class_token', 'mean', 'mean_by_area')


def pool(packed: PackedRows, pooling: str) -> Tensor:
    """One vector (C,) for each image: (B, C).

    Args:
        packed: of ``PackedViT.forward_packed``.
        pooling: 'class_token' is the first row; 'mean' that of the rows without prefix, each counted once whatever its
            patch covers; 'mean_by_area' counts each as often as the cells that it stands for.
    """
    if pooling == 'class_token':
        return packed.rows[packed.images.cu_seqlens[:-1].long()]
    weights = packed.areas.to(torch.float32)
    if pooling == 'mean':
        weights = (weights > 0).to(torch.float32)
    index, count = packed.images.index, len(packed.images.lengths)
    sums = packed.rows.new_zeros(count, packed.rows.shape[1], dtype=torch.float32).index_add(
        0, index, packed.rows.float() * weights[:, None])
    return (sums / weights.new_zeros(count).index_add(0, index, weights)[:, None]).to(packed.rows.dtype)


class Classifier(BaseModel):
    """See ``APTClassifier``, which adds ``trainable``."""

    def __init__(self, backbone: Mapping[str, Any] | nn.Module, num_classes: int, pooling: str = 'class_token',
                 fc_norm: bool | None = None, norm_eps: float = 1e-6, dropout: float = 0.0,
                 loss: Mapping[str, Any] | None = None, data_preprocessor: Mapping[str, Any] | None = None,
                 init_cfg: Mapping[str, Any] | None = None):
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f'num_classes={num_classes!r} must be a whole number from 1 on')
        built = backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)
        chooser = built.chooser
        if data_preprocessor is None:
            data_preprocessor = dict(type='ClassDataPreprocessor', mean=chooser.img_mean, std=chooser.img_std,
                                     bgr_to_rgb=True, num_classes=num_classes)
        super().__init__(data_preprocessor, init_cfg)
        fc_norm = pooling != 'class_token' if fc_norm is None else fc_norm
        _check_pooling(pooling, built, fc_norm)
        self.backbone, self.pooling = built, pooling
        self.fc_norm = nn.LayerNorm(built.embed_dims, eps=norm_eps) if fc_norm else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(built.embed_dims, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.criterion = nn.CrossEntropyLoss(**loss or {})
        check_model_normalisation(self)

    def forward(self, inputs: Tensor, data_samples: Sequence | None = None, targets: Tensor | None = None,
                mode: str = 'tensor') -> Tensor | dict[str, Tensor]:
        """Logits, or in mode 'loss' what is trained on.

        Args:
            inputs: (B, 3, H, W), normalised.
            data_samples: with ``gt_label``; only looked at for mode 'loss' without targets.
            targets: (B,) class numbers or (B, classes) shares.
            mode: 'loss', 'predict' or 'tensor'; the last two are the same.
        """
        return self.loss(inputs, data_samples, targets) if mode == 'loss' else self.predict(inputs)

    def loss(self, inputs: Tensor, data_samples: Sequence | None = None,
             targets: Tensor | None = None) -> dict[str, Tensor]:
        """What is trained on; see ``forward``."""
        if targets is None:
            targets = labels_of(data_samples, self.head.out_features).to(inputs.device)
        return dict(loss=self.criterion(self.predict(inputs).float(), targets))

    def predict(self, inputs: Tensor, data_samples: Sequence | None = None) -> Tensor:
        """(B, 3, H, W), normalised, of any size -> logits (B, classes)."""
        return self.head(self.dropout(self.features(inputs)))

    def features(self, inputs: Tensor) -> Tensor:
        """(B, 3, H, W), normalised, of any size -> what the head gets, (B, C)."""
        packed = self.backbone(self.backbone.chooser.pad(inputs), packed=True)
        pooled = pool(packed, self.pooling)
        return pooled if self.fc_norm is None else self.fc_norm(pooled)


def _check_pooling(pooling: str, backbone: nn.Module, fc_norm: bool) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f'unknown pooling {pooling!r}: choose one of {POOLINGS}')
    if pooling == 'class_token' and backbone.cls_token is None:
        raise ValueError("pooling='class_token', and the backbone has with_cls_token=False: set that to True, or take "
                         "pooling='mean'")
    if fc_norm and backbone.norm is not None:
        raise ValueError('the backbone has final_norm=True, and fc_norm is a second norm after the pooling: set '
                         'final_norm=False (as timm and MAE for a mean), or fc_norm=False')


@MODELS.register_module()
class APTClassifier(FreezeMixin, Classifier):
    """Backbone, pooling over each image's rows, a norm where the pooling is a mean, and one linear layer.

    Args:
        backbone: config of one that packs tokens, or a model.
        num_classes: of the head.
        pooling: 'class_token', 'mean' or 'mean_by_area', see ``pool``.  APT's public code has the first two: its mean
            counts every row once, whatever it covers.
        fc_norm: a LayerNorm after the pooling; by default where that is a mean, as timm and MAE do, whose backbone then
            has ``final_norm=False``.
        norm_eps: of that norm.
        dropout: before the head.
        loss: arguments of ``torch.nn.CrossEntropyLoss``, such as ``dict(label_smoothing=0.1)``; it takes mixed labels
            too.
        data_preprocessor: see ``ClassDataPreprocessor``; by default one that normalises as the backbone assumes.
        init_cfg: mmengine's, of the whole model.
        trainable: see ``FreezeMixin``.

    Raises:
        ValueError: for a pooling that is unknown or that the backbone has no row for, or a norm before and after it.
        DataError: for a data preprocessor that normalises otherwise than the backbone assumes.

    Source: APT (arXiv 2510.18091) and the behaviour of its public classification code.
    """
