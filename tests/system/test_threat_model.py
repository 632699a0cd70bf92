"""The table of combinations in the threat model is what the checks say now."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / 'scripts' / 'threat_model.py'


def loaded():
  spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_table_of_combinations_is_up_to_date():
  script = loaded()
  page = script.PAGE.read_text(encoding='utf-8')
  assert script.page(page) == page


def test_a_page_without_markers_is_refused():
  with pytest.raises(ValueError, match='the page must hold <!-- combinations -->'):
    loaded().page('# Threat model\n')
