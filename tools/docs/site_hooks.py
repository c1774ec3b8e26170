"""What mkdocs needs to know of this repository: pages outside docs/, and the notebook."""
import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Page of the site -> file in the project's folder.
OUTSIDE = {'index.md': 'README.md', 'contributing.md': 'CONTRIBUTING.md', 'changelog.md': 'CHANGELOG.md'}
PAGES = {source: page for page, source in OUTSIDE.items()} | {'tutorial.ipynb': 'tutorial.md'}
NOT_PAGES = {'CITATION.cff', 'LICENSE', 'results'}  # linked to, and no part of the site: their names stay as text
# What a browser loads by itself; a link that is clicked is none of it.
LOADED = re.compile(r'<(?:script|img|iframe|source|link(?! rel="(?:canonical|next|prev)"))\b[^>]*?'
                    r'\b(?:src|href)="((?:https?:)?//[^"]+)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in docs/."""
    for page, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding='utf-8').replace('](docs/', '](')
        files.append(File.generated(config, page, content=text))
    notebook = json.loads((ROOT / 'docs/tutorial.ipynb').read_text(encoding='utf-8'))
    files.append(File.generated(config, 'tutorial.md', content=as_markdown(notebook)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to the pages of the site; leave those to files that it does not have."""
    return re.sub(r'(!?)\[([^]]*)\]\(([^)\s]+)\)', _link, markdown)


def _link(match: re.Match) -> str:
    picture, text, target = match.groups()
    path, hash_, anchor = target.partition('#')
    name = path.removeprefix('../')
    if name in NOT_PAGES:
        return text
    return f'{picture}[{text}]({PAGES.get(name, path)}{hash_}{anchor})'


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads anything from elsewhere: the site works offline, and tells nobody who reads it."""
    if found := LOADED.findall(output):
        raise PluginError(f'{page.file.src_uri} loads {", ".join(found)}: put it into docs/')
    return output


def as_markdown(notebook: dict) -> str:
    """A notebook's texts, and its code as blocks, without results."""
    parts = []
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        parts.append(source if cell['cell_type'] == 'markdown' else f'```python\n{source}\n```')
    return '\n\n'.join(parts) + '\n'
