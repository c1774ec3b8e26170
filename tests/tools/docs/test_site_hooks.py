"""The site's pages from outside docs/, and that nothing is loaded from elsewhere.  `make docs` installs mkdocs."""
from types import SimpleNamespace

import pytest

from tests.locations import load_tool

pytest.importorskip('mkdocs')
hooks = load_tool('docs/site_hooks.py')
PAGE = SimpleNamespace(file=SimpleNamespace(src_uri='using.md'))


def test_links_lead_to_pages_of_the_site():
    text = ('[a](../README.md#two-commands) [b](CONTRIBUTING.md) [c](LICENSE) [d](thresholds.md#x) ![e](p/f.jpg) '
            '[f](tutorial.ipynb) [`cells`](results) [g](https://h.org/README.md)')
    assert hooks.on_page_markdown(text, PAGE, None, None) == (
        '[a](index.md#two-commands) [b](contributing.md) c [d](thresholds.md#x) ![e](p/f.jpg) [f](tutorial.md) `cells` '
        '[g](https://h.org/README.md)')


def test_a_notebook_as_markdown():
    cells = [dict(cell_type='markdown', source=['# T\n', 'text']), dict(cell_type='code', source=['a = 1\n', 'a'])]
    assert hooks.as_markdown(dict(cells=cells)) == '# T\ntext\n\n```python\na = 1\na\n```\n'


@pytest.mark.parametrize('tag', ['<script src="https://a.org/b.js">', '<img alt="c" src="//a.org/b.png">',
                                 '<link rel="stylesheet" href="https://a.org/b.css">'])
def test_what_loads_from_elsewhere_is_refused(tag):
    with pytest.raises(hooks.PluginError, match='using.md loads (https:)?//a.org/b'):
        hooks.on_post_page(f'<html>{tag}</html>', PAGE, None)


def test_links_and_own_files_are_fine():
    page = '<a href="https://a.org">a</a><link rel="next" href="https://b.org/c.html"><script src="d.js"></script>'
    assert hooks.on_post_page(page, PAGE, None) == page
