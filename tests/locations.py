"""Where the project's scripts and configs are, for tests that run them."""
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
TOOLS = ROOT / 'tools'


def load_tool(path: str) -> ModuleType:
    """The script tools/``path`` as it is run, with what lies beside it: 'analysis_tools/get_flops.py', for example."""
    script = TOOLS / path
    spec = importlib.util.spec_from_file_location(script.stem, script)
    tool = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(script.parent))
    try:
        spec.loader.exec_module(tool)
    finally:
        sys.path.remove(str(script.parent))
    return tool
