"""Counting what is compiled."""

import jax
import pytest


@pytest.fixture(scope='session')
def _events():
  seen: list[str] = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **kwargs: seen.append(event) if 'backend_compile' in event else None
  )
  return seen


@pytest.fixture
def compilations(_events):
  """Returns the list that every compilation is appended to."""
  _events.clear()
  return _events
