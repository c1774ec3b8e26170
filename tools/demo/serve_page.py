#!/usr/bin/env python
"""A page to play with: drop a photograph, move thresholds or a share, see patches, scores, tokens and the speed-up.

    apt-dense demo
    apt-dense demo --model work_dirs/mine/iter_3000.pth

It listens on this machine alone, unless --host says otherwise, and asks nothing of any other.  The speed-up is that of
the multiply-adds of EVA-02-B's and L's backbones as detectors.  With --model, its predictions stand beside those of the
same model with nothing merged.
"""
import argparse
import os
import sys


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', help='a checkpoint, or the name or file of a config (then with --weights)')
    parser.add_argument('--weights', help='checkpoint of the config; official EVA-02 files are converted on the way')
    parser.add_argument('--device', default='auto', help="of the model: 'auto', 'cpu', 'cuda', 'cuda:1'")
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on; 0.0.0.0: all of this machine, for '
                        'everybody who reaches it (%(default)s)')
    parser.add_argument('--port', type=int, help='(default: the first free one from 7860 on)')
    args = parser.parse_args(arguments)
    if args.port is not None and not 0 < args.port < 65536:
        parser.error(f'--port {args.port}: wanted 1 to 65535')
    if args.weights and not args.model:
        parser.error('--weights without --model: give the config that they belong to')
    return args


def main(arguments: list[str] | None = None, block: bool = True) -> int:
    args = parse_args(arguments)
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    try:
        from apt_dense.demo.page import build_page, serve
        predictor = None
        if args.model:
            from apt_dense.demo.predictions import SideBySide
            predictor = SideBySide(args.model, args.weights, args.device)
        serve(build_page(predictor), args.host, args.port, block)
    except (ValueError, ModuleNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:  # gradio's, of an address that cannot be listened on
        port = args.port or '7860 and those after it'
        print(f'error: {args.host}, port {port}: {error}. Choose another --port or --host', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
