"""Conversations about images in LLaVA's json, as training samples of a LLaVA-1.5 of transformers.

A row of the json is ``{"id": ..., "image": "folder/name.jpg", "conversations": [{"from": "human", "value":
"<image>\\nWhat is it?"}, {"from": "gpt", "value": "A dog."}, ...]}``; without "image" it is text alone.
"""
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apt_dense.calibration.whole_images import check_image
from apt_dense.extras import from_extra

with from_extra('vqa'):
    from PIL import Image

IMAGE = '<image>'
# That the weights of LLaVA-1.5 were trained with.
SYSTEM = ('A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, '
          "detailed, and polite answers to the user's questions.")
IGNORED = -100  # the label of what is no answer


def draw_rows(rows: Sequence[Mapping], share: float, seed: int) -> list[Mapping]:
    """A share of the rows, drawn by a seed, in the order of the file; at least one.

    Raises:
        ValueError: for no rows, or a share that is not above 0 and at most 1.
    """
    if not rows or not 0 < share <= 1:
        raise ValueError(f'share={share} of {len(rows)} rows: wanted some rows, and a share above 0 and at most 1')
    chosen = random.Random(seed).sample(range(len(rows)), max(1, round(share * len(rows))))
    return [rows[index] for index in sorted(chosen)]


def check_rows(rows: Sequence[Mapping], images: Path) -> tuple[list[Mapping], list[tuple[str, str]]]:
    """Part rows that can be trained with from those that cannot.

    Args:
        rows: of the json.
        images: the folder that their images' names start from.

    Returns:
        The good rows, and of each bad one its id, or its number, and what is wrong.
    """
    good, bad = [], []
    for number, row in enumerate(rows):
        reason = _fault(row, images)
        if reason is None:
            good.append(row)
        else:
            name = row.get('id', f'row {number}') if isinstance(row, Mapping) else f'row {number}'
            bad.append((str(name), reason))
    return good, bad


def count_faults(bad: Sequence[tuple[str, str]]) -> str:
    """One line for each kind of fault: its count, and the first rows that have it."""
    counts = Counter(reason.partition(':')[0] for _, reason in bad)
    lines = []
    for kind, count in counts.most_common():
        names = [name for name, reason in bad if reason.partition(':')[0] == kind]
        lines.append(f'{count} rows: {kind} ({", ".join(names[:3])}{", ..." if count > 3 else ""})')
    return '\n'.join(lines)


def conversation_text(turns: Sequence[Mapping], eos: str, system: str = SYSTEM) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and where its answers are.

    Args:
        turns: of a row; human and gpt in turn.
        eos: ends each answer.
        system: stands at the beginning.

    Returns:
        The text, with one ``<image>`` at the beginning of a question that has one; and of each answer the first
        character and the one after its eos.

    Source: LLaVA's conversation template "v1", and where it puts the image.
    """
    text, spans = system, []
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        asked = question['value'].strip()
        if IMAGE in asked:
            asked = f'{IMAGE}\n{asked.replace(IMAGE, "").strip()}'
        text += f'{" " if text and not spans else ""}USER: {asked} ASSISTANT:'
        start = len(text)
        text += f' {answer["value"].strip()}{eos}'
        spans.append((start, len(text)))
    return text, spans


class LlavaRows(torch.utils.data.Dataset):
    """Rows as samples: input_ids and labels (L,), and where there is an image pixel_values and what goes with them.

    Only answers, each with its eos, have labels.

    Args:
        rows: good ones of ``check_rows``.
        images: the folder.
        processor: of the model, ``llava_processor``'s or LLaVA's own.
        max_length: tokens; what is longer is cut at its end.
        system: of ``conversation_text``.
    """

    def __init__(self, rows: Sequence[Mapping], images: Path, processor: Any, max_length: int = 2048,
                 system: str = SYSTEM):
        self.rows, self.images, self.processor = rows, images, processor
        self.max_length, self.system = max_length, system

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        image = Image.open(self.images / row['image']).convert('RGB') if 'image' in row else None
        text, spans = conversation_text(row['conversations'], self.processor.tokenizer.eos_token, self.system)
        batch = self.processor(image, [text], return_tensors='pt', return_offsets_mapping=True,
                               return_text_replacement_offsets=True)
        ids, offsets = batch.pop('input_ids')[0], batch.pop('offset_mapping')[0]
        grown = batch.pop('text_replacement_offsets', [[]])[0]
        labels = torch.full_like(ids, IGNORED)
        for start, end in spans:
            more = sum((new[1] - new[0]) - (old[1] - old[0]) for old, new in (
                (replaced['span'], replaced['new_span']) for replaced in grown) if old[1] <= start)
            inside = (offsets[:, 0] >= start + more) & (offsets[:, 1] <= end + more) & (offsets[:, 1] > offsets[:, 0])
            labels[inside] = ids[inside]
        batch.pop('attention_mask')
        return {'input_ids': ids[:self.max_length], 'labels': labels[:self.max_length], **batch}


def collate(samples: Sequence[Mapping[str, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """Samples of ``LlavaRows`` -> one batch, padded at the right."""
    def pad(name: str, value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([sample[name] for sample in samples], True, value)

    lengths = torch.tensor([len(sample['input_ids']) for sample in samples])
    ids = pad('input_ids', pad_token_id)
    batch = dict(input_ids=ids, labels=pad('labels', IGNORED),
                 attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long())
    for name in ('pixel_values', 'patch_scales'):
        parts = [sample[name] for sample in samples if name in sample]
        if parts:
            batch[name] = torch.cat(parts)
    return batch


def _fault(row: Any, images: Path) -> str | None:
    """What is wrong with a row; its kind stands before the colon."""
    turns = row.get('conversations') if isinstance(row, Mapping) else None
    if not turns or not all(isinstance(turn, Mapping) and isinstance(turn.get('value'), str) for turn in turns):
        return 'no conversations'
    if [turn.get('from') for turn in turns] != ['human', 'gpt'] * (len(turns) // 2):
        return 'not human and gpt in turn'
    if not all(turn['value'].strip() for turn in turns[1::2]):
        return 'empty answer'
    tokens = sum(turn['value'].count(IMAGE) for turn in turns)
    if 'image' not in row:
        return f'image token without an image: {tokens}' if tokens else None
    if tokens != 1:
        return 'no image token' if tokens == 0 else f'several image tokens for one image: {tokens}'
    if any(IMAGE in turn['value'] for turn in turns[1::2]):
        return 'image token in an answer'
    path = images / str(row['image'])
    if not path.is_file():
        return f'missing image: {path}'
    try:
        check_image(path)
    except ValueError as error:
        return f'unreadable image: {error}'
    return None
