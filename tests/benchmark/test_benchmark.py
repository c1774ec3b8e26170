"""The benchmark's cases, measurements and reports; its times are not judged."""
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from apt_dense.benchmark import report
from apt_dense.benchmark.__main__ import cases_of, main, parse_args
from apt_dense.benchmark.cases import Case
from apt_dense.benchmark.measure import STAGES, Marks, interleave, peak_memory, profile, seconds_of_stages
from apt_dense.benchmark.run import code_version, run_case
from apt_dense.benchmark.suites import PAPER, SUITES
from apt_dense.core.attention import _kernel
from apt_dense.core.block import _compiled_parts
from apt_dense.core.flops import ideal_speedup, multiply_adds
from apt_dense.core.position import resample_positions
from apt_dense.core.scorers import _compiled_scorer

TINY = Case('tiny', 'demo', 256, kept=(0.6, 0.3))


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    preset = dict(embed_dims=16, depth=4, num_heads=2, global_block_indexes=(1, 3))
    monkeypatch.setitem(sys.modules['apt_dense.core.eva02'].PRESETS, 'tiny', preset)


@pytest.fixture
def photo(tmp_path):
    """Three quarters noise, one quarter constant, 256 x 128 px."""
    pixels = np.full((128, 256, 3), 60, np.uint8)
    pixels[:, 64:] = np.random.default_rng(0).integers(0, 256, (128, 192, 3))
    Image.fromarray(pixels).save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png'


@pytest.mark.parametrize(('geometry', 'img_size'), [('det', 512), ('seg', 128), ('demo', 256)])
def test_both_models_have_one_set_of_weights(geometry, img_size):
    case = Case('tiny', geometry, img_size)
    dense, apt = case.build_model(dense=True), case.build_model(dense=False)
    added = dict(apt.named_parameters())
    for name, parameter in dense.named_parameters():
        assert torch.equal(parameter, added.pop(name)), name
    assert {name.split('.')[1] for name in added} == {'conv_down', 'zero_mlp'}
    assert apt.thresholds == (1.0,) * 3 and dense.thresholds == ()
    assert (apt.cls_token is not None) == (geometry == 'seg')


def test_a_checkpoint_of_another_grid_is_resampled(tmp_path):
    """As in training and testing: one trained at another image size serves."""
    case, larger = Case('tiny', 'seg', 128), Case('tiny', 'seg', 256)
    state = {f'backbone.{name}': value for name, value in larger.build_model(dense=False).state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'larger.pth')
    table = case.build_model(dense=True, checkpoint=tmp_path / 'larger.pth').pos_embed
    assert torch.equal(table, resample_positions(state['backbone.pos_embed'], 8))
    for name, value in (('pos_embed', torch.zeros(1, 17, 32)), ('pos_embed', torch.zeros(1, 18, 16)),
                        ('cls_token', torch.zeros(1, 1, 32))):
        torch.save({'state_dict': {**state, f'backbone.{name}': value}}, tmp_path / 'wrong.pth')
        with pytest.raises(ValueError, match=f'wrong.pth has another backbone than this row: {name} do not fit'):
            case.build_model(dense=True, checkpoint=tmp_path / 'wrong.pth')


def test_depth_keeps_the_first_blocks():
    whole, cut = Case('L', 'seg', 512).arguments(True), Case('L', 'seg', 512, depth=9).arguments(True)
    assert cut['global_block_indexes'] == list(range(9)) and cut['out_indices'] == [7] and whole['depth'] == 24
    cut = Case('L', depth=3).arguments(True)
    assert cut['global_block_indexes'] == [2] and cut['out_indices'] == [-1]


@pytest.mark.parametrize('mode', ['forward', 'train'])
def test_a_row(mode):
    row = run_case(replace(TINY, mode=mode, with_cp=mode == 'train'), 2, 0, memory=False)
    assert row['tokens'] == [154, 76] and row['cells'] == 512
    assert row['kept'] == 230 / 512
    model = TINY.build_model(False)
    ideal = ideal_speedup(model, model.make_layout(TINY.build_input()), mode == 'train', mode == 'train')
    assert row['apt']['ideal'] == ideal > 1.5
    ratios = [a / b for a, b in zip(row['dense']['seconds']['times'], row['apt']['seconds']['times'], strict=True)]
    assert row['apt']['speedup_range'] == [min(ratios), max(ratios)]
    stages = row['apt']['stages']
    assert set(stages) == set(STAGES) - {'expand'} - ({'backward'} if mode == 'forward' else set())
    assert min(stages.values()) > 0 and 'score' not in row['dense']['stages']


