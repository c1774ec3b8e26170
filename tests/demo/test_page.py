"""The demo's page, served: twenty odd uploads one after the other; in a browser; and the command."""
import shutil
import urllib.request

import numpy as np
import pytest
from PIL import Image

from tests.demo.odd_files import write_odd_files
from tests.locations import load_tool

pytest.importorskip('gradio')
gradio_client = pytest.importorskip('gradio_client')

from apt_dense.demo.page import BY_SHARE, BY_THRESHOLDS, build_page, serve, update  # noqa: E402

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


class Predictor:
    scorer = 'entropy'

    def draw(self, image, thresholds, kept):
        self.asked = thresholds, kept
        return image


@pytest.fixture(scope='module')
def address():
    page = build_page()
    yield serve(page, '127.0.0.1', None, block=False)
    page.close()


def test_many_odd_uploads(address, tmp_path):
    """Each is answered, with figures or with a message, and the page goes on."""
    good, bad = write_odd_files(tmp_path)
    client = gradio_client.Client(address, verbose=False)
    rest = (512, 'entropy', BY_THRESHOLDS, 0.7, 4.0, 3.0, 2.0)
    for path in [path for pair in zip(good, bad, strict=False) for path in pair] + good[len(bad):]:
        message, patches, *_, speed, _ = client.predict(gradio_client.handle_file(path), *rest, api_name='/update')
        if path in good:
            assert 'tokens kept' in message and patches and len(speed['data']) == 2, path
        else:
            assert path.name in message and patches is None, (path, message)


def test_only_this_machine_and_nothing_from_elsewhere(address):
    assert address.startswith('http://127.0.0.1:')
    with urllib.request.urlopen(address) as answer:
        assert "default-src 'self'" in answer.headers['content-security-policy']


def test_predictions_are_asked_for_the_same(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)).save(tmp_path / 'a.png')
    predictor = Predictor()
    shown = update(str(tmp_path / 'a.png'), 512, 'entropy', BY_SHARE, 0.5, 1.0, 1.0, 1.0, predictor)
    assert predictor.asked == ((1.0, 1.0, 1.0), 0.5) and shown[-1].size == (140, 90)
    update(str(tmp_path / 'a.png'), 512, 'entropy', BY_THRESHOLDS, 0.5, 3.0, 2.0, 1.0, predictor)
    assert predictor.asked == ((3.0, 2.0, 1.0), None)
    predictor.scorer = 'upsampling_error_max'  # bits are not for it: it gets the share that they keep
    shown = update(str(tmp_path / 'a.png'), 512, 'entropy', BY_THRESHOLDS, 0.5, 7.5, 7.5, 7.5, predictor)
    assert predictor.asked[1] < 1 and f'{predictor.asked[1]:.1%} of the tokens' in shown[0]


def test_thresholds_of_another_scorer_are_no_bits(tmp_path):
    Image.fromarray(np.zeros((90, 140, 3), np.uint8)).save(tmp_path / 'a.png')
    message, patches, *_ = update(str(tmp_path / 'a.png'), 512, 'variance', BY_THRESHOLDS, 0.5, 3.0, 2.0, 1.0)
    assert 'bits of entropy: choose patches by a share' in message and patches is None


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium')
def test_the_main_path_in_a_browser(address, tmp_path):
    """Drop a photograph, see its patches, move the share, drop a text; nothing is asked of another host."""
    playwright = pytest.importorskip('playwright.sync_api')
    noise = np.random.default_rng(0).normal(size=(300, 400, 3)) * np.linspace(0, 40, 400)[:, None]
    Image.fromarray((128 + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / 'photo.png')
    (tmp_path / 'text.jpg').write_text('no picture')
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.set_default_timeout(60000)
        asked = []
        page.on('request', lambda request: asked.append(request.url))
        page.goto(address)
        page.set_input_files('#photograph input[type=file]', tmp_path / 'photo.png')
        message = page.locator('#message')
        playwright.expect(message).to_contain_text('of the tokens kept', timeout=60000)
        first = message.inner_text()
        page.wait_for_selector('#patches img')
        slider = page.locator('#kept input[type=number]')
        slider.fill('0.45')
        slider.press('Enter')
        playwright.expect(message).not_to_have_text(first, timeout=60000)
        page.screenshot(path=str(tmp_path / 'page.png'), full_page=True)
        assert len(np.unique(np.asarray(Image.open(tmp_path / 'page.png').convert('L')))) > 100
        page.get_by_label('Clear').first.click()
        playwright.expect(message).to_contain_text('Drop a photograph', timeout=60000)
        page.set_input_files('#photograph input[type=file]', tmp_path / 'text.jpg')
        playwright.expect(message).to_contain_text('text.jpg is no picture that can be read', timeout=60000)
        browser.close()
    assert all(url.startswith((address, 'data:', 'blob:')) for url in asked), asked


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--port', '99999'], '--port 99999: wanted 1 to 65535'),
    (['--weights', 'a.pth'], '--weights without --model'),
    (['--model', 'x.pth'], 'checkpoint x.pth does not exist'),
    (['--host', '203.0.113.7', '--port', '7999'], '203.0.113.7, port 7999: '),
])
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tool = load_tool('demo/serve_page.py')
    try:
        status = tool.main(arguments, block=False)
    except SystemExit as stopped:
        status = stopped.code
    errors = [line for line in capsys.readouterr().err.splitlines() if 'error: ' in line]
    assert status == 2 and len(errors) == 1 and message in errors[0], errors
