#!/usr/bin/env python
"""Visual question answering, small, from nothing: train a LLaVA-1.5, then answer with fewer tokens; `make demo-vqa`.

    python tools/demo/run_vqa_demo.py --data data/demo_vqa --work-dir work_dirs/demo_vqa

Scenes of the demo generator with exact questions; a tower of CLIP's kind, which first learns what is in each cell, and
a language model of Llama's kind.  The dense model is trained; APT's added parameters get the short recipe, 5 % of its
scenes at a tenth of its rate.  Written into the work directory: the models, results.md and .json, questions.png.
"""
import argparse
import copy
import importlib.util
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import vqa_model
from torch import nn
from vqa_scenes import PATCH_PX, write_dataset

from apt_dense.command_line import at_least
from apt_dense.core.files import write_atomically
from apt_dense.drawing.panels import Panel, join_panels
from apt_dense.drawing.patches import draw_patches
from apt_dense.extras import from_extra
from apt_dense.hf import adapt_llava, llava_processor, load_added
from apt_dense.hf.image_patches import count_tokens
from apt_dense.hf.llava_data import draw_rows

with from_extra('vqa'):
    import numpy as np
    from PIL import Image
    from transformers import LlavaForConditionalGeneration, TrainingArguments, set_seed

THRESHOLD = 5.75  # the paper's for 28 px
NUM_SCENES = (2000, 200)
BATCH = 64  # questions
ZOOM = 3  # of the pictures


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('data/demo_vqa'))
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo_vqa'))
    parser.add_argument('--scenes', type=at_least(1), nargs=2, default=NUM_SCENES, help='of training and validation')
    parser.add_argument('--tower-steps', type=at_least(0), default=300, help='of the tower alone (300)')
    parser.add_argument('--steps', type=at_least(1), default=500, help='of the whole model (500)')
    parser.add_argument('--threshold', type=float, default=THRESHOLD, help=f'for 28 px ({THRESHOLD})')
    return parser.parse_args()


