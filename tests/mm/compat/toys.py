"""A model of one layer, and a training of it."""
import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn


class Toy(BaseModel):
    """Linear regression of 1 on three numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        output = self.layer(torch.stack(inputs))
        return {'loss': (output - 1).square().mean()} if mode == 'loss' else output


def train_toy(work_dir, max_iters, **kwargs):
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    runner = Runner(
        Toy(), work_dir=str(work_dir), experiment_name=f'{work_dir.name}_{max_iters}', default_scope='mmengine',
        train_dataloader=dict(dataset=[{'inputs': row} for row in data], batch_size=2, num_workers=0,
                              sampler=dict(type='InfiniteSampler')),
        train_cfg=dict(by_epoch=False, max_iters=max_iters), log_processor=dict(by_epoch=False),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
                           logger=dict(type='LoggerHook', interval=1)), **kwargs)
    runner.message_hub.update_info('best_score', np.float64(0.25))
    runner.message_hub.update_info('confusion', np.arange(6).reshape(2, 3))
    runner.train()
    return runner
