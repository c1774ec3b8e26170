"""Which device a run takes: never the CPU of a machine with a GPU without a word."""
import os
import shutil
from pathlib import Path

import torch
from mmengine.device import get_device

from apt_dense.mm.errors import LaunchError

NO_GPU = ('', '-1')  # of CUDA_VISIBLE_DEVICES: what hides all GPUs, on purpose


def check_device() -> None:
    """Refuse to run on the CPU where a GPU is there, or torch is built for one.

    ``CUDA_VISIBLE_DEVICES=`` (empty, or -1) hides all GPUs, and insists on the CPU.

    Raises:
        LaunchError: saying why CUDA is not available, and what to do.
    """
    if get_device() != 'cpu' or os.environ.get('CUDA_VISIBLE_DEVICES') in NO_GPU:
        return
    signs = gpu_signs()
    if torch.version.cuda is None and (not signs or torch.version.hip):
        return
    build = f'built for CUDA {torch.version.cuda}' if torch.version.cuda else 'a build without CUDA'
    there = f'the machine has {" and ".join(signs)}' if signs else 'no NVIDIA device is seen'
    raise LaunchError(f'this run would take the CPU: torch {torch.__version__} is {build}, {there}, and torch has no '
                      f'CUDA: {_reason(bool(signs))}. To run on the CPU all the same: set CUDA_VISIBLE_DEVICES= '
                      '(empty)')


def gpu_signs() -> list[str]:
    """What says that an NVIDIA GPU or its driver is here, whatever torch can do with it."""
    devices = [str(path) for path in sorted(Path('/dev').glob('nvidia[0-9]*'))]
    tool = shutil.which('nvidia-smi')
    return devices[:1] + ([tool] if tool else [])


def _reason(has_gpu: bool) -> str:
    """Why torch finds no GPU, and the remedy."""
    if torch.version.cuda is None:
        return f'install its CUDA build, pip install torch=={torch.__version__.partition("+")[0]}'
    if 'CUDA_VISIBLE_DEVICES' in os.environ:
        return (f'CUDA_VISIBLE_DEVICES={os.environ["CUDA_VISIBLE_DEVICES"]!r} names no GPU of this machine, as Slurm '
                'sets it for a job without --gres=gpu:N: ask for GPUs, or unset it')
    try:
        torch.cuda.init()
        said = 'it found no device'
    except Exception as error:  # torch raises RuntimeError, its CUDA library what it likes
        said = str(error).splitlines()[0].rstrip('. ')
    if has_gpu:
        return (f'{said}. If the driver is older than this CUDA, update it, or install a torch for it; nvidia-smi '
                'names the newest CUDA that the driver takes. In a Slurm job, ask for GPUs: --gres=gpu:N')
    return (f'{said}. Start on a machine with a GPU (not the login node), a container with --gpus all, a Slurm job '
            'with --gres=gpu:N')


def set_local_rank(launcher: str, given: int) -> None:
    """Set LOCAL_RANK, by which mmengine gives a data-parallel model its GPU, unless the launcher has.

    mmengine itself does so for Slurm; for mpirun it only chooses the current GPU.

    Args:
        launcher: of the command.
        given: what torch.distributed.launch has put on the command line; 0 without it.
    """
    if launcher == 'mpi' and 'OMPI_COMM_WORLD_LOCAL_RANK' in os.environ:
        os.environ['LOCAL_RANK'] = os.environ['OMPI_COMM_WORLD_LOCAL_RANK']
    os.environ.setdefault('LOCAL_RANK', str(given))
