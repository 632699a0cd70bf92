"""Writes the reference pages of `fedjax_mem.federated` from its docstrings and field tables.

python scripts/reference.py [folder]
"""

import dataclasses
import inspect
import sys
from pathlib import Path

from fedjax_mem import federated
from fedjax_mem.federated.config import describe

FOLDER = Path(__file__).parent.parent / 'docs' / 'reference'


def page() -> str:
  """Returns the page in Markdown."""
  said = ['# fedjax_mem.federated', '', inspect.cleandoc(federated.__doc__ or '')]
  for name in federated.__all__:
    item = getattr(federated, name)
    said += ['', f'## {name}', '', '```text', inspect.getdoc(item) or '', '```']
    if isinstance(item, type) and dataclasses.is_dataclass(item) and name.endswith('Config'):
      said += ['', '| Parameter | Type | Default | Description |', '|---|---|---|---|']
      said += [
        f'| `{n}` | `{t}` | {d} | {doc} |'.replace(' | None`', ' or None`')
        for n, t, d, doc in describe(item)
      ]
    if inspect.isclass(item):
      for method, value in sorted(vars(item).items()):
        text = inspect.getdoc(value) if not method.startswith('_') else None
        if text and (inspect.isfunction(value) or isinstance(value, property)):
          call = str(inspect.signature(value)) if inspect.isfunction(value) else ''
          said += ['', f'### {name}.{method}{call}', '', '```text', text, '```']
  return '\n'.join(said) + '\n'


def main() -> None:
  """Writes the page."""
  folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'federated.md').write_text(page(), encoding='utf-8')


if __name__ == '__main__':
  main()
