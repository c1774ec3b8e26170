"""What the converters of tools/model_converters share: their options, the files, and the report."""
import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from apt_dense.core import files
from apt_dense.core.renaming import Conversion


def converter_options(description: str) -> argparse.ArgumentParser:
    """SRC, DST, --config, --weights and --force."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, metavar='SRC')
    parser.add_argument('target', type=Path, metavar='DST')
    parser.add_argument('--config', help='check names and shapes against this model, store its classes')
    parser.add_argument('--weights', metavar='ENTRY', help="which entry of the file to take, such as 'model_ema'")
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    return parser


def check_target(args: argparse.Namespace) -> None:
    """Raise ValueError if DST must not be written."""
    if args.target.exists() and args.source.exists() and args.target.samefile(args.source):
        raise ValueError(f'SRC and DST are the same file, {args.source}')
    if args.target.exists() and not args.force:
        raise ValueError(f'{args.target} exists: remove it, or replace it with --force')
    files.check_target(args.target)


def read_config(config: str | None) -> tuple[dict | None, dict]:
    """Names and shapes of a config's model, its dataset's classes and palette; None and nothing without a config."""
    if config is None:
        return None, {}
    from apt_dense.mm.cli import model_shapes
    return model_shapes.read_config(config)


def write_converted(args: argparse.Namespace, conversion: Conversion, classes: Mapping, **meta: str) -> None:
    """Write DST: the state dict, and where it comes from."""
    meta = dict(converted_from=args.source.name, **meta)
    if classes:
        meta['dataset_meta'] = dict(classes)
    content = dict(meta=meta, state_dict=conversion.state_dict)
    files.write_atomically(args.target, lambda file: torch.save(content, file))


def report(conversion: Conversion, kind: str, entry: str, others: list[str]) -> str:
    """What became of the file, in lines; the first says what it is."""
    parameters = sum(tensor.numel() for tensor in conversion.state_dict.values())
    lines = [kind, f'taken from:  {entry or "the whole file"}',
             f'mapped:      {len(conversion.mapped)} keys, {parameters / 1e6:.1f} M values',
             f'dropped:     {len(conversion.dropped)} keys without a counterpart here'
             + (f': {", ".join(conversion.dropped[:6])}{", ..." if len(conversion.dropped) > 6 else ""}'
                if conversion.dropped else ''),
             'left over:   none']
    lines += [f'resampled:   {line}' for line in conversion.resampled]
    if others:
        lines.append(f'not used:    entries {", ".join(others)}')
    if conversion.absent:
        lines.append(f'not in it:   {", ".join(conversion.absent)}')
    return '\n'.join(lines)


def run(main: Callable[[], None]) -> None:
    """Run a converter; what a user can mend ends with one line and status 2."""
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        print(f'error: {error}\nNothing was written.', file=sys.stderr)
        sys.exit(2)