def test_no_reduction_scores_and_keeps_all():
    case = replace(TINY, kept=(1.0,))
    row = run_case(case, 1, 0, memory=False)
    assert row['kept'] == 1 and row['thresholds'] == (-1.0,) * 3 and row['apt']['ideal'] == 1
    assert row['apt']['stages']['score'] > 0


def test_stages_add_up(monkeypatch):
    """With a clock that ticks once a mark, every interval counts once, for the innermost stage."""
    ticks = iter(range(10**6))
    monkeypatch.setitem(sys.modules['apt_dense.benchmark.measure'].CLOCKS, 'wall', lambda: next(ticks))
    model, x = TINY.build_model(False), TINY.build_input()
    seconds = seconds_of_stages(TINY, model, x)
    assert seconds == dict(other=seconds['other'], layout=1, score=1, embed=1, blocks=4)
    assert sum(seconds.values()) == next(ticks) - 1
    assert not model.blocks[0]._forward_hooks and not model.patch_embed._forward_pre_hooks, 'the model is as before'


def test_stages_of_recomputed_blocks(monkeypatch):
    """A tick a mark: each block takes one forward, one when it is recomputed, and splits backward once."""
    ticks = iter(range(10**6))
    monkeypatch.setitem(sys.modules['apt_dense.benchmark.measure'].CLOCKS, 'wall', lambda: next(ticks))
    case = replace(TINY, mode='train', with_cp=True)
    seconds = seconds_of_stages(case, case.build_model(False), case.build_input())
    assert (seconds['blocks'], seconds['embed'], seconds['backward']) == (2 * 4, 2, 1 + 4 + 1)


def test_a_failure_keeps_the_rows_before_it(tmp_path, monkeypatch, capsys):
    module = sys.modules['apt_dense.benchmark.__main__']

    def fail_at_the_end(case, *arguments):
        if case.kept == (0.5,):
            raise torch.cuda.OutOfMemoryError('too large')
        if case.kept == (0.3,):
            raise RuntimeError('the driver is gone')
        return run_case(case, *arguments)

    monkeypatch.setattr(module, 'run_case', fail_at_the_end)
    target = tmp_path / 'rows.json'
    with pytest.raises(RuntimeError, match='driver'):
        main(['--model', 'tiny', '--geometry', 'demo', '--img-size', '256', '--kept', '0.7', '0.5', '0.9', '0.3',
              '--repeats', '1', '--no-memory', '--json', str(target)])
    assert [path.name for path in tmp_path.iterdir()] == ['rows.json.part']
    content = json.loads((tmp_path / 'rows.json.part').read_text())
    assert [row['case']['kept'] for row in content['rows']] == [[0.7], [0.9]]
    assert content['left_out'] == ['EVA-02-tiny demo 256, forward, batch 1, kept 0.5']


