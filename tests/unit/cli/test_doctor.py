"""The doctor: what is missing, and the command that mends it."""

import io
import sys
import typing

import jax
import pytest
from rich.console import Console

from fedjax_mem import data
from fedjax_mem.cli import doctor
from fedjax_mem.cli.doctor import Check, diagnose, healthy, print_checks


class Entry(typing.NamedTuple):
  name: str
  size: str
  where: str
  available: bool
  remedy: str


def printed(checks):
  file = io.StringIO()
  print_checks(checks, Console(file=file, width=120, color_system=None))
  return file.getvalue()


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
  monkeypatch.setenv('FEDJAX_MEM_DATA', str(tmp_path / 'data'))
  return tmp_path


def named(checks):
  return {check.name: check for check in checks}


def test_this_machine_is_well(folder):
  checks = named(diagnose(folder / 'runs'))
  assert healthy(list(checks.values()))
  for name in ('python', 'jax', 'devices', 'cores', 'run folder', 'data folder', 'data digits'):
    assert checks[name].ok is True, checks[name]
  assert checks['jax'].detail == jax.__version__
  assert str(len(jax.devices())) in checks['devices'].detail
  assert not (folder / 'runs').exists()
  assert 'Ready' in printed(list(checks.values()))


def test_a_missing_package(monkeypatch):
  monkeypatch.setattr(doctor.importlib.metadata, 'requires', lambda _: ['no-such-thing>=2'])
  check = named(diagnose())['no-such-thing']
  assert (check.ok, check.detail) == (False, 'not installed')
  assert check.remedy == f"{sys.executable} -m pip install --upgrade 'no-such-thing>=2'"
  assert not healthy([check])


def test_a_package_that_is_too_old(monkeypatch):
  wanted = ['numpy>=999', "missing-but-optional; extra == 'test'"]
  monkeypatch.setattr(doctor.importlib.metadata, 'requires', lambda _: wanted)
  checks = named(diagnose())
  assert checks['numpy'].ok is False and '>=999 is needed' in checks['numpy'].detail
  assert 'missing-but-optional' not in checks


def test_devices_that_do_not_start(monkeypatch):
  def fail():
    raise RuntimeError("Unable to initialize backend 'tpu'\nmore")

  monkeypatch.setattr(jax, 'devices', fail)
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
  check = named(diagnose())['devices']
  assert check == Check(
    'devices', False, "Unable to initialize backend 'tpu'", 'unset JAX_PLATFORMS'
  )


def test_a_folder_that_cannot_be_written(folder):
  (folder / 'file').write_text('')
  check = named(diagnose(folder / 'file'))['run folder']
  assert check.ok is False
  assert '--out DIR' in check.remedy


def test_data_that_are_not_there(monkeypatch):
  rows = [
    Entry('there', '', 'built in', True, ''),
    Entry('near', '', '/usr/share/near', False, 'prepare near'),
    Entry('far', '', '', False, 'fetch far'),
  ]
  monkeypatch.setattr(data, 'describe', lambda: rows)
  checks = named(diagnose())
  assert checks['data there'] == Check('data there', True, 'built in')
  assert checks['data near'] == Check(
    'data near', None, '/usr/share/near, not prepared yet', 'prepare near'
  )
  assert checks['data far'] == Check('data far', None, 'not found', 'fetch far')
  text = printed(list(checks.values()))
  assert 'If you need it:' in text and 'data far: fetch far' in text


def test_a_part_that_fails_is_one_line_of_the_diagnosis(monkeypatch):
  def fail():
    raise OSError('disk on fire')

  monkeypatch.setattr(data, 'describe', fail)
  checks = named(diagnose())
  assert checks['data'].ok is False and checks['data'].detail == 'OSError: disk on fire'
  assert checks['devices'].ok is True


def test_what_is_printed_is_not_markup():
  check = Check('[red]x', False, '[/] [bold]', 'pip install [extra]')
  text = printed([check])
  assert '[red]x' in text and 'pip install [extra]' in text and '[/] [bold]' in text
  assert 'missing' in text and 'To be mended:' in text and 'Ready' not in text
