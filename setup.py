"""Package apt_dense.  Exact, tested versions are in requirements.txt; the ranges here are for a user's environment."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
IMAGES = ['numpy', 'pillow']
TOOLS = [*IMAGES, 'matplotlib', 'tqdm', 'scikit-image', 'safetensors']
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'apt_dense/__init__.py').read_text()).group(1)

setup(
    name='apt-dense',
    version=VERSION,
    description='Adaptive Patch Transformers for dense tasks: APT-EVA-02 for mmdetection and mmsegmentation',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8') if (ROOT / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['apt_dense', 'apt_dense.*']),
    # configs/ and tools/, where mmengine and OpenMMLab's mim look for those of a package; what needs a clone stays out.
    package_data={'apt_dense': ['.mim/configs/**/*.py', '.mim/tools/**/*.py', '.mim/tools/*.sh']},
    exclude_package_data={'apt_dense': ['.mim/tools/setup_env.sh', '.mim/tools/benchmark/benchmark_docs.py',
                                        '.mim/tools/demo/draw_overview.py', '.mim/tools/demo/draw_encoders.py',
                                        '.mim/tools/demo/draw_pictures.py',
                                        '.mim/tools/analysis_tools/model_zoo.py', '.mim/tools/docs/*',
                                        '.mim/tools/fault_drill/*',
                                        '.mim/tools/experiments/*', '.mim/tools/experiments/configs/*']},
    entry_points={'console_scripts': ['apt-dense = apt_dense.cli:main'],
                  'lmms_eval.models': ['apt_llava = apt_dense.hf.lmms_eval_model:manifest']},
    install_requires=['torch>=2.4'],
    extras_require={
        # mmcv without its compiled operators: apt_dense/mm/compat/operator_set.py has those that are needed.
        'mm': ['mmengine>=0.10.7,<0.11', 'mmcv-lite>=2.0.0rc4,<2.2.0', 'mmdet>=3.3,<3.4', 'mmsegmentation>=1.2.2,<1.3',
               'opencv-python<5',  # OpenCV 5 warps images differently
               'ftfy', 'regex', 'numpy', 'pillow', 'pycocotools', 'faster-coco-eval', 'tqdm'],
        'images': IMAGES,  # apt_dense.calibration.images, visualize_patches.py
        'tools': TOOLS,  # the other tools; those that read configs need 'mm' too
        'flash': ['flash-attn>=2.5'],
        'demo': [*IMAGES, 'gradio>=6', 'starlette'],  # apt-dense demo
        # apt_dense.hf; from_pretrained of a name.
        'hf': ['transformers>=5.24', 'huggingface_hub', 'safetensors', 'numpy'],
        # tools/vqa/train.py, and LLaVA's benchmarks by lmms-eval.
        'vqa': [*IMAGES, 'transformers>=5.24', 'tokenizers', 'accelerate', 'huggingface_hub', 'safetensors', 'tqdm',
                'lmms-eval', 'filelock<4'],  # which lmms-eval 0.7 needs and does not say
        'supervision': ['supervision'],  # Result.to_supervision
        'cls': ['torchvision'],  # apt_dense.mm.cls: transforms, and the list of classes' folders
        'gpu': ['torchvision'],  # RoIAlign and NMS there; of the release that belongs to torch's
        'export': ['onnx', 'onnxscript', 'onnxruntime'],  # tools/export.py, to ONNX
        # Those of tests/mm need 'mm' too.
        'test': [*TOOLS, 'pytest', 'pytest-xdist', 'hypothesis', 'packaging', 'ruff', 'tensorboard'],
    },
)
