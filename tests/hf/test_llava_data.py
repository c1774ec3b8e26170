"""Conversations as training samples: what has a label, what is drawn, which rows are bad."""
import json

import pytest
import torch
from PIL import Image

from tests.hf.llava_toys import IMAGE, THRESHOLD, llava, own_processor, pictures
from tests.hf.models import transformers

transformers()
from apt_dense import hf  # noqa: E402
from apt_dense.hf.llava_data import (  # noqa: E402
    IGNORED,
    LlavaRows,
    check_rows,
    collate,
    conversation_text,
    count_faults,
    draw_rows,
)


def turns(*texts: str) -> list[dict]:
    return [{'from': ('human', 'gpt')[index % 2], 'value': text} for index, text in enumerate(texts)]


ROWS = [{'id': 'a', 'image': 'one.png',
         'conversations': turns('what is left\n<image>', 'red', 'what is right', 'left .')},
        {'id': 'b', 'conversations': turns('what', 'is')}]


@pytest.fixture
def images(tmp_path):
    Image.fromarray(pictures()[0]).save(tmp_path / 'one.png')
    return tmp_path


@pytest.mark.parametrize('packed', [True, False])
def test_only_answers_and_their_ends_have_labels(images, packed):
    """With the image's tokens before them, as many as there are."""
    processor = own_processor()
    if packed:
        processor = hf.llava_processor(hf.adapt_llava(llava(), 2, (THRESHOLD,)), processor)
    first, second = LlavaRows(ROWS, images, processor, system='is')
    words = processor.tokenizer.convert_ids_to_tokens
    assert (first['input_ids'] == IMAGE).sum() == (40 if packed else 64)
    assert [word for word in words(first['input_ids']) if word != '<image>'] == [
        'is', 'USER:', 'what', 'is', 'left', 'ASSISTANT:', 'red', '</s>', 'USER:', 'what', 'is', 'right', 'ASSISTANT:',
        'left', '.', '</s>']
    assert words(first['labels'][first['labels'] != IGNORED]) == ['red', '</s>', 'left', '.', '</s>']
    kept = first['labels'] != IGNORED
    assert torch.equal(first['labels'][kept], first['input_ids'][kept])
    assert words(second['labels'][second['labels'] != IGNORED]) == ['is', '</s>'] and 'pixel_values' not in second
    batch = collate([first, second], 0)
    assert batch['labels'].shape == batch['input_ids'].shape == batch['attention_mask'].shape
    assert batch['attention_mask'].sum(1).tolist() == [len(first['input_ids']), len(second['input_ids'])]
    assert len(batch['pixel_values']) == 1 and ('patch_scales' in batch) == packed
    assert (batch['labels'][batch['attention_mask'] == 0] == IGNORED).all()
    short, _ = LlavaRows(ROWS, images, processor, max_length=20)
    assert len(short['input_ids']) == len(short['labels']) == 20


def test_the_text_is_that_of_llavas_template():
    text, spans = conversation_text(ROWS[0]['conversations'], '</s>', 'A chat.')
    assert text == ('A chat. USER: <image>\nwhat is left ASSISTANT: red</s>USER: what is right ASSISTANT: left .</s>')
    assert [text[start:end] for start, end in spans] == [' red</s>', ' left .</s>']


def test_a_draw_follows_from_its_seed():
    rows = [{'id': index} for index in range(1000)]
    drawn = draw_rows(rows, 0.05, 3)
    assert len(drawn) == 50 and drawn == draw_rows(rows, 0.05, 3) != draw_rows(rows, 0.05, 4)
    assert [row['id'] for row in drawn] == sorted({row['id'] for row in drawn})
    for share in (0, 1.1):
        with pytest.raises(ValueError, match=f'share={share} of 1000 rows: wanted'):
            draw_rows(rows, share, 0)


def test_bad_rows_are_named_and_counted(images):
    (images / 'text.png').write_text('no picture')
    (images / 'cut.png').write_bytes((images / 'one.png').read_bytes()[:-20])
    image = {'image': 'one.png'}
    bad = {
        'missing image': {'image': 'gone.png', 'conversations': turns('<image> what', 'red')},
        'unreadable image (cut)': {'image': 'cut.png', 'conversations': turns('<image> what', 'red')},
        'unreadable image': {'image': 'text.png', 'conversations': turns('<image> what', 'red')},
        'no image token': {**image, 'conversations': turns('what', 'red')},
        'several image tokens for one image': {**image, 'conversations': turns('<image> <image>', 'red')},
        'image token without an image': {'conversations': turns('<image> what', 'red')},
        'image token in an answer': {**image, 'conversations': turns('what', '<image>')},
        'empty answer': {**image, 'conversations': turns('<image> what', ' ')},
        'not human and gpt in turn': {**image, 'conversations': turns('<image> what', 'red', 'and')},
        'no conversations': {'conversations': []}}
    rows = [*ROWS, *({'id': kind, **row} for kind, row in bad.items()), 'text', {**bad['empty answer'], 'id': 'again'}]
    good, found = check_rows(json.loads(json.dumps(rows)), images)
    assert [row['id'] for row in good] == ['a', 'b']
    assert {name: reason.partition(':')[0] for name, reason in found if name in bad} == {
        kind: kind.partition(' (')[0] for kind in bad}
    assert ('row 12', 'no conversations') in found
    told = count_faults(found)
    assert '2 rows: empty answer (empty answer, again)' in told and '2 rows: no conversations' in told
    assert len(told.splitlines()) == len(bad) - 1
