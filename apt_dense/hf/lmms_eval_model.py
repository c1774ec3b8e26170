"""A model of lmms-eval: LLaVA-1.5 with a packed tower, ``--model apt_llava``."""
import os
from pathlib import Path
from typing import Any

import torch

from apt_dense.extras import from_extra
from apt_dense.hf.llava import adapt_llava
from apt_dense.hf.llava_data import IMAGE, SYSTEM, conversation_text
from apt_dense.hf.llava_processor import llava_processor
from apt_dense.hf.saving import load_added

with from_extra('vqa'):
    from lmms_eval.api.instance import Instance
    from lmms_eval.api.model import lmms
    from lmms_eval.models.registry_v2 import ModelManifest
    from tqdm import tqdm
    from transformers import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration

GREEDY = dict(max_new_tokens=1024, do_sample=False, num_beams=1)
FOR_GENERATE = (*GREEDY, 'temperature', 'top_p')
ONLY_TEXT = 'apt_llava writes answers (generate_until); this task asks for something else: {}'


class AptLlava(lmms):
    """Answers by greedy generation unless the task says otherwise, under LLaVA-1.5's own prompt.

    Args: of ``--model_args``, as words.
        pretrained: name or folder of a LlavaForConditionalGeneration.
        added: the file or folder of the parameters that APT added; without it they have no effect.
        thresholds: fine to coarse, with ':' between them.
        variant: as of ``adapt_llava``; 'plain' leaves transformers' model as it is.
        system: what stands before a question.
        device, dtype, batch_size: where, in what, and how many questions at once.
        device_map, load_in_4bit: of ``from_pretrained``; the tower is not quantised.
        max_batch_size: not used; lmms-eval hands it to all models.

    Attributes:
        num_tokens: image tokens of all answered questions, ``num_images`` of how many images.
    """

    def __init__(self, pretrained: str = 'llava-hf/llava-1.5-7b-hf', added: str | None = None,
                 thresholds: str | float = '5.75', variant: str = 'apt', system: str = SYSTEM,
                 device: str | None = None, dtype: str = 'bfloat16', batch_size: int | str = 1,
                 device_map: str | None = None, load_in_4bit: bool = False, max_batch_size: int | None = None):
        super().__init__()
        default = f'cuda:{os.environ.get("LOCAL_RANK", 0)}' if torch.cuda.is_available() else 'cpu'
        self.device = torch.device(default if device in (None, 'cuda') else device)
        self.batch_size, self.system = int(batch_size), system
        values = tuple(float(value) for value in str(thresholds).split(':'))
        model = LlavaForConditionalGeneration.from_pretrained(
            pretrained, dtype=getattr(torch, dtype), device_map=device_map or {'': str(self.device)},
            **_quantised(load_in_4bit))
        processor = AutoProcessor.from_pretrained(pretrained)
        if variant != 'plain':
            adapt_llava(model, len(values) + 1, values, variant=variant, image_processor=processor)
            processor = llava_processor(model, processor)
        if added is not None:
            load_added(model, Path(added))
        processor.tokenizer.padding_side = 'left'
        self.model, self.processor = model.eval(), processor
        self.num_tokens = self.num_images = 0

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, in the order of the requests; those of one batch have one way of generation."""
        found: list[str | None] = [None] * len(requests)
        by_options: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_options.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(index)
        with tqdm(total=len(requests), disable=self.rank != 0, desc='answers') as progress:
            for indexes in by_options.values():
                for begin in range(0, len(indexes), self.batch_size):
                    part = indexes[begin:begin + self.batch_size]
                    for index, answer in zip(part, self._answer([requests[i] for i in part]), strict=True):
                        found[index] = answer
                        self.cache_hook.add_partial('generate_until', requests[index].args[:2], answer)
                    progress.update(len(part))
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(ONLY_TEXT.format('likelihoods'))

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError(ONLY_TEXT.format('several rounds'))

    def _answer(self, requests: list[Instance]) -> list[str]:
        images, texts = [], []
        for request in requests:
            context, _, doc_to_visual, doc_id, task, split = request.args
            seen = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual is not None else []
            seen = [image.convert('RGB') for image in seen or []]
            images += seen
            texts.append(self._prompt(context, len(seen)))
        batch = self.processor(images or None, texts, return_tensors='pt', padding=True)
        self.num_images += len(images)
        self.num_tokens += int((batch['input_ids'] == self.processor.image_token_id).sum())
        batch = batch.to(self.model.device, self.model.dtype)
        options = dict(requests[0].args[1])
        until = options.get('until', [])
        with torch.inference_mode():
            ids = self.model.generate(**batch, **_generation(options))[:, batch['input_ids'].shape[1]:]
        answers = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [_before(answer, [until] if isinstance(until, str) else until).strip() for answer in answers]

    def _prompt(self, context: str, num_images: int) -> str:
        question = context.replace(IMAGE, '').strip()
        text, _ = conversation_text([{'value': question}, {'value': ''}], '', self.system)
        marks = ' '.join([IMAGE] * num_images)
        return text.replace('USER: ', f'USER: {marks}\n' if marks else 'USER: ', 1).rstrip()


def _generation(options: dict[str, Any]) -> dict[str, Any]:
    """A task's options as generate's: a temperature of 0 means greedy."""
    chosen = {**GREEDY, **{name: value for name, value in options.items() if name in FOR_GENERATE}}
    if not chosen.get('temperature'):
        chosen |= dict(do_sample=False)
    if not chosen['do_sample']:
        chosen.pop('temperature', None)
        chosen.pop('top_p', None)
    return chosen


def _before(text: str, ends: list[str]) -> str:
    for end in ends:
        text = text.split(end)[0] if end else text
    return text


def _quantised(load_in_4bit: bool) -> dict[str, Any]:
    """The language model's weights in four bits."""
    if not load_in_4bit:
        return {}
    kept = ['model.vision_tower', 'model.multi_modal_projector', 'lm_head']
    return dict(quantization_config=BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=kept))


def manifest() -> ModelManifest:
    """What lmms-eval's entry point wants to know."""
    return ModelManifest(model_id='apt_llava', simple_class_path='apt_dense.hf.lmms_eval_model.AptLlava')
