"""The model of lmms-eval, through its own loop, on a small task of files here."""
import json

import pytest
import torch
from PIL import Image

from tests.hf.llava_toys import llava, own_processor, pictures
from tests.hf.models import transformers

transformers()
pytest.importorskip('lmms_eval')
from lmms_eval import evaluator  # noqa: E402
from lmms_eval.models.registry_v2 import ModelRegistryV2  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402

from apt_dense.hf import lmms_eval_model  # noqa: E402
from apt_dense.hf.lmms_eval_model import AptLlava  # noqa: E402

QUESTIONS = ('what is left', 'what is right', 'what is red')
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.json}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.picture
doc_to_text: !function utils.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 3, temperature: 0, top_p: 1.0, num_beams: 1, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: [{{version: 0.0}}]
"""
UTILS = """
from PIL import Image


def picture(doc):
    return [Image.open(doc['image'])] if doc['image'] else []


def question(doc, lmms_eval_specific_kwargs=None):
    return doc['question']
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model and a task of four questions, the last without an image."""
    monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    llava().save_pretrained(tmp_path / 'model')
    own_processor().save_pretrained(tmp_path / 'model')
    rows = []
    for index, (picture, question) in enumerate(zip(pictures(), QUESTIONS, strict=True)):
        Image.fromarray(picture).save(tmp_path / f'{index}.png')
        rows.append(dict(image=str(tmp_path / f'{index}.png'), question=question, answer='red'))
    (tmp_path / 'rows.json').write_text(json.dumps([*rows, dict(image='', question='what', answer='red')]))
    (tmp_path / 'tasks').mkdir()
    (tmp_path / 'tasks/tiny.yaml').write_text(TASK.format(folder=tmp_path))
    (tmp_path / 'tasks/utils.py').write_text(UTILS)
    return tmp_path


def model(folder, **options) -> AptLlava:
    return AptLlava(str(folder / 'model'), device='cpu', dtype='float32', system='', thresholds='4.0', **options)


def run(folder, asked: AptLlava) -> list[str]:
    """The answers, by lmms-eval's loop."""
    manager = TaskManager(include_path=str(folder / 'tasks'), include_defaults=False)
    results = evaluator.simple_evaluate(asked, tasks=['tiny'], task_manager=manager, log_samples=True,
                                        bootstrap_iters=0)
    assert 'exact_match,none' in results['results']['tiny']
    samples = sorted(results['samples']['tiny'], key=lambda sample: sample['doc_id'])
    return [sample['resps'][0][0] for sample in samples]


def test_a_task_through_the_loop_of_lmms_eval(folder):
    """Fewer image tokens; in batches and one by one; the answers are those of generate."""
    packed = model(folder, batch_size=2)
    answers = run(folder, packed)
    assert packed.num_images == 3 and packed.num_tokens == 40 + 52 + 16
    assert answers == run(folder, model(folder))
    packed = model(folder)  # the loop has taken the other's weights away
    for picture, question, answer in zip(pictures(), QUESTIONS, answers, strict=False):
        batch = packed.processor(picture, f'USER: <image>\n{question} ASSISTANT:', return_tensors='pt')
        ids = packed.model.generate(**batch, max_new_tokens=3, do_sample=False)[0, batch.input_ids.shape[1]:]
        assert packed.processor.decode(ids, skip_special_tokens=True).strip() == answer
    plain = model(folder, variant='plain')
    assert run(folder, plain) == run(folder, model(folder, variant='dense')) and plain.num_tokens == 3 * 64


def test_the_prompt_is_llavas(folder):
    asked = AptLlava(str(folder / 'model'), device='cpu', dtype='float32')
    assert asked._prompt('<image>\nwhat ?\nAnswer with a word.', 1).endswith(
        "user's questions. USER: <image>\nwhat ?\nAnswer with a word. ASSISTANT:")
    assert asked._prompt('what ?', 0).endswith('questions. USER: what ? ASSISTANT:')
    assert asked._prompt('what ?', 2).endswith('USER: <image> <image>\nwhat ? ASSISTANT:')


def test_added_parameters_are_loaded(folder):
    source = model(folder).model
    torch.nn.init.normal_(source.model.vision_tower.apt.zero_mlp.weight)
    source.save_pretrained(folder / 'trained')
    loaded = model(folder, added=str(folder / 'trained')).model.model.vision_tower.apt
    assert torch.equal(loaded.zero_mlp.weight, source.model.vision_tower.apt.zero_mlp.weight)


def test_lmms_eval_finds_it_by_name():
    registry = ModelRegistryV2()
    registry.register_manifest(lmms_eval_model.manifest())
    assert registry.get_model_class('apt_llava') is AptLlava


@pytest.mark.parametrize('ask', ['loglikelihood', 'generate_until_multi_round'])
def test_other_kinds_of_tasks_are_refused(folder, ask):
    with pytest.raises(NotImplementedError, match='apt_llava writes answers'):
        getattr(model(folder), ask)([])


@pytest.mark.parametrize(('given', 'wanted'), [
    (dict(temperature=0, top_p=1.0, max_new_tokens=16, until=['\n'], image_aspect_ratio='original'),
     dict(max_new_tokens=16, do_sample=False, num_beams=1)),
    (dict(temperature=0.5, do_sample=True), dict(max_new_tokens=1024, do_sample=True, num_beams=1, temperature=0.5))])
def test_options_of_tasks(given, wanted):
    assert lmms_eval_model._generation(given) == wanted
    assert lmms_eval_model._before('red\nblue', ['\n']) == 'red'
