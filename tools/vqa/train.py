#!/usr/bin/env python
"""Train what APT added to a LLaVA-1.5, all else frozen: the short recipe, on transformers' Trainer.

    python tools/vqa/train.py --model llava-hf/llava-1.5-7b-hf --data llava_v1_5_mix665k.json --images DATA \\
        --output_dir work_dirs/llava_7b --bf16

By default 5 % of the rows, once, at a tenth of LLaVA's rate with its schedule: cosine, 3 % warm-up, no weight decay,
batch 128 over 8 GPUs.  Every option of transformers' TrainingArguments is one: --deepspeed, --fsdp, --save_steps, ...
A run that was stopped goes on from its last checkpoint in --output_dir when started again.  Checkpoints hold what is
trained: a few MB.
"""
import json
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from apt_dense.core.files import write_atomically
from apt_dense.extras import from_extra

with from_extra('vqa'):
    import accelerate  # noqa: F401  Trainer needs it, and says so late
    from safetensors.torch import save_file
    from transformers import (
        AutoProcessor,
        HfArgumentParser,
        LlavaForConditionalGeneration,
        Trainer,
        TrainingArguments,
        set_seed,
    )
    from transformers.trainer_utils import get_last_checkpoint

from apt_dense.hf import adapt_llava, llava_processor, load_added
from apt_dense.hf.llava_data import SYSTEM, LlavaRows, check_rows, collate, count_faults, draw_rows

ADDED = '.apt.'  # in the names of what APT added
WEIGHTS = 'added.safetensors'


@dataclass
class Recipe:
    """What is trained on what."""
    model: str = field(metadata=dict(help='LLaVA-1.5: a name or a folder of transformers'))
    data: Path = field(metadata=dict(help="conversations: a json in the format of LLaVA's mix665k"))
    images: Path = field(metadata=dict(help="the folder that the json's image names start from"))
    share: float = field(default=0.05, metadata=dict(help='of the rows'))
    sample_seed: int = field(default=0, metadata=dict(help='of the draw of the rows'))
    num_scales: int = 2
    thresholds: list[float] = field(default_factory=lambda: [5.75])
    max_length: int = field(default=2048, metadata=dict(help='tokens of a sample'))
    system: str = field(default=SYSTEM, metadata=dict(help='what stands before a conversation'))


@dataclass
class Arguments(TrainingArguments):
    """Those of transformers, with LLaVA's fine-tuning recipe as defaults, a tenth of its rate."""
    learning_rate: float = 2e-6
    lr_scheduler_type: str = 'cosine'
    warmup_steps: float = 0.03
    weight_decay: float = 0.0
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 16
    save_steps: float = 50
    logging_steps: float = 10
    dataloader_num_workers: int = 4
    remove_unused_columns: bool = False  # they are the processor's
    report_to: str = 'none'


class AddedTrainer(Trainer):
    """A Trainer whose checkpoints hold the parameters that are trained, and the processor."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.model.state_dict() if state_dict is None else state_dict
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if ADDED in name},
                  folder / WEIGHTS, metadata={'format': 'pt'})
        self.processing_class.save_pretrained(folder)
        write_atomically(folder / 'training_args.json', self.args.to_json_string())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_added(self.model if model is None else model, Path(resume_from_checkpoint) / WEIGHTS)


def freeze(model: nn.Module) -> None:
    """Leave only what APT added to be trained; ValueError if there is nothing."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(ADDED in name)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError('the model has no added parameters: nothing is left to train, call adapt_llava first')


def train_added(model: nn.Module, processor: object, rows: list, images: Path, args: TrainingArguments,
                max_length: int = 2048, system: str = SYSTEM) -> Trainer:
    """Train an adapted model's added parameters, from the last checkpoint in ``args.output_dir`` if there is one.

    Args:
        model, processor: of ``adapt_llava`` and ``llava_processor``.
        rows, images, max_length, system: of ``LlavaRows``.
    """
    freeze(model)
    model.config.use_cache = False
    pad = processor.tokenizer.pad_token_id
    trainer = AddedTrainer(model, args, partial(collate, pad_token_id=pad), processing_class=processor,
                           train_dataset=LlavaRows(rows, images, processor, max_length, system))
    last = get_last_checkpoint(args.output_dir) if os.path.isdir(args.output_dir) else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    return trainer


def good_rows(recipe: Recipe, output_dir: Path, tell: bool = True) -> list:
    """The sample's rows that can be trained with; tells what is wrong with the others, all of them in a file.

    Rows of text alone are left out too: what is trained has no part in them.
    """
    try:
        rows = json.loads(recipe.data.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f'--data {recipe.data} is no json that can be read: {error}') from error
    if not isinstance(rows, list):
        raise ValueError(f'--data {recipe.data} holds a {type(rows).__name__}, wanted a list of conversations')
    drawn = draw_rows(rows, recipe.share, recipe.sample_seed)
    good, bad = check_rows(drawn, recipe.images)
    pictured = [row for row in good if 'image' in row]
    if tell:
        print(f'{len(rows)} rows, {len(drawn)} drawn by seed {recipe.sample_seed}, left out {len(bad)} that are bad '
              f'and {len(good) - len(pictured)} without an image')
    if bad and tell:
        listing = output_dir / 'bad_rows.txt'
        write_atomically(listing, ''.join(f'{name}\t{reason}\n' for name, reason in bad))
        print(f'{count_faults(bad)}\nall of them: {listing}')
    if not pictured:
        raise ValueError(f'no row of {recipe.data} can be used: {len(drawn)} drawn, {len(bad)} bad, '
                         f'{len(good)} without an image; {count_faults(bad)}')
    return pictured


def main() -> None:
    recipe, args = HfArgumentParser((Recipe, Arguments)).parse_args_into_dataclasses()
    try:
        rows = good_rows(recipe, Path(args.output_dir), args.process_index == 0)
    except ValueError as error:
        sys.exit(f'error: {error}')
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    model = LlavaForConditionalGeneration.from_pretrained(recipe.model, dtype=dtype)
    set_seed(args.seed)  # of the detail branch's start
    processor = AutoProcessor.from_pretrained(recipe.model)
    adapt_llava(model, recipe.num_scales, recipe.thresholds, image_processor=processor)
    model.model.vision_tower.apt.float()  # steps of 2e-6 are lost in bfloat16
    train_added(model, llava_processor(model, processor), rows, recipe.images, args, recipe.max_length, recipe.system)
    if args.should_save:
        print(f'{Path(args.output_dir) / WEIGHTS}: open it by apt_dense.hf.load_added(adapt_llava(model), FILE)')


if __name__ == '__main__':
    main()
