"""Cut the reference files of this folder out of the full ones: python tests/data/cut.py FOLDER_OF_FULL_FILES

Arrays whose values are all float16 numbers (inputs and weights are) are stored as float16; everything else keeps its
dtype.  README.md says what is dropped.
"""
import json
import sys
from pathlib import Path

import numpy as np

MAPS = ('in/uint8_hwc', 'map/', 'mask/')
CLASSIFIER = ('in/uint8', 'tok/where', 'out/tokens', 'out/block', 'out/pooled', 'out/logits', 'out/dense/logits')
EMBED = ('in/uint8_bhwc', 'map/', 'tok/output_mask', 'tok/cu_seqlens', 'out/tokens', 'out/rope')
FILES = {  # name: prefixes of the keys to keep
    'apt_maps_512_china': MAPS,
    'apt_maps_odd_200x312': MAPS,
    'apt_embed_3scale': (*EMBED, 'sd/', 'in/pos_embed'),
    'apt_embed_3scale_no64': EMBED,  # weights and positions are those of apt_embed_3scale
    'eva02_det_backbone_a': ('in/', 'sd/', 'out/'),
    'eva02_seg_backbone': ('in/', 'sd/', 'out/'),
    'apt_vit_cls_token': CLASSIFIER,
}
DROPPED = ('entropy_batched', 'base_mini_pos_embed', 'rope.freqs', 'rope_win.', 'rope_glb.',
           'last_feat', 'fpn3',  # these two equal a block's output
           'out/patch_embed',  # tokens_in is that and the position
           'block0_attn', 'block3_attn')
# Of these every third row and column is kept: all phases of an upsampling by 2 or 4.
SUBSAMPLED = ('out/p2', 'out/p3', 'out/fpn1', 'out/fpn2')
EVERY_FOURTH = ('out/tokens', 'out/block')  # channel, of the classifier's rows


# The detector: image, recipe of the weights and outputs of five files in one.  Output -> rows to keep.
DETECTOR = {
    'det_small_io0': {
        **dict.fromkeys(('proposals_0', 'proposal_logits_0', 'det0_masks28', 'post0_boxes', 'post0_scores',
                         'post0_classes', 'post0_masks_packbits', 'post0_masks_shape', 'padded_input_sub16')),
        **{f'stage{stage}_{name}': rows for stage in range(3)
           for name, rows in (('pooled', 2), ('logits', 60), ('deltas', None), ('boxes', None))}},
    'det_small_top100': dict.fromkeys(('det0_boxes', 'det0_scores', 'det0_classes')),
    'det_small_softnms': dict.fromkeys(('num_kept', 'det0_scores_all', 'det0_classes_all', 'det0_boxes')),
    'det_small_softnms_maskness': {'det0_scores_all': None},
}
EVERY_THIRD = [f'{name}p{level}' for name in ('', 'rpn_logits_', 'rpn_deltas_') for level in (2, 3, 4, 5, 6)]


# Token reductions in one file: of each run the rows after the last block, logits, where rows went, sizes, gradients.
REDUCTIONS = {
    'tome_vit': ('r8_prop', 'r8', 'sched_prop', 'decr_prop', 'cap_prop'),
    'evit_vit': ('keep70', 'keep70_fuse', 'row_fuse', 'arg60_fuse'),
    'dtem_vit': ('r8', 'sched', 'cap', 'train_once', 'train_soft')}
REDUCED = ('logits', 'block5', 'dest', 'idx', 'size', 'class_token_after_block', 'grad/')


