"""A plugin of pytest that appends what becomes of each test to the file MUTANT_REPORTS.

One JSON list a line, [what, node id, time]; what is `collect` (it could not be collected), `start`,
`failed` or `finish`. The plugin takes itself out of the environment, so that a pytest that a test
starts does not report.
"""

import json
import os
import signal
import time

ADDED = '-p mutant_reports'


class Reports:
  """Writes the lines."""

  def __init__(self, path: str):
    self._out = open(path, 'a', encoding='utf-8')  # noqa: SIM115

  def _say(self, what: str, test: str) -> None:
    self._out.write(json.dumps([what, test, time.time()]) + '\n')
    self._out.flush()

  def pytest_collectreport(self, report):
    """Notes what fails to be collected."""
    if report.failed:
      self._say('collect', report.nodeid)

  def pytest_runtest_logstart(self, nodeid):
    """Notes that a test starts."""
    self._say('start', nodeid)

  def pytest_runtest_logreport(self, report):
    """Notes that a test, its setup or its teardown fails."""
    if report.failed:
      self._say('failed', report.nodeid)

  def pytest_runtest_logfinish(self, nodeid):
    """Notes that a test is over."""
    self._say('finish', nodeid)


def pytest_configure(config):
  """Starts to report, and ends the process where nobody else does after MUTANT_ALARM seconds."""
  path = os.environ.pop('MUTANT_REPORTS', '')
  alarm = float(os.environ.pop('MUTANT_ALARM', '0'))
  if 'PYTEST_ADDOPTS' in os.environ:
    os.environ['PYTEST_ADDOPTS'] = os.environ['PYTEST_ADDOPTS'].replace(ADDED, '')
  if path and not hasattr(config, 'workerinput'):
    config.pluginmanager.register(Reports(path))
    if alarm:
      signal.alarm(int(alarm) + 1)  # the default action of SIGALRM ends even a loop in C
