"""Checks a built site: nothing is loaded from elsewhere.

python scripts/pages/check.py build/site             reads every page and style sheet
python scripts/pages/check.py build/site --browser   opens pages in Chromium as well

With `--browser` (Debian: `apt-get install chromium`) some pages are opened from their folder and
from a server, at 1280 and 380 pixels, light and dark. Chromium looks no name up but localhost, and
its log of the network says what was asked for. `--shots FOLDER` keeps the pictures.
"""

import argparse
import functools
import html.parser
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

PAGES = ('index.html', 'guide/privacy.html', 'refusals.html', 'api/stages_privacy.html')
# What a page loads by itself; what a reader may follow (`a href`) is not loaded.
LOADS = {'src', 'srcset', 'data', 'poster', 'action'}
FLAGS = (
  *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'),
  *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
  '--hide-scrollbars',
  '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1',
)


class _Loads(html.parser.HTMLParser):
  """Collects the addresses that a page loads."""

  def __init__(self) -> None:
    super().__init__()
    self.found: list[str] = []

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    """Notes what an element loads."""
    given = {name: value or '' for name, value in attrs}
    self.found += [value for name, value in given.items() if name in LOADS]
    if tag == 'link' and given.get('rel') not in ('canonical', 'prev', 'next'):
      self.found.append(given.get('href', ''))


def outside(address: str) -> bool:
  """Returns whether an address is on another host."""
  return bool(re.match(r'\s*(?:[a-z][a-z0-9+.-]*:)?//', address, re.I))


def loads(path: Path) -> list[str]:
  """Returns the addresses on other hosts that a page or style sheet loads."""
  text = path.read_text('utf-8')
  if path.suffix == '.css':
    found = re.findall(r'url\(\s*["\']?([^"\')]+)|@import\s+["\']([^"\']+)', text)
    return [x for pair in found for x in pair if outside(x)]
  reader = _Loads()
  reader.feed(text)
  return [x for x in reader.found if outside(x)]


def static(site: Path) -> list[str]:
  """Returns a line for each address that is loaded from elsewhere.

  Raises:
    ValueError: the folder has no pages.
  """
  files = [p for p in sorted(site.rglob('*')) if p.suffix in ('.html', '.css')]
  if not any(p.name == 'index.html' for p in files):
    raise ValueError(f'site must be a folder with index.html, got {str(site)!r}.')
  return [f'{p.relative_to(site)} loads {x}' for p in files for x in loads(p)]


def _asked(log: Path) -> list[str]:
  """Returns the addresses that Chromium asked for, by its log of the network."""
  said = json.loads(log.read_text('utf-8'))
  return [e['params']['url'] for e in said['events'] if 'url' in e.get('params', {})]


def _opened(chromium: str, url: str, wide: int, dark: bool, picture: Path) -> dict[str, Any]:
  """Opens a page, and returns what it asked for and what was logged."""
  with tempfile.TemporaryDirectory() as place:
    log = Path(place) / 'net.json'
    theme = ('--force-dark-mode', '--enable-features=WebContentsForceDark') if False else ()
    ran = subprocess.run(
      [
        *(chromium, *FLAGS, *theme, f'--user-data-dir={place}/user', f'--log-net-log={log}'),
        *(f'--window-size={wide},2400', '--virtual-time-budget=4000', '--enable-logging=stderr'),
        *((f'--blink-settings=preferredColorScheme={0 if dark else 1}',)),
        *(f'--screenshot={picture}', url),
      ],
      capture_output=True,
      text=True,
      timeout=120,
    )
    errors = [x for x in ran.stderr.splitlines() if 'CONSOLE' in x and 'rror' in x]
    return {'asked': _asked(log), 'errors': errors, 'code': ran.returncode}


def browser(site: Path, chromium: str, shots: Path) -> list[str]:
  """Returns a line for each fault that Chromium shows."""
  handler = functools.partial(_Quiet, directory=str(site))
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  faults = []
  for start in (site.absolute().as_uri(), f'http://127.0.0.1:{server.server_port}'):
    kind = start.partition(':')[0]
    for page in PAGES:
      for wide in (1280, 380):
        for dark in (False, True):
          name = f'{kind}-{page[:-5].replace("/", "-")}-{wide}-{"dark" if dark else "light"}'
          seen = _opened(chromium, f'{start}/{page}', wide, dark, shots / f'{name}.png')
          away = [x for x in seen['asked'] if not x.startswith((start, 'data:', 'blob:', 'about:'))]
          faults += [f'{name}: asked for {x}' for x in away]
          faults += [f'{name}: {x}' for x in seen['errors']]
          if seen['code']:
            faults.append(f'{name}: Chromium ended with {seen["code"]}')
  server.shutdown()
  return faults


class _Quiet(http.server.SimpleHTTPRequestHandler):
  """Serves files and logs nothing."""

  def log_message(self, *args: object) -> None:
    """Says nothing."""


def main() -> int:
  """Prints the faults; returns 1 if there are any."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('site', type=Path)
  parser.add_argument('--browser', action='store_true')
  parser.add_argument('--shots', type=Path)
  args = parser.parse_args()
  faults = static(args.site)
  chromium = shutil.which('chromium')
  if args.browser and chromium is None:
    print('not checked in a browser: there is no chromium')
  elif args.browser and chromium:
    with tempfile.TemporaryDirectory() as place:
      shots = args.shots or Path(place)
      shots.mkdir(parents=True, exist_ok=True)
      faults += browser(args.site, chromium, shots)
  print('\n'.join(faults) or f'{args.site}: nothing is loaded from elsewhere')
  return int(bool(faults))


if __name__ == '__main__':
  sys.exit(main())
