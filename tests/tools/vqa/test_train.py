"""tools/vqa/train.py: only added parameters move, an interrupted run goes on, bad rows are told."""
import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.hf.llava_toys import llava, own_processor, pictures
from tests.hf.models import transformers
from tests.locations import load_tool

transformers()
pytest.importorskip('accelerate')
train = load_tool('vqa/train.py')


@pytest.fixture
def folder(tmp_path):
    """A model, its processor, three pictures and a json of thirteen rows; one is bad, one has no image."""
    model = llava()
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path / 'model')
    own_processor().save_pretrained(tmp_path / 'model')
    for index, picture in enumerate(pictures()):
        Image.fromarray(picture).save(tmp_path / f'{index}.png')
    rows = [{'id': f'row{index}', 'image': f'{index % 3}.png', 'conversations': [
        {'from': 'human', 'value': '<image>\nwhat is left'}, {'from': 'gpt', 'value': ('red', 'right')[index % 2]}]}
        for index in range(12)]
    rows[5]['conversations'][1]['value'] = ''
    rows.append({'id': 'text', 'conversations': [{**turn, 'value': 'red'} for turn in rows[0]['conversations']]})
    (tmp_path / 'rows.json').write_text(json.dumps(rows))
    return tmp_path


def run(folder, monkeypatch, out: str, *options: str) -> dict[str, torch.Tensor]:
    """The added parameters that a run left."""
    monkeypatch.setattr(sys, 'argv', [
        'train.py', '--model', str(folder / 'model'), '--data', str(folder / 'rows.json'), '--images', str(folder),
        '--output_dir', str(folder / out), '--share', '1', '--thresholds', '4.0', '--per_device_train_batch_size', '2',
        '--save_steps', '2', '--dataloader_num_workers', '0', '--learning_rate', '0.01', '--use_cpu', 'true',
        '--disable_tqdm', 'true', *options])
    train.main()
    return load_file(folder / out / 'added.safetensors')


class Stop(Exception):
    """Where a run is interrupted."""


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(folder, monkeypatch, capsys):
    wanted = run(folder, monkeypatch, 'whole')
    told = capsys.readouterr().out
    assert ('13 rows, 13 drawn by seed 0, left out 1 that are bad and 1 without an image\n1 rows: empty answer (row5)'
            in told)
    assert (folder / 'whole/bad_rows.txt').read_text() == 'row5\tempty answer\n'
    assert set(wanted) == {f'model.vision_tower.apt.{name}.{part}' for name in ('conv_down', 'zero_mlp')
                           for part in ('weight', 'bias')}
    assert all(values.any() for values in wanted.values())
    stops = iter([False] * 3 + [True])
    step = train.AddedTrainer.training_step

    def stopping(*args, **kwargs):
        if next(stops, False):
            raise Stop
        return step(*args, **kwargs)

    monkeypatch.setattr(train.AddedTrainer, 'training_step', stopping)
    with pytest.raises(Stop):
        run(folder, monkeypatch, 'parts')
    assert not (folder / 'parts/added.safetensors').exists() and (folder / 'parts/checkpoint-2').is_dir()
    got = run(folder, monkeypatch, 'parts')
    assert all(torch.equal(got[name], values) for name, values in wanted.items())
    assert sum(file.stat().st_size for file in (folder / 'parts/checkpoint-2').glob('*.safetensors')) < 30_000


def test_what_is_frozen_stays(folder, monkeypatch):
    models = []
    whole = train.train_added
    monkeypatch.setattr(train, 'train_added', lambda model, *args: models.append(model) or whole(model, *args))
    run(folder, monkeypatch, 'out', '--bf16', 'true', '--max_steps', '2')
    source = train.LlavaForConditionalGeneration.from_pretrained(folder / 'model', dtype=torch.bfloat16).state_dict()
    state = models[0].state_dict()
    assert all(torch.equal(state[name], values) for name, values in source.items())
    assert state['model.vision_tower.apt.zero_mlp.weight'].dtype == torch.float32
    with pytest.raises(ValueError, match='no added parameters: nothing is left to train'):
        train.freeze(llava())


def test_a_file_that_is_no_json_is_refused(folder, monkeypatch):
    for text, reason in (('{', 'is no json that can be read'), ('{}', 'holds a dict, wanted a list'),
                         ('[{}]', 'can be used: 1 drawn, 1 bad, 0 without an image; 1 rows: no conv'),
                         ('[]', 'of 0 rows')):
        (folder / 'rows.json').write_text(text)
        with pytest.raises(SystemExit, match=reason):
            run(folder, monkeypatch, 'out')
