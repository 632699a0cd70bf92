"""Tables in LaTeX, and as PDF where `pdflatex` is."""

import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_mem.report.tables import show

_SPECIAL = {
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  **{x: f'\\{x}' for x in '&%$#_{}'},
  '±': r'$\pm$',
  '–': '--',
  'ε': r'$\varepsilon$',
  'δ': r'$\delta$',
  'μ': r'$\mu$',
  '★': r'$\star$',
  '≤': r'$\le$',
}
_SECONDS = 60  # after which pdflatex counts as stuck


def escaped(text: str) -> str:
  r"""Returns a text as LaTeX sets it; characters that its fonts lack become '?'.

  >>> escaped('50% of x_1 ± 2')
  '50\\% of x\\_1 $\\pm$ 2'
  """
  return ''.join(_SPECIAL.get(x, x if x.isascii() else '?') for x in text)


def document(
  rows: Sequence[Mapping[str, Any]], caption: str, bold: Sequence[int] = (), notes: str = ''
) -> str:
  """Returns rows as a LaTeX document with one table; it needs no package.

  Args:
    rows: dicts; their keys are the columns, in the order of first appearance.
    caption: text above the table.
    bold: numbers of the rows that are set in bold.
    notes: text below the table.
  """
  heads = list(dict.fromkeys(k for row in rows for k, x in row.items() if x is not None))
  lines = [' & '.join(map(escaped, heads)) + r' \\ \hline']
  for i, row in enumerate(rows):
    cells = [escaped(show(row.get(head))) for head in heads]
    lines.append(' & '.join(rf'\textbf{{{x}}}' if i in bold else x for x in cells) + r' \\')
  body = '\n'.join(lines)
  return (
    '\\documentclass{article}\n\\begin{document}\n\\thispagestyle{empty}\n'
    f'\\begin{{table}}\n\\caption{{{escaped(caption)}}}\n\\footnotesize\n'
    f'\\begin{{tabular}}{{{"l" * len(heads)}}}\n\\hline\n{body}\n\\hline\n\\end{{tabular}}\n\n'
    f'{escaped(notes)}\n\\end{{table}}\n\\end{{document}}\n'
  )


def compile(source: pathlib.Path) -> pathlib.Path | None:
  """Writes the PDF of a LaTeX file beside it and returns its path; None where that cannot be.

  Without `pdflatex` there is no PDF. Nothing in the file can run a program.

  Raises:
    RuntimeError: `pdflatex` is there and does not accept the file; the message has its first error.
  """
  program = shutil.which('pdflatex')
  if program is None:
    return None
  with tempfile.TemporaryDirectory() as folder:
    command = [program, '-no-shell-escape', '-interaction=nonstopmode', '-halt-on-error']
    command += [f'-output-directory={folder}', str(source.absolute())]
    try:
      done = subprocess.run(command, capture_output=True, timeout=_SECONDS, cwd=folder, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
      raise RuntimeError(f'{source} cannot be compiled: {error}') from error
    made = pathlib.Path(folder) / f'{source.stem}.pdf'
    if done.returncode or not made.exists():
      said = done.stdout.decode(errors='replace').splitlines()
      first = next((x for x in said if x.startswith('!')), 'no reason is given')
      raise RuntimeError(f'{source} cannot be compiled: {first}')
    target = source.with_suffix('.pdf')
    shutil.copyfile(made, target)
  return target
