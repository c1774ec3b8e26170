"""tools/export.py: what it writes runs, and what it says of bad input."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

import apt_dense
from apt_dense.mm.errors import DataError
from tests.locations import load_tool
from tests.mm.inference.conftest import checkpoints, dense_det  # noqa: F401

tool = load_tool('export.py')


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_apt(checkpoints, task, tmp_path, capsys):  # noqa: F811
    assert tool.main([str(checkpoints[task]), str(tmp_path / 'out/apt.pt2'), '--tokens', '60']) == 0
    said = capsys.readouterr().out
    assert '60 tokens' in said and 'checked: differs from the model by' in said
    loaded = apt_dense.load(checkpoints[task], max_tokens=60 - (task == 'seg'))
    model, size_px = loaded.module.backbone, [loaded.cfg.model.backbone.img_size] * 2
    x = tool.sample_image(size_px)
    encoder = tool.FixedEncoder(model, size_px, 60)
    with torch.no_grad():
        wanted = model(x)
        found = torch.export.load(tmp_path / 'out/apt.pt2').module()(x, **encoder.inputs(model.last_layout))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_dense(dense_det, tmp_path, capsys):  # noqa: F811
    config, weights = map(str, dense_det)
    assert tool.main([config, str(tmp_path / 'dense.pt2'), '--weights', weights, '--size', '128', '256']) == 0
    assert 'image (1, 3, 128, 256), 128 tokens' in capsys.readouterr().out


def test_a_file_that_differs_is_an_error(dense_det, tmp_path, monkeypatch):  # noqa: F811
    def export(encoder, image, layout, path):
        path.write_bytes(b'a program')
        return lambda image, layout: [torch.zeros(1, 32, 8, 8)]

    monkeypatch.setattr(tool, 'export_program', export)
    config, weights = map(str, dense_det)
    with pytest.raises(DataError, match='would differ from the model by 1.0e[+]00'):
        tool.main([config, str(tmp_path / 'new/dense.pt2'), '--weights', weights, '--size', '128', '128'])
    assert not any((tmp_path / 'new').iterdir())


def test_bad_input(checkpoints, dense_det, tmp_path):  # noqa: F811
    apt, (config, weights) = str(checkpoints['det']), map(str, dense_det)
    for arguments, said in (
            ([apt, 'a.trt'], "ends in '.trt': choose one of .pt2, .onnx"),
            ([apt, 'a.pt2'], 'say how many tokens, --tokens'),
            ([apt, 'a.pt2', '--tokens', '60', '--size', '100', '256'], 'multiples of'),
            ([apt, 'a.pt2', '--tokens', '100000'], 'a bucket of 100000 tokens'),
            ([config, 'a.pt2', '--weights', weights, '--tokens', '60'], 'leave --tokens out')):
        with pytest.raises(DataError, match=said.replace('.', '[.]')):
            tool.main(arguments)


@pytest.mark.parametrize(('changes', 'size_px'), [({}, (64, 96)), (dict(img_size=None), (224, 224)),
                                                  (dict(img_size=128), (128, 128))])
def test_a_family_with_registers(changes, size_px, tmp_path, monkeypatch):
    """The bucket holds all rows before the patches; a size that no config gives is the family's."""
    settings = dict(img_size=(64, 96), embed_dims=32, depth=2, num_heads=2, num_scales=2, thresholds=(2.0,)) | changes
    settings = {name: value for name, value in settings.items() if value is not None}
    backbone = apt_dense.APTDINOv3(**settings).eval()
    model = SimpleNamespace(module=SimpleNamespace(backbone=backbone), cfg=Config(dict(model=dict(
        backbone=dict(settings, type='APTDINOv3')))))
    monkeypatch.setattr(tool, 'load', lambda *_, **options: model)
    _, encoder = tool.open_encoder(tool.parse_args(['model', str(tmp_path / 'a.pt2'), '--tokens', '20']))
    assert encoder.size_px == size_px and backbone.chooser.max_tokens == 15
    if size_px == (64, 96):
        layout = backbone.make_layout(torch.randn(1, 3, *size_px))
        assert 6 < layout.num_tokens <= 20 and encoder.inputs(layout)