def test_nothing_fits(tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise torch.cuda.OutOfMemoryError('too large')

    monkeypatch.setattr(sys.modules['apt_dense.benchmark.__main__'], 'run_case', fail)
    assert main(['--model', 'tiny', '--geometry', 'demo', '--img-size', '256', '--kept', '0.7,0.3', '--with-cp', '1',
                 '--json', str(tmp_path / 'rows.json'), '--plot', str(tmp_path / 'rows.png')]) == 0
    assert capsys.readouterr().out == 'no row was measured\n'
    content = json.loads((tmp_path / 'rows.json').read_text())
    assert content['left_out'] == ['EVA-02-tiny demo 256, forward, checkpointing, batch 2, kept 0.7 0.3']


@pytest.mark.parametrize(('words', 'package', 'said'), [
    (['--plot', 'x.png'], 'matplotlib', '--plot needs matplotlib: pip install matplotlib'),
    (['photo.jpg'], 'PIL', 'PHOTO needs PIL: pip install pillow')])
def test_a_missing_package_is_told_before_anything_is_measured(words, package, said, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit):
        parse_args(words)
    assert said in capsys.readouterr().err


def test_a_missing_backend(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'flash_attn', None)
    _kernel.cache_clear()
    assert main(['--model', 'tiny', '--geometry', 'demo', '--img-size', '256', '--backend', 'flash_attn']) == 2
    assert "error: attn_backend='flash_attn' needs the package flash-attn" in capsys.readouterr().err
    _kernel.cache_clear()


def test_interleave_alternates_and_drops_the_warm_up():
    calls = []
    results = interleave({name: lambda name=name: calls.append(name) or len(calls) for name in 'ab'}, 2, 1)
    assert ''.join(calls) == 'abbaab'
    assert results == dict(a=[4, 5], b=[3, 6])


def test_peak_memory():
    """A step of the dense model holds its activations: in 4 blocks 257 rows of 192 or 512 channels, many times."""
    case = Case('Ti', 'seg', 256, kept=(0.5,), mode='train', depth=4)
    memory = peak_memory(case, 'dense')
    assert memory['total'] > memory['extra'] > 15


def test_process_clock():
    marks = Marks('cpu', 'process')
    marks.mark()
    sum(range(10**6))
    marks.mark()
    assert marks.seconds()['other'] > 0


def test_command_line_with_photograph(photo, tmp_path, capsys):
    target = tmp_path / 'out/rows.json'
    assert main([str(photo), '--model', 'Ti', '--geometry', 'demo', '--img-size', '256', '--repeats', '1',
                 '--tome', '--no-memory', '--json', str(target), '--plot', str(tmp_path / 'rows.png')]) == 0
    printed = capsys.readouterr().out
    # The noise: 96 cells of 16 px; the constant part: two patches of 64 px; the padding: two of 128 px.
    assert str(tmp_path / 'photo.png') not in target.read_text(), 'no place of this machine'
    row, = json.loads(target.read_text())['rows']
    assert row['title'] == 'EVA-02-Ti demo 256 photo.png' and row['case']['photos'] == ['photo.png']
    assert (row['tokens'], row['cells'], row['thresholds']) == ([100], 256, [2.0, 2.0, 0.3])
    assert '0.391' in printed and 'ToMe' in printed and 'cosine' in printed
    assert 'relative_error' in row['distance']['apt']
    assert Image.open(tmp_path / 'rows.png').width > 400


def test_errors_are_one_line(capsys):
    assert main(['--model', 'Ti', '--img-size', '500', '--no-memory']) == 2
    assert capsys.readouterr().err.startswith('error: ')
    assert main(['--suite', 'paper', '--model', 'S']) == 2
    assert 'the suite paper has no row' in capsys.readouterr().err
    assert main(['--model', 'Ti', '--graph-tokens', '256', '--mode', 'train']) == 2
    assert 'for passes without gradients' in capsys.readouterr().err
    for words in (['--mode', 'forward', 'train'], ['--compiled', '0', '1'], ['--suite', 'kept'], ['--new-images']):
        assert main(['--tome', *words]) == 2  # before the first row is measured
        assert 'token merging is compared in forward passes over one batch that are not' in capsys.readouterr().err


@pytest.mark.parametrize('arguments', [['--suite', 'paper', 'x.jpg'], ['x.jpg', '--kept', '0.5'],
                                       ['--profile', '--json', 'x.json']])
def test_contradictions(arguments, capsys):
    with pytest.raises(SystemExit):
        parse_args(arguments)
    assert 'leave' in capsys.readouterr().err


@pytest.mark.parametrize(('path', 'said'), [
    ('a.xyz', '--plot a.xyz: wanted a name that ends in one of'), ('/proc/no/a.png', 'takes no files')])
def test_a_plot_that_cannot_be_written_is_told_before_measuring(path, said, capsys):
    with pytest.raises(SystemExit):
        parse_args(['--plot', path])
    assert said in capsys.readouterr().err


def test_choices_and_settings():
    cases = [case for _, case in cases_of(parse_args(['--model', 'B', 'L', '--kept', '0.7', '0.9,0.2', '--batch', '2',
                                                      '--dtype', 'bfloat16', '--device', 'cuda']))]
    assert [(case.model, case.kept) for case in cases] == [(m, k) for m in 'BL' for k in ((0.7, 0.7), (0.9, 0.2))]
    assert {(case.dtype, case.device) for case in cases} == {('bfloat16', 'cuda')}
    cases = [case for _, case in cases_of(parse_args(['a.jpg', 'b.jpg', '--batch', '1', '3']))]
    assert [case.photos for case in cases] == [('a.jpg',), ('b.jpg',), ('a.jpg', 'b.jpg', 'a.jpg')]
    with pytest.raises(ValueError, match='for a batch of 2, not of 3'):
        cases_of(parse_args(['--kept', '0.9,0.2', '--batch', '3']))


@pytest.mark.parametrize('name', SUITES)
def test_suites_are_buildable(name):
    """Every case's sizes fit together; with --depth they stay the suite's rows."""
    cases = cases_of(parse_args(['--suite', name, '--depth', '3', '--device', 'cpu']))
    assert len(cases) > 1
    with torch.device('meta'):
        for arguments in {repr(case.arguments(False)): case.arguments(False) for _, case in cases}.values():
            sys.modules['apt_dense'].APTEVA02(**arguments)


def test_paper_suite_has_the_papers_rows():
    assert [(case.model, case.geometry, case.img_size) for _, case in SUITES['paper']()] == list(PAPER)


def test_tables_and_growth_plot(tmp_path):
    rows = [run_case(replace(TINY, kept=(kept,)), 1, 0, memory=False) | dict(group='kept') for kept in (0.3, 0.9)]
    for row, extra in zip(rows, (50.0, 80.0), strict=True):
        row['dense']['memory'] = dict(total=200.0, extra=100.0)
        row['apt']['memory'] = dict(total=150.0, extra=extra)
        row['scoring_memory'] = dict(total=110.0, extra=7.0)
    rows[0]['paper'] = dict(dense=2.0, apt=3.0, speedup=1.5)
    text = report.report(rows)
    assert text.splitlines()[0].endswith('float32, attention auto, wall time, 1 round')
    memory = [line.split() for line in report.memory_table(rows).splitlines()[2:]]
    assert [line[-14::2] for line in memory] == [['100', '50', '0.50', '200', '150', '0.75', '7'],
                                                 ['100', '80', '0.80', '200', '150', '0.75', '7']]
    paper = report.paper_table(rows)
    assert 'RTX A6000' in paper.splitlines()[0] and '2.00' in paper
    widths = {len(line) for line in report.times_table(rows).splitlines()}
    assert len(widths) == 1, 'columns are aligned'
    report.plot(tmp_path / 'growth.png', rows)
    assert Image.open(tmp_path / 'growth.png').height > 300


def test_a_compiled_row(monkeypatch):
    compiled = []

    def compile_quickly(function, **options):
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, 'compile', compile_quickly)
    for function in (_compiled_parts, _compiled_scorer):
        function.cache_clear()
    row = run_case(replace(TINY, compiled=True), 1, 0, stages=False, memory=False)
    for function in (_compiled_parts, _compiled_scorer):
        function.cache_clear()
    assert compiled == ['patch_entropy', '_before_attention', '_after_attention']
    assert report.mode_of(row) == 'forward, compiled' and row['case']['compiled']


