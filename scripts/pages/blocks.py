"""The code blocks of the documentation, and the comments that say how a test takes them.

A comment right before a block changes what the test does with it:

- `<!-- not run: REASON -->`: nothing; the site lists the block with its reason.
- `<!-- run with: WORDS -->`: these words are put behind each command, such as `--set rounds=2`.
- `<!-- over: FILE -->`: a TOML block is laid over this configuration instead of a small one.
- `<!-- alone -->`: a TOML block is a whole configuration.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
LANGUAGES = ('python', 'bash', 'toml')
# Four backquotes and lines that are indented, as in a list, are blocks, too.
_FENCE = re.compile(
  r'(?:^ *<!-- (?P<word>not run|run with|over|alone)(?:: (?P<said>.*?))? -->\n+)?'
  r'^(?P<indent> *)(?P<ticks>```+)(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)(?P=ticks)$',
  re.M | re.S,
)


class Block(NamedTuple):
  """A block of code in a page.

  Attributes:
    language: one of `LANGUAGES`.
    code: its lines.
    word: the word of the comment before it, or ''.
    said: what the comment says after its colon.
  """

  language: str
  code: str
  word: str
  said: str

  @property
  def reason(self) -> str:
    """Why it is not run; '' if it is."""
    return self.said if self.word == 'not run' else ''


def sources() -> list[Path]:
  """Returns the Markdown files that are pages of the site, in order."""
  own = sorted(DOCS.rglob('*.md'))
  return [*own, ROOT / 'ARCHITECTURE.md', ROOT / 'benchmarks' / 'README.md']


def of(text: str) -> list[Block]:
  """Returns the blocks of a page in the languages that a test takes, in order.

  Raises:
    ValueError: a block that is not run states no reason.
  """
  found = []
  for one in _FENCE.finditer(text):
    if one['language'] not in LANGUAGES:
      continue
    lines = one['code'].splitlines(keepends=True)
    code = ''.join(x.removeprefix(one['indent']) for x in lines)
    block = Block(one['language'], code, one['word'] or '', (one['said'] or '').strip())
    if block.word == 'not run' and not block.said:
      raise ValueError(f'a block that is not run must state its reason, got none: {code[:60]!r}.')
    found.append(block)
  return found
