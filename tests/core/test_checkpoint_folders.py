"""Folders and shards of checkpoints."""
import json

import pytest
import torch
from safetensors.torch import save_file

from apt_dense.core.checkpoint_folders import read_checkpoint

NAMES = ('model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors')


@pytest.fixture
def state() -> dict:
    return {'a.weight': torch.randn(2, 3), 'b.weight': torch.randn(3), 'b.bias': torch.randn(3)}


@pytest.fixture
def sharded(tmp_path, state):
    """A folder of two files and their index."""
    places = {'a.weight': NAMES[0], 'b.weight': NAMES[1], 'b.bias': NAMES[1]}
    for file in NAMES:
        save_file({name: state[name] for name, place in places.items() if place == file}, tmp_path / file)
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': places}))
    return tmp_path


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_shards_by_their_index_or_folder(sharded, state):
    (sharded / 'config.json').write_text('{"model_type": "vit"}')
    (sharded / 'preprocessor_config.json').write_text('{"image_mean": [0.5]}')
    for path in (sharded, sharded / 'model.safetensors.index.json'):
        checkpoint = read_checkpoint(path)
        assert equal(checkpoint.state_dict, state)
        assert checkpoint.config == {'model_type': 'vit'} and checkpoint.preprocessing == {'image_mean': [0.5]}


def test_shards_of_pickles(tmp_path, state):
    torch.save(state, tmp_path / 'pytorch_model-00001-of-00001.bin')
    (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps(
        {'weight_map': dict.fromkeys(state, 'pytorch_model-00001-of-00001.bin')}))
    assert equal(read_checkpoint(tmp_path).state_dict, state)


def test_a_folder_of_one_file(tmp_path, state):
    """safetensors before pickles; without a config there is none."""
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / 'pytorch_model.bin')
    save_file(state, tmp_path / 'model.safetensors')
    checkpoint = read_checkpoint(tmp_path)
    assert equal(checkpoint.state_dict, state) and checkpoint.config == checkpoint.preprocessing == {}


def test_a_config_belongs_to_files_of_the_usual_names_only(tmp_path, state):
    """One that lies beside any download may be another model's."""
    (tmp_path / 'config.json').write_text('{"model_type": "vit"}')
    torch.save({'model': state, 'epoch': 1}, tmp_path / 'vit.pth')
    torch.save(state, tmp_path / 'pytorch_model.bin')
    checkpoint = read_checkpoint(tmp_path / 'vit.pth')
    assert equal(checkpoint.state_dict, state) and not checkpoint.config
    assert (checkpoint.entry, checkpoint.others) == ('model', ['epoch'])
    assert read_checkpoint(tmp_path / 'pytorch_model.bin').config == {'model_type': 'vit'}


def test_a_folder_without_weights(tmp_path):
    (tmp_path / 'sam3.pt').touch()
    with pytest.raises(ValueError, match=r'holds none of model\.safetensors\.index\.json, .*: it has sam3\.pt\. Name '
                                         'the file itself'):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match='none does not exist'):
        read_checkpoint(tmp_path / 'none')


def test_an_index_that_does_not_agree_with_its_files(sharded):
    index = sharded / 'model.safetensors.index.json'
    content = json.loads(index.read_text())

    def refused(places: object, message: str) -> None:
        index.write_text(json.dumps({'weight_map': places}))
        with pytest.raises(ValueError, match=message):
            read_checkpoint(sharded)

    places = content['weight_map']
    refused(places | {'c': NAMES[0]}, rf'{NAMES[0]} lacks 1 keys that model\.safetensors\.index\.json places there: c')
    refused({name: place for name, place in places.items() if name != 'b.bias'}, 'does not name 1 keys .*: b.bias')
    refused(places | {'a.weight': '../' + NAMES[0]}, r'names \.\./model-00001.*, wanted a file beside it')
    refused({}, 'has no weight_map')
    refused(['a'], 'has no weight_map')
    (sharded / NAMES[1]).unlink()
    refused(places, rf'{NAMES[1]} does not exist')


def test_damaged_files(sharded):
    shard = sharded / NAMES[0]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf'{NAMES[0]} cannot be read as safetensors'):
        read_checkpoint(sharded)
    index = sharded / 'model.safetensors.index.json'
    index.write_text(index.read_text()[:-5])
    with pytest.raises(ValueError, match=r'index\.json cannot be read as JSON'):
        read_checkpoint(sharded)
    index.write_text('[1]')
    with pytest.raises(ValueError, match='holds a list, wanted an object'):
        read_checkpoint(sharded)