def test_profile_prints_the_operators_of_both_models(capsys):
    assert main(['--model', 'tiny', '--geometry', 'demo', '--img-size', '256', '--mode', 'forward', 'train',
                 '--profile']) == 0
    tables = capsys.readouterr().out.split('EVA-02-tiny demo 256, ')[1:]
    assert [table.splitlines()[0] for table in tables] == \
        [f'{mode}, batch 1, {kind}:' for mode in ('forward', 'train') for kind in ('dense', 'apt')]
    assert all('Self CPU time total' in table for table in tables)


def test_profile_is_of_the_whole_pass():
    """Only APT counts a histogram, only training goes backwards.  (A short table has what takes longest, by chance.)"""
    found = []
    for mode in ('forward', 'train'):
        case = replace(TINY, mode=mode)
        for dense in (True, False):
            table = profile(case, case.build_model(dense), case.build_input(), num_rows=1000)
            found.append(('aten::scatter_add_' in table, 'backward' in table.lower()))
    assert found == [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(('seconds', 'text'), [(0, '-'), (0.0001234, '0.123 ms'), (0.0456, '45.6 ms'), (0.2, '200 ms'),
                                               (1.5, '1.50 s'), (98.76, '98.8 s'), (321.0, '321 s')])
def test_format_seconds(seconds, text):
    assert report.format_seconds(seconds) == text


def test_code_version_tells_changed_code(tmp_path, monkeypatch):
    def git(*arguments):
        who = ['-c', 'user.name=Somebody', '-c', 'user.email=somebody@example.org']
        done = subprocess.run(['git', *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert code_version(tmp_path) == ''
    code = tmp_path / 'code'
    code.mkdir()
    (code / 'a.py').write_text('1')
    git('init')
    git('add', '.')
    git('commit', '-m', 'Add a')
    commit = git('rev-parse', '--short', 'HEAD').strip()
    (tmp_path / 'figures.json').write_text('2')
    assert code_version(code) == commit
    (code / 'a.py').write_text('2')
    assert code_version(code) == f'{commit} with changes'
    monkeypatch.setenv('PATH', '')
    assert code_version(code) == ''


def test_rows_of_one_run_can_be_told_apart():
    rows = [run_case(case, 1, 0, memory=False)
            for case in (replace(TINY, kept=(0.5,)), replace(TINY, kept=(0.5,), dtype='bfloat16'))]
    assert [report.mode_of(row) for row in rows] == ['forward', 'forward, bfloat16']
    for row in rows:
        row['dense']['memory'] = row['apt']['memory'] = row['scoring_memory'] = dict(total=2.0, extra=1.0)
    for table in (report.times_table, report.memory_table, report.stages_table):
        found = ['forward, bfloat16' in line for line in table(rows).splitlines()[2:]]
        assert sorted(found) == found and found.count(True) == found.count(False)
    assert all('| 1 1 1 |' in ' '.join(line.split()) for line in report.memory_table(rows).splitlines()[2:])


@pytest.mark.slow
def test_needs_torch_only():
    others = ['mmengine', 'mmdet', 'mmcv', 'mmseg', 'matplotlib', 'PIL', 'numpy']
    script = (f'import sys; sys.modules.update(dict.fromkeys({others})); '
              'from apt_dense.benchmark.__main__ import main; sys.exit(main(sys.argv[1:]))')
    words = ['--model', 'Ti', '--geometry', 'demo', '--img-size', '256', '--depth', '1', '--repeats', '1']
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', script, *words], capture_output=True, text=True)
    assert done.returncode == 0 and '| EVA-02-Ti first 1 blocks demo 256 | forward |' in done.stdout, done.stderr


@pytest.mark.parametrize(('model', 'img_size', 'prefix'), [('DINOv3-S', 256, 5), ('SAM3', 336, 0), ('CLIP-L', 336, 1)])
def test_other_encoders(model, img_size, prefix):
    """Each by its own patch size, normalisation and rows before the patches; dense and APT share their weights."""
    case = Case(model, 'own', img_size, kept=(0.6, 0.3), depth=2)
    row = run_case(case, 1, 0, memory=False, stages=False)
    assert row['kept'] == pytest.approx(0.45, abs=0.01) and row['title'] == f'{model} first 2 blocks {img_size}'
    apt = case.build_model(dense=False)
    assert apt.num_prefix == prefix and len(apt.blocks) == 2
    assert row['apt']['ideal'] == pytest.approx(ideal_speedup(apt, apt.make_layout(case.build_input())))


def test_encoders_and_their_geometries():
    cases = cases_of(parse_args(['--model', 'DINOv3-L', 'B']))
    assert [(case.model, case.geometry) for _, case in cases] == [('DINOv3-L', 'own'), ('B', 'det')]
    for model, geometry in (('DINOv3-L', 'det'), ('B', 'own')):
        with pytest.raises(ValueError, match=f'{model} has no geometry .{geometry}.: EVA-02 has det, seg and demo'):
            Case(model, geometry).arguments(True)


def test_new_images_have_other_numbers_of_tokens(monkeypatch):
    """Every method sees the same batch in a round, no batch comes twice, and the ideal is of those that count."""
    seen = []
    original = sys.modules['apt_dense.benchmark.run'].seconds_of_pass
    monkeypatch.setattr('apt_dense.benchmark.run.seconds_of_pass',
                        lambda case, model, x: (seen.append((model.num_scales, x)), original(case, model, x))[1])
    case = replace(TINY, new_images=True)
    row = run_case(case, 3, 1, stages=False, memory=False)
    rounds = [dict(seen[place:place + 2]) for place in range(0, 8, 2)]
    assert all(torch.equal(batches[1], batches[4]) for batches in rounds), 'dense and APT side by side'
    model = case.build_model(dense=False)
    layouts = [model.make_layout(batches[1]) for batches in rounds]
    totals = [sum(layout.images.lengths) for layout in layouts]
    assert totals == [230, 236, 224, 242]
    assert row['tokens'] == [157, 79] and row['kept'] == pytest.approx(sum(totals[1:]) / 3 / 512)
    assert row['apt']['multiply_adds'] == pytest.approx(
        sum(multiply_adds(model, layout).total for layout in layouts[1:]) / 3)
    assert 'new images in each' in report.describe([row]) and 'new images' not in report.describe(
        [run_case(TINY, 1, 0, stages=False, memory=False)])


def test_new_images_are_a_choice_of_the_command_line(capsys):
    (_, case), = cases_of(parse_args(['--new-images']))
    assert case.new_images and not cases_of(parse_args([]))[0][1].new_images
    with pytest.raises(SystemExit):
        parse_args(['x.jpg', '--new-images'])
    assert 'photographs are one batch: leave --new-images out' in capsys.readouterr().err
    assert main(['--new-images', '--kept', '0.9999', '--img-size', '512', '--model', 'Ti', '--depth', '1']) == 2
    assert 'of 1024 cells' in capsys.readouterr().err
