"""The documents' links, paths and commands name what exists."""
import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from apt_dense.cli import COMMANDS
from tests.locations import ROOT
from tests.published import published

DOCUMENTS = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md', *sorted(ROOT.glob('docs/**/*.md'))]
PATH = re.compile(r'(?<![\w/.-])(?:tools|tests|apt_dense|docs|configs)/[\w/{},*.-]+\.(?:py|sh|md|jpg)\b')
# Of what is no more: the changelog's left column and its removed files.
GONE = re.compile(r'(?m)^### Removed$.*?(?=^###? )|^\|[^|]*\|', re.DOTALL)


def text_of(path: Path) -> str:
    """A document; of the changelog, what it says of today."""
    text = path.read_text(encoding='utf-8')
    return GONE.sub('', text) if path.name == 'CHANGELOG.md' else text


def without_code(text: str) -> str:
    return re.sub(r'(?ms)^```.*?^```', '', text)


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors that GitHub gives a document's headings."""
    found: list[str] = []
    for title in re.findall(r'(?m)^#+ (.+)$', without_code(path.read_text(encoding='utf-8'))):
        title = re.sub(r'\[([^]]*)]\([^)]*\)', r'\1', title)
        slug = re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
        found.append(slug)
    return frozenset(f'{slug}-{found[:place].count(slug)}' if slug in found[:place] else slug
                     for place, slug in enumerate(found))


def expand(name: str) -> Iterator[str]:
    """'a_{b,c}.py' -> 'a_b.py', 'a_c.py', as a shell does."""
    parts = [part[1:-1].split(',') if part.startswith('{') else [part] for part in re.split(r'(\{[^}]*})', name)]
    yield from map(''.join, product(*parts))


def missing(names: set[str], folder: Path = ROOT) -> list[str]:
    """The names, with braces and wildcards, that no file below the folder has."""
    return sorted(name for pattern in names for name in expand(pattern) if not any(folder.glob(name)))


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_links(path):
    for target in re.findall(r'\]\(([^)\s]+)\)', without_code(path.read_text(encoding='utf-8'))):
        if re.match(r'[a-z]+:', target):
            continue
        file, _, anchor = target.partition('#')
        aim = (path.parent / file).resolve() if file else path
        assert aim.exists(), f'{target}: no such file'
        assert not anchor or anchor in anchors(aim), f'{target}: {aim.name} has the anchors {sorted(anchors(aim))}'


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_paths(path):
    text = text_of(path)
    assert not missing({name for name in PATH.findall(text) if 'NAME' not in name})
    assert not missing(set(re.findall(r'`((?:core|calibration|benchmark|mm)/[\w/]+\.py)`', text)), ROOT / 'apt_dense')
    others = {file.name for folder in ('apt_dense', 'tools') for file in (ROOT / folder).rglob('eva02*.py')}
    configs = set(re.findall(r'(?<![\w/.{}*-])((?:apt_)?eva02_[\w{},*]+\.py)\b', text)) - others
    assert not missing(configs, ROOT / 'configs')


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_modules(path):
    """`apt_dense.a.b.c` is a module, or c is defined in one."""
    for name in set(re.findall(r'\bapt_dense(?:\.(?!__)[a-zA-Z_]\w*)+', text_of(path))):
        parts = name.split('.')
        homes = [ROOT.joinpath(*parts[:length]) for length in range(len(parts), 0, -1)]
        files = (file for base in homes for file in (base.with_suffix('.py'), base / '__init__.py'))
        home = next(file for file in files if file.is_file())
        rest = parts[len(home.relative_to(ROOT).with_suffix('').parts) - (home.name == '__init__.py'):]
        assert not rest or re.search(rf'\b{rest[0]}\b', home.read_text(encoding='utf-8')), name


def shell_lines(text: str) -> list[str]:
    """The commands of a document: the lines of its shell blocks, and what running text quotes."""
    blocks = re.findall(r'(?ms)^```bash\n(.*?)^```', text)
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    return [*lines, *re.findall(r'`((?:python|make|apt-dense) [^`\n]*)`', text)]


def commands(text: str) -> Iterator[list[str]]:
    """The words after 'python' of each call of a script or of a module of the package; `apt-dense X` calls one too."""
    for line in shell_lines(text):
        command = re.match(r'apt-dense ([a-z]+)(.*)', re.sub(r'\s#.*', '', line))
        if command:
            yield [f'tools/{COMMANDS[command[1]][0]}', *shlex.split(command[2])]
        found = re.search(r'\bpython ((?:tools/|-m apt_dense).*)', re.sub(r'\s#.*', '', line))
        if found:
            yield shlex.split(found[1])


def fields_of(script: str) -> set[str]:
    """The options of a script whose arguments are transformers' and the fields of its own dataclasses."""
    own = re.findall(r'(?m)^    (\w+): ', (ROOT / script).read_text(encoding='utf-8'))
    return {*own, *(field.name for field in dataclasses.fields(published('transformers').TrainingArguments))}


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_options(path):
    """Every option of a command is one of the script's, or of the module that it hands its arguments to."""
    shared = ''.join(file.read_text(encoding='utf-8') for file in (ROOT / 'apt_dense').rglob('*.py'))
    for words in commands(path.read_text(encoding='utf-8')):
        script = shared if words[0] == '-m' else (ROOT / words[0]).read_text(encoding='utf-8') + shared
        known = fields_of(words[0]) if 'HfArgumentParser' in script.removesuffix(shared) else set()
        for option in (word.split('=')[0] for word in words if word.startswith('--')):
            assert f"'{option}'" in script or option[2:] in known, f'{option} of {" ".join(words)}'


def test_make_targets():
    targets = set(re.findall(r'(?m)^([a-z-]+):', (ROOT / 'Makefile').read_text(encoding='utf-8')))
    named = {name for path in DOCUMENTS for line in shell_lines(path.read_text(encoding='utf-8'))
             for name in re.findall(r'^make ([a-z-]+)', line)}
    assert named and named <= targets


def test_ten_lines_without_a_checkpoint(tmp_path, monkeypatch, capsys):
    text = (ROOT / 'docs/using.md').read_text(encoding='utf-8').partition('## Ten lines')[2]
    code = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
    assert len(code.splitlines()) <= 10
    Image.linear_gradient('L').convert('RGB').save(tmp_path / 'photo.jpg')
    monkeypatch.chdir(tmp_path)
    exec(compile(code, 'using.md', 'exec'), {})
    shape, tokens = capsys.readouterr().out.splitlines()
    assert shape == re.search(r'# (torch\.Size.*)', code)[1]
    assert re.fullmatch(r'\d+ tokens in place of 4096', tokens)


def test_the_tutorial_is_kept_without_results():
    """... which would grow the repository, and whose links and paths hold too."""
    path = ROOT / 'docs/tutorial.ipynb'
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert len(code) > 5 and not any(cell['outputs'] or cell['execution_count'] for cell in code)
    texts = ''.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')
    links = re.findall(r'\]\(([^)\s]+)\)', texts)
    assert links
    for file, _, anchor in (target.partition('#') for target in links):
        assert not anchor or anchor in anchors(path.parent / file), f'{file}#{anchor}'
        assert (path.parent / file).is_file(), file