def short_recipe() -> object:
    """tools/vqa/train.py."""
    spec = importlib.util.spec_from_file_location('train_vqa', Path(__file__).parents[1] / 'vqa/train.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_dense(args: argparse.Namespace, rows: Sequence[Mapping], cells: np.ndarray) -> Path:
    """The folder of the dense model, which is trained unless it is there."""
    out = args.work_dir / 'dense'
    if (out / 'model.safetensors').exists():
        return out
    set_seed(0)
    model, processor = vqa_model.build_model(), vqa_model.build_processor()
    samples = vqa_model.samples_of(rows, args.data, processor)
    pixels = torch.cat([sample['pixel_values'] for sample in samples])
    right = vqa_model.train_tower(model.model.vision_tower, pixels, torch.from_numpy(cells).long(), args.tower_steps)
    print(f'[demo] the tower names {right:.0%} of the cells right', flush=True)
    vqa_model.train_dense(model, samples, args.steps, out, processor)
    return out


def train_apt(args: argparse.Namespace, dense: nn.Module, rows: Sequence[Mapping]) -> Path:
    """The file of what APT added, trained by the short recipe unless it is there."""
    out = args.work_dir / 'apt'
    if not (out / 'added.safetensors').exists():
        set_seed(0)
        model = adapt_llava(copy.deepcopy(dense), 2, (args.threshold,))
        processor = llava_processor(model, vqa_model.build_processor())
        settings = TrainingArguments(
            str(out), learning_rate=vqa_model.LEARNING_RATE / 10, lr_scheduler_type='cosine', warmup_steps=0.03,
            per_device_train_batch_size=4, num_train_epochs=1, logging_steps=5, save_strategy='no',
            remove_unused_columns=False, report_to='none', use_cpu=not torch.cuda.is_available(), disable_tqdm=True)
        short_recipe().train_added(model, processor, draw_rows(rows, 0.05, 0), args.data, settings, system='')
    return out / 'added.safetensors'


def variants(args: argparse.Namespace, dense: nn.Module, added: Path) -> dict[str, tuple]:
    """Models and their processors, by name."""
    found = {'dense': adapt_llava(copy.deepcopy(dense), variant='dense')}
    for name in ('random', 'resizing'):
        found[name] = adapt_llava(copy.deepcopy(dense), 2, (args.threshold,), variant=name)
    for name, repeat in (('APT', False), ('APT, rows repeated', True)):
        found[name] = adapt_llava(copy.deepcopy(dense), 2, (args.threshold,), repeat=repeat)
        load_added(found[name], added)
    return {name: (model.eval(), llava_processor(model, vqa_model.build_processor())) for name, model in found.items()}


def by_tokens(processor: object, rows: Sequence[Mapping], data: Path) -> list[tuple[str, str, str]]:
    """All questions, those of images with few tokens first: a batch takes as long as its longest prompt."""
    counts = {row['image']: count_tokens(processor(
        Image.open(data / row['image']).convert('RGB'), '<image>', return_tensors='pt')['patch_scales'])
        for row in rows}
    return sorted(vqa_model.single_questions(rows), key=lambda asked: counts[asked[0]])


def evaluate(models: Mapping[str, tuple], asked: Sequence[tuple], data: Path) -> dict[str, dict]:
    """Answers, accuracy, image tokens and time of each model, all in turns on the same questions."""
    found = {name: defaultdict(list) for name in models}
    for begin in range(0, len(asked), BATCH):
        part = asked[begin:begin + BATCH]
        images = [Image.open(data / image).convert('RGB') for image, _, _ in part]
        for name, (model, processor) in models.items():
            words, tokens, seconds = vqa_model.answers(model, processor, images, [question for _, question, _ in part])
            found[name]['seconds'].append(seconds)
            found[name]['answers'] += words
            found[name]['tokens'].append(tokens)
    whole = len(asked) * vqa_model.NUM_CELLS
    return {name: dict(answers=result['answers'], seconds=sum(result['seconds']), kept=sum(result['tokens']) / whole,
                       accuracy=share_right(result['answers'], asked)) for name, result in found.items()}


def share_right(words: Sequence[str], asked: Sequence[tuple[str, str, str]]) -> float:
    return statistics.mean(word == answer for word, (_, _, answer) in zip(words, asked, strict=True))


def without_image(model: nn.Module, train: Sequence[Mapping], asked: Sequence[tuple]) -> dict[str, float]:
    """Accuracy of the dense model without an image, and of each question's usual answer in training."""
    words = []
    for begin in range(0, len(asked), BATCH):
        part = [question for _, question, _ in asked[begin:begin + BATCH]]
        words += vqa_model.answers(model, vqa_model.build_processor(), None, part)[0]
    usual = vqa_model.usual_answers(train)
    return {'dense, without the image': share_right(words, asked),
            'the usual answer to each question': share_right([usual.get(q, '') for _, q, _ in asked], asked)}


def draw_questions(path: Path, asked: Sequence[tuple], data: Path, models: Mapping[str, tuple],
                   results: Mapping[str, dict], number: int = 8) -> None:
    """Some scenes with APT's patches, a question, its answer and what the models said."""
    step, panels = max(len(asked) // number, 1), []
    for index in range(0, min(step * number, len(asked)), step):
        image, question, answer = asked[index]
        picture = Image.open(data / image).convert('RGB')
        scales = models['APT'][1](picture, '<image>', return_tensors='pt')['patch_scales'][0].numpy()
        large = picture.resize([side * ZOOM for side in picture.size], Image.Resampling.LANCZOS)
        said = '\n'.join(f'{name}: {results[name]["answers"][index]}' for name in ('dense', 'APT'))
        panels.append(Panel(draw_patches(np.asarray(large), scales, PATCH_PX * ZOOM),
                            f'{question}\nright: {answer}\n{said}'))
    join_panels([panels[begin:begin + 4] for begin in range(0, len(panels), 4)]).save(path)


def report(results: Mapping[str, dict], blind: Mapping[str, float]) -> str:
    """The table of results."""
    lines = ['| model | accuracy | kept tokens | seconds | speed-up |', '|---|---|---|---|---|']
    for name, result in results.items():
        lines.append(f'| {name} | {result["accuracy"]:.3f} | {result["kept"]:.0%} | {result["seconds"]:.1f} | '
                     f'{results["dense"]["seconds"] / result["seconds"]:.2f} |')
    lines += [f'| {name} | {accuracy:.3f} | | | |' for name, accuracy in blind.items()]
    return '\n'.join(lines) + '\n'


def main() -> None:
    args = parse_args()
    wall, processor_time = time.perf_counter(), time.process_time()
    try:
        write_dataset(args.data, *args.scenes)
    except FileExistsError as error:
        sys.exit(f'error: {error}')
    (train, cells), (val, _) = (vqa_model.read_split(args.data, split) for split in ('train', 'val'))
    dense = LlavaForConditionalGeneration.from_pretrained(train_dense(args, train, cells)).eval()
    trained = time.perf_counter() - wall, time.process_time() - processor_time
    models = variants(args, dense, train_apt(args, dense, train))
    asked = by_tokens(models['APT'][1], val, args.data)
    results, blind = evaluate(models, asked, args.data), without_image(dense, train, asked)
    table = report(results, blind)
    write_atomically(args.work_dir / 'results.md', table)
    write_atomically(args.work_dir / 'results.json', json.dumps(dict(results=results, blind=blind), indent=1))
    draw_questions(args.work_dir / 'questions.png', asked, args.data, models, results)
    print(f'{table}\n[demo] data and dense model: {trained[0]:.0f} s, {trained[1]:.0f} s of processor time; in all '
          f'{time.perf_counter() - wall:.0f} s\n[demo] {args.work_dir}: results.md, questions.png')


if __name__ == '__main__':
    main()
