"""Tables in LaTeX: what is special is escaped, and a compiler's answer is heard."""

import os
import shutil

import pytest

from fedjax_mem.report import latex

ROWS = [{'a_b': '50% ± 1', 'n': 3}, {'a_b': r'\x{y}~^', 'n': None}]


def test_a_document_has_all_cells_and_nothing_unescaped():
  text = latex.document(ROWS, 'x & y', bold=[0], notes='5$ #1')
  assert r'a\_b & n \\ \hline' in text and r'\textbf{50\% $\pm$ 1} & \textbf{3} \\' in text
  assert r'\textbackslash{}x\{y\}\textasciitilde{}\textasciicircum{} & -- \\' in text
  assert r'\caption{x \& y}' in text and r'5\$ \#1' in text and text.isascii()


def compiler(folder, script):
  path = folder / 'pdflatex'
  path.write_text(f'#!/bin/sh\n{script}\n')
  path.chmod(0o755)
  return path


def test_without_a_compiler_there_is_no_pdf(tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, 'which', lambda name: None)
  assert latex.compile(tmp_path / 'table.tex') is None


def test_a_compiler_writes_the_pdf_beside_or_its_error_is_told(tmp_path, monkeypatch):
  source = tmp_path / 'table.tex'
  source.write_text(latex.document(ROWS, 'x'))
  monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
  copy = 'for x; do case $x in -output-directory=*) echo pdf > "${x#*=}/table.pdf";; esac; done'
  compiler(tmp_path, copy)
  assert latex.compile(source).read_text() == 'pdf\n'
  compiler(tmp_path, 'echo "! Undefined control sequence."; exit 1')
  with pytest.raises(RuntimeError, match=r'table\.tex cannot be compiled: ! Undefined'):
    latex.compile(source)
