"""The demo's page: widgets around ``analysis``; it asks nothing of any other machine."""
from typing import Any

from apt_dense.core.scorers import SCORERS
from apt_dense.demo.analysis import MAX_MEGAPIXELS, MODELS, SIZES_PX, analyse, read_upload
from apt_dense.extras import from_extra

with from_extra('demo'):
    import gradio
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_FILE_SIZE = '40mb'
BY_SHARE, BY_THRESHOLDS = 'a share of the tokens', 'thresholds'
START = (5.5, 5.0, 4.0)  # thresholds
# A browser that keeps to it asks no other host for fonts or scripts.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: wss: data: blob:"


class OwnHostOnly:
    """Middleware that tells browsers to load nothing from anywhere else."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message['type'] == 'http.response.start':
                message['headers'] = [*message['headers'], (b'content-security-policy', POLICY)]
            await send(message)
        await self.app(scope, receive, send_with_policy)


def update(path: str | None, size_px: int, scorer: str, goal: str, kept: float, fine: float, middle: float,
           coarse: float, predictor: Any = None) -> tuple:
    """What the page shows for what its widgets say: message, patches, heat maps, tokens, speed, predictions.

    Whatever is wrong with a file is told in the message; nothing is raised for it.
    """
    try:
        if goal == BY_THRESHOLDS and scorer != 'entropy':
            raise ValueError('These thresholds are bits of entropy: choose patches by a share of the tokens, or '
                             f"'entropy' in place of {scorer!r}")
        image = read_upload(path)
        share = kept if goal == BY_SHARE else None
        found = analyse(image, size_px, (fine, middle, coarse), share, scorer)
        drawn = predictor.draw(image, (fine, middle, coarse), found.kept if share is None and
                               predictor.scorer != scorer else share) if predictor else None
    except (ValueError, MemoryError) as error:
        return f'### {error}', None, None, None, None, None
    values = ', '.join(f'{value:g}' for value in found.thresholds)
    message = f'### {found.kept:.1%} of the tokens kept, padding left out\n`thresholds=({values})`, fine to coarse'
    return message, found.patches, found.heat_maps, found.tokens, found.speed, drawn


def build_page(predictor: Any = None) -> gradio.Blocks:
    """The page.

    Args:
        predictor: a ``predictions.SideBySide``, for predictions too.
    """
    with gradio.Blocks(analytics_enabled=False, title='apt_dense') as page:
        gradio.Markdown('# Adaptive patches\nDrop a photograph, and move what is below it.')
        with gradio.Row():
            with gradio.Column(scale=1):
                file = gradio.File(label=f'Photograph, up to {MAX_FILE_SIZE.upper()} and {MAX_MEGAPIXELS} megapixels',
                                   type='filepath', height=120, elem_id='photograph')
                size = gradio.Radio(SIZES_PX, value=SIZES_PX[1], label='Longest side in pixels, padded to a square')
                goal = gradio.Radio([BY_SHARE, BY_THRESHOLDS], value=BY_SHARE, label='Choose patches by')
                kept = gradio.Slider(0.1, 1, 0.7, step=0.01, label='Share of the tokens to keep', elem_id='kept')
                sliders = [gradio.Slider(0, 8, value, step=0.05, label=f'Threshold of {side} px', visible=False,
                                         elem_id=f'threshold_{side}')
                           for side, value in zip((32, 64, 128), START, strict=True)]
                scorer = gradio.Dropdown(sorted(SCORERS), value='entropy', label='Scorer')
            with gradio.Column(scale=3):
                message = gradio.Markdown('### Drop a photograph to begin.', elem_id='message')
                look = dict(show_label=False, format='png', interactive=False, buttons=['download', 'fullscreen'])
                patches = gradio.Image(elem_id='patches', **look)
                gradio.Markdown('Scores of each patch size: dark merges first')
                heat_maps = gradio.Image(**look)
                gradio.Markdown("Predictions, by the model's own pipeline and scorer", visible=predictor is not None)
                predictions = gradio.Image(visible=predictor is not None, **look)
                with gradio.Row():
                    tokens = gradio.Dataframe(headers=['patch', 'tokens', 'of the area'], label='Tokens by size',
                                              interactive=False)
                    speed = gradio.Dataframe(headers=['backbone', 'dense', 'APT', 'speed-up'], interactive=False,
                                             label=f'Multiply-adds of {" and ".join(MODELS)}, padding included')
        goal.change(lambda chosen: [gradio.update(visible=chosen == BY_SHARE)] +
                    [gradio.update(visible=chosen == BY_THRESHOLDS)] * 3, goal,
                    [kept, *sliders], api_visibility='private')
        gradio.on([file.change, size.change, goal.change, scorer.change,
                   *(slider.change for slider in (kept, *sliders))],
                  lambda *values: update(*values, predictor=predictor), [file, size, scorer, goal, kept, *sliders],
                  [message, patches, heat_maps, tokens, speed, predictions], api_name='update', concurrency_limit=1,
                  trigger_mode='always_last')  # of a slider on its way only the last place counts
    return page


def serve(page: gradio.Blocks, host: str, port: int | None, block: bool = True) -> str:
    """Serve the page; return its address, if not ``block``."""
    theme = gradio.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])
    _, address, _ = page.launch(server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
                                max_file_size=MAX_FILE_SIZE, theme=theme, ssr_mode=False, show_error=True,
                                footer_links=[], app_kwargs=dict(middleware=[Middleware(OwnHostOnly)]))
    print(f'The page is at {address} (Ctrl-C ends it)', flush=True)
    if block:
        page.block_thread()
    return address