def cut_reductions(source: Path, target: Path) -> None:
    """Write reductions.npz: in/uint8_bhwc, NAME/meta and NAME/RUN/... of the three files."""
    kept = {}
    for name, runs in REDUCTIONS.items():
        full = np.load(source / f'{name}.npz')
        kept[f'{name}/meta'] = full['meta']
        image = kept.setdefault('in/uint8_bhwc', full['in/uint8_bhwc'])  # all have the same
        assert np.array_equal(image, full['in/uint8_bhwc'])
        kept |= {f'{name}/{run}/{key}': full[f'out/{run}/{key}'] for run in runs for key in
                 (key.removeprefix(f'out/{run}/') for key in full.files if key.startswith(f'out/{run}/'))
                 if key.startswith(REDUCED)}
    np.savez_compressed(target / 'reductions.npz', **kept)


def cut_detector(source: Path, target: Path) -> None:
    """Write det_small.npz: io0/, top100/, softnms/ and maskness/ hold the outputs of the file of that name."""
    weights, first = np.load(source / 'det_small_weights.npz'), np.load(source / 'det_small_io0.npz')
    kept = {'meta': first['meta'], 'weights_meta': weights['meta'],
            'in/image_uint8_chw_rgb': first['in/image_uint8_chw_rgb']}
    explicit = json.loads(str(weights['meta']))['explicit']  # all other weights follow from their recipe
    kept |= {f'sd/{name}': smallest(weights[f'sd/{name}']) for name in explicit}
    for name, outputs in DETECTOR.items():
        full, short = np.load(source / f'{name}.npz'), name.split('_')[-1]
        assert np.array_equal(full['in/image_uint8_chw_rgb'], kept['in/image_uint8_chw_rgb'])
        kept |= {f'{short}/{key}': full[key] for key in full.files if key.startswith('sd_changed/')}
        kept |= {f'{short}/{key}': full[f'out/{key}'][:rows] if rows else full[f'out/{key}']
                 for key, rows in outputs.items()}
    kept |= {f'io0/{key}_every_third': first[f'out/{key}'][..., ::3, ::3] for key in EVERY_THIRD}
    kept['io0/det0_masks28'] = kept['io0/det0_masks28'].astype(np.float16)  # probabilities: within 2.5e-4
    for key in [key for key in kept if key.endswith('classes') or key.endswith('classes_all')]:
        kept[key] = kept[key].astype(np.uint8)
    np.savez_compressed(target / 'det_small.npz', **kept)
    print(f'{(target / "det_small.npz").stat().st_size:>9} det_small')


def main(source: Path, target: Path) -> None:
    cut_reductions(source, target)
    cut_detector(source, target)
    for name, prefixes in FILES.items():
        full = np.load(source / f'{name}.npz')
        kept = {'meta': full['meta']}
        for key in full.files:
            if key.startswith(prefixes) and not any(part in key for part in DROPPED):
                values = full[key]
                if key in SUBSAMPLED:
                    key, values = f'{key}_every_third', values[..., ::3, ::3]
                if name == 'apt_vit_cls_token' and key.startswith(EVERY_FOURTH):
                    key, values = f'{key}_every_fourth', values[..., ::4]
                kept[key] = smallest(values)
        if 'in/normalised' in full.files:
            check_normalised(full)
        np.savez_compressed(target / f'{name}.npz', **kept)
        print(f'{(target / name).with_suffix(".npz").stat().st_size:>9} {name}')


def smallest(values: np.ndarray) -> np.ndarray:
    """The values in float16, if that loses nothing."""
    if values.dtype == np.float32:
        with np.errstate(over='ignore'):
            half = values.astype(np.float16)
        return half if np.array_equal(half.astype(np.float32), values) else values
    return values


def check_normalised(full: np.lib.npyio.NpzFile) -> None:
    """The normalised input is dropped: make sure that the uint8 image and the meta give exactly it."""
    meta = json.loads(str(full['meta']))
    meta = meta if 'mean' in meta else meta['config']
    mean, std = (np.array(meta[key], np.float32)[:, None, None] for key in ('mean', 'std'))
    image = full['in/uint8_bhwc'].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    assert np.array_equal((image - mean) / std, full['in/normalised'])


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(__file__).parent)
