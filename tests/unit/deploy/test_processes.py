"""What one engine leaves does not disturb the next; tests/system starts engines."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from fedjax_mem.deploy import processes


def sleeper(place):
  command = [sys.executable, '-c', 'print(flush=True); import time; time.sleep(60)']
  env = os.environ | {processes.PLACE: place}
  process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, start_new_session=True)
  process.stdout.readline()
  return process


def test_who_was_told_of_a_place_is_found_and_ended(tmp_path):
  place, other = str(tmp_path / 'place.json'), str(tmp_path / 'other.json')
  with sleeper(place) as mine, sleeper(other) as not_mine:
    assert list(processes._told(place)) == [mine.pid]
    processes._end(lambda: list(processes._told(place)), 5)
    assert mine.wait(5) == -9
    assert not_mine.poll() is None
    not_mine.kill()


def test_who_does_not_end_is_named():
  began = time.monotonic()
  with pytest.raises(RuntimeError, match=r'processes \[4194304\] of the engine did not end'):
    processes._end(lambda: [4194304], 0.1)  # beyond what process ids there are
  assert time.monotonic() - began < 2


def test_a_place_is_there_while_its_folder_is_held(tmp_path):
  work = tmp_path / 'work'
  assert processes.place(work) is None
  work.mkdir()
  assert processes.place(work) is None
  (work / 'place.json').write_text(json.dumps({'run': 'here'}))
  held = processes.locked(work)
  assert processes.place(work) == {'run': 'here'}
  with pytest.raises(ValueError, match='only one may run with a kit; stop that one first'):
    processes.locked(work)
  held.release()
  assert processes.place(work) is None


def test_a_port_that_is_taken_is_named_and_a_free_one_is_fine():
  with socket.create_server(('', 0)) as free, socket.create_server(('', 0)) as taken:
    ports = free.getsockname()[1], taken.getsockname()[1]
    free.close()
    kit = SimpleNamespace(port=ports[0], admin_port=ports[1])
    with pytest.raises(ValueError, match=f'^port {ports[1]} of the kit must be free') as caught:
      processes.check_ports(kit, timeout=0.2)
    assert '\n' not in str(caught.value)
  processes.check_ports(kit, timeout=0.2)


def test_a_port_that_an_ending_engine_frees_is_waited_for():
  taken = socket.create_server(('', 0))
  kit = SimpleNamespace(port=taken.getsockname()[1], admin_port=taken.getsockname()[1])
  timer = threading.Timer(0.3, taken.close)
  timer.start()
  processes.check_ports(kit, timeout=5.0)
  timer.join()
