"""The command ``apt-dense``: the project's tools by name, wherever the package is installed."""
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parent / '.mim/tools'
# Name -> tool and what it does.
COMMANDS = {
    'predict': ('predict.py', 'predict pictures, folders and videos'),
    'patches': ('analysis_tools/visualize_patches.py', 'draw the patches that are chosen, count the tokens'),
    'calibrate': ('analysis_tools/calibrate_thresholds.py', 'find thresholds for a share of the tokens'),
    'convert': ('model_converters/eva02_to_mm.py', 'convert an official EVA-02 checkpoint'),
    'convert-vit': ('model_converters/vit_to_mm.py', 'convert a ViT, DINOv2, DINOv3, CLIP or SAM 3'),
    'check': ('check_data.py', 'check a config and its data'),
    'export': ('export.py', "export a model's encoder: torch.export, ONNX"),
    'demo': ('demo/serve_page.py', 'a page to play with, in the browser'),
    'train': ('train.py', 'train a config'),
    'test': ('test.py', 'test a checkpoint'),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a tool, as ``python tools/TOOL.py`` would.

    Returns:
        2 for an unknown command, or where a package of its extra is missing; else the tool's own status, by which it
        exits.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ('-h', '--help'):
        print(_help())
        return 0 if arguments else 2
    name = arguments[0]
    if name == '--version':
        from apt_dense import __version__
        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f'error: apt-dense has no command {name!r}\n\n{_help()}', file=sys.stderr)
        return 2
    try:
        _run(name, arguments[1:])
    except ModuleNotFoundError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):  # from_extra's, whose message says all
            raise
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def _run(name: str, arguments: list[str]) -> None:
    """Run a tool's script as the main module, which says ``apt-dense NAME`` of itself in usage and examples.

    runpy would set ``sys.argv[0]``, which argparse shows, to the script's path.
    """
    tool = COMMANDS[name][0]
    source = (TOOLS / tool).read_text(encoding='utf-8').replace(f'python tools/{tool}', f'apt-dense {name}')
    main = ModuleType('__main__')
    main.__file__ = str(TOOLS / tool)
    sys.argv, sys.modules['__main__'] = [f'apt-dense {name}', *arguments], main
    exec(compile(source, main.__file__, 'exec'), main.__dict__)


def _help() -> str:
    lines = [f'  {name:11} {what}' for name, (_, what) in COMMANDS.items()]
    return '\n'.join(['usage: apt-dense COMMAND ...', '', *lines, '', 'apt-dense COMMAND --help says more.'])


if __name__ == '__main__':
    sys.exit(main())
