"""What `mkdocs build` does beside its plugins: pages from elsewhere, links, mathematics, lists.

- ARCHITECTURE.md and benchmarks/README.md are pages of the site, too. Links between files of the
  repository are turned into links between pages.
- The pages of the reference name what `__all__` of each room names; mkdocstrings writes them.
- Formulas become MathML, which browsers draw themselves: the site needs no script or font for them.
- `<!-- list: not run -->` becomes the list of the code blocks that no test runs, with the reasons.
"""

import html
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import api  # noqa: E402
import blocks  # noqa: E402

# File of the repository -> page of the site.
ELSEWHERE = {
  'ARCHITECTURE.md': 'architecture.md',
  'benchmarks/README.md': 'benchmarks.md',
  'scripts/examples': 'guide/examples.md',
  'README.md': 'index.md',
}
_ORIGINS = {page: path for path, page in ELSEWHERE.items() if path.endswith('.md')}
del _ORIGINS['index.md']  # a page of its own
_LINK = re.compile(r'(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))')
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)
NOT_RUN = '<!-- list: not run -->'


def on_files(files: Files, config: Any) -> Files:
  """Adds the pages that are not in `docs/`."""
  for page, origin in _ORIGINS.items():
    files.append(File.generated(config, page, content=(ROOT / origin).read_text('utf-8')))
  for page, text in api.pages().items():
    files.append(File.generated(config, page, content=text))
  return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
  """Returns a page whose links lead to pages, and with the list that it may ask for."""
  here = page.file.src_uri
  origin = _ORIGINS.get(here, f'docs/{here}')

  def link(found: re.Match[str]) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), found[1]))
    if path.startswith('scripts/examples/'):
      path = 'scripts/examples'  # one page shows them all
    if path not in ELSEWHERE and (origin.startswith('docs/') or not path.startswith('docs/')):
      return found[0]
    to = ELSEWHERE.get(path, path.removeprefix('docs/'))
    return posixpath.relpath(to, posixpath.dirname(here) or '.') + (found[2] or '')

  if NOT_RUN in markdown:
    markdown = markdown.replace(NOT_RUN, not_run(here))
  return _LINK.sub(link, markdown)


def on_page_content(text: str, **_: Any) -> str:
  """Returns the page with its formulas as MathML."""

  def formula(found: re.Match[str]) -> str:
    return convert(html.unescape(found[3]), display='inline' if found[2] == '(' else 'block')

  return _FORMULA.sub(formula, text)


def not_run(here: str) -> str:
  """Returns the table of blocks that no test runs, for a page at `here`."""
  rows = ['| page | block | why no test runs it |', '|---|---|---|']
  for path in blocks.sources():
    inside = path.is_relative_to(blocks.DOCS)
    to = (path.relative_to(blocks.DOCS) if inside else path.relative_to(ROOT)).as_posix()
    to = ELSEWHERE.get(to, to)
    href = posixpath.relpath(to, posixpath.dirname(here) or '.')
    for block in blocks.of(path.read_text('utf-8')):
      if block.reason:
        first = block.code.strip().splitlines()[0].replace('|', '\\|')
        rows.append(f'| [{to}]({href}) | `{first}` | {block.reason} |')
  return '\n'.join(rows)
