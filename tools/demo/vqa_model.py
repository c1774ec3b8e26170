"""The small LLaVA-1.5 of the demo: its processor, its training from nothing, and its answers."""
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from vqa_scenes import CLASSES, PATCH_PX, SIDE_PX, WORDS

from apt_dense.extras import from_extra
from apt_dense.hf.llava_data import LlavaRows, collate, conversation_text

with from_extra('vqa'):
    import accelerate  # noqa: F401  Trainer needs it, and says so late
    import numpy as np
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
        get_cosine_schedule_with_warmup,
    )

VOCABULARY = ('<pad>', '<s>', '</s>', '<unk>', '<image>', 'USER:', 'ASSISTANT:', *WORDS)
LEARNING_RATE = 1.5e-3
IMAGE_TOKEN, NUM_CELLS = VOCABULARY.index('<image>'), (SIDE_PX // PATCH_PX)**2


def build_processor() -> LlavaProcessor:
    """With a tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', pad_token='<pad>', unk_token='<unk>',
        additional_special_tokens=['<image>'], padding_side='left')
    images = CLIPImageProcessor(size=dict(shortest_edge=SIDE_PX), crop_size=dict(height=SIDE_PX, width=SIDE_PX))
    return LlavaProcessor(images, words, patch_size=PATCH_PX, vision_feature_select_strategy='default',
                          num_additional_image_tokens=1)


def build_model(embed_dims: int = 96) -> LlavaForConditionalGeneration:
    """A tower of four blocks, of which three are used, and a language model of three layers; random weights."""
    heads = embed_dims // 32
    sizes = dict(hidden_size=embed_dims, intermediate_size=2 * embed_dims, num_attention_heads=heads)
    tower = dict(sizes, model_type='clip_vision_model', num_hidden_layers=4, image_size=SIDE_PX, patch_size=PATCH_PX)
    language = dict(sizes, model_type='llama', vocab_size=len(VOCABULARY), num_hidden_layers=3,
                    num_key_value_heads=heads, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
                    pad_token_id=0)
    return LlavaForConditionalGeneration(LlavaConfig(
        vision_config=tower, text_config=language, image_token_index=IMAGE_TOKEN, image_seq_length=NUM_CELLS))


def train_tower(tower: nn.Module, pixels: torch.Tensor, cells: torch.Tensor, steps: int, batch: int = 64) -> float:
    """Teach a tower what is in each cell, in place of CLIP's training; returns the last share of cells right.

    Args:
        tower: of the model, which reads its last hidden state but one.
        pixels, cells: (N, 3, H, W) and (N, H / 14, W / 14), the categories.
    """
    head = nn.Linear(tower.config.hidden_size, len(CLASSES) + 1)
    parameters = [*tower.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimiser, steps // 10, steps)
    tower.train()
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (batch,))
        states = tower(pixels[chosen], output_hidden_states=True).hidden_states[-2][:, 1:]
        wanted, logits = cells[chosen].flatten(), head(states).flatten(0, 1)
        F.cross_entropy(logits, wanted).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return (logits.argmax(1) == wanted).float().mean().item()


def train_dense(model: nn.Module, samples: Sequence, steps: int, out: Path, processor: LlavaProcessor) -> None:
    """Train the whole model on ``LlavaRows`` by transformers' Trainer, and save it with its processor."""
    args = TrainingArguments(
        str(out), max_steps=steps, per_device_train_batch_size=32, learning_rate=LEARNING_RATE, weight_decay=0.01,
        lr_scheduler_type='cosine', warmup_steps=0.1, max_grad_norm=1.0, logging_steps=50, save_strategy='no',
        remove_unused_columns=False, report_to='none', use_cpu=not torch.cuda.is_available(), disable_tqdm=True)
    pad = processor.tokenizer.pad_token_id
    Trainer(model, args, partial(collate, pad_token_id=pad), train_dataset=samples).train()
    model.save_pretrained(out)
    processor.save_pretrained(out)


def single_questions(rows: Sequence[Mapping]) -> Iterator[tuple[str, str, str]]:
    """(image, question, answer) of all turns: in a conversation earlier answers would tell something."""
    for row in rows:
        turns = row['conversations']
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            yield row['image'], question['value'].removeprefix('<image>\n'), answer['value']


def answers(model: nn.Module, processor: LlavaProcessor, images: Sequence[Image.Image] | None,
            questions: Sequence[str]) -> tuple[list[str], int, float]:
    """The word that a model answers to each question, without images if there are none.

    Returns:
        The words; the image tokens of all prompts; and the processor time of the model, in seconds.
    """
    mark = '<image>\n' if images is not None else ''
    texts = [conversation_text([{'value': mark + question}, {'value': ''}], '', '')[0].strip()
             for question in questions]
    batch = processor(images, texts, return_tensors='pt', padding=True)
    start = time.process_time()
    with torch.inference_mode():
        written = model.generate(**batch, max_new_tokens=1, do_sample=False)[:, -1]
    seconds = time.process_time() - start
    tokens = int((batch['input_ids'] == IMAGE_TOKEN).sum())
    return processor.tokenizer.convert_ids_to_tokens(written.tolist()), tokens, seconds


def usual_answers(rows: Sequence[Mapping]) -> dict[str, str]:
    """The most frequent answer to each question: the best that can be done without looking."""
    seen = defaultdict(Counter)
    for _, question, answer in single_questions(rows):
        seen[question][answer] += 1
    return {question: counts.most_common(1)[0][0] for question, counts in seen.items()}


def read_split(data: Path, split: str) -> tuple[list[dict], np.ndarray]:
    """Rows and cells of ``write_dataset``."""
    return json.loads((data / f'{split}.json').read_text()), np.load(data / f'{split}_cells.npy')


def samples_of(rows: Sequence[Mapping], data: Path, processor: LlavaProcessor) -> list[dict]:
    """All samples, in memory."""
    dataset = LlavaRows(rows, data, processor, system='')
    return [dataset[index] for index in range(len(dataset))]
