"""Checks a built site: nothing is loaded from elsewhere.

python scripts/pages/check.py build/site             reads every page and style sheet
python scripts/pages/check.py build/site --browser   opens pages in Chromium as well

With `--browser` (Debian: `apt-get install chromium`) every page is opened from a server, 380
pixels wide, and one from its folder, with a search. Chromium looks no name up but localhost, and
its log of the network says what pages asked for. `--shots FOLDER` keeps pictures of some pages at
1280 and 380 pixels, light and dark.
"""

import argparse
import functools
import html.parser
import http.server
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

MEASURE, NARROW = '/measure-all', 380
WIDTHS = """<!doctype html><pre id="widths"></pre>
<iframe id="page" style="width: NARROWpx"></iframe>
<script>
const [out, frame] = ["widths", "page"].map(name => document.getElementById(name));
const pages = PAGES;
frame.onload = () => {
  const wide = frame.contentDocument.documentElement.scrollWidth;
  out.textContent += pages.shift() + " " + wide + "\\n";
  if (pages.length) frame.src = pages[0];
};
frame.src = pages[0];
</script>"""
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


def _chromium(*words: str) -> tuple[str, list[str]]:
  """Runs Chromium; returns what it printed, and the addresses that pages asked for.

  Raises:
    RuntimeError: it failed, or a page logged an error.
  """
  with tempfile.TemporaryDirectory() as place:
    log = Path(place) / 'net.json'
    where = (f'--user-data-dir={place}/user', f'--log-net-log={log}', '--enable-logging=stderr')
    command = [str(shutil.which('chromium')), *FLAGS, *where, *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    errors = [x for x in ran.stderr.splitlines() if 'CONSOLE' in x and 'rror' in x]
    if ran.returncode or errors:
      raise RuntimeError(f'Chromium ended with {ran.returncode}: {errors or ran.stderr[-500:]}')
    events = [x.get('params', {}) for x in json.loads(log.read_text('utf-8'))['events']]
  # What Chromium asks for by itself has no origin.
  asked = {x['url'] for x in events if 'url' in x and '://' in x.get('initiator', '')}
  return ran.stdout, sorted(asked)


def browser(site: Path, shots: Path | None) -> list[str]:
  """Returns a line for each fault that Chromium shows; keeps pictures in a folder, if given one."""
  handler = functools.partial(_Server, directory=str(site))
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  home = f'http://127.0.0.1:{server.server_port}'
  said, asked = _chromium('--virtual-time-budget=120000', '--dump-dom', f'{home}{MEASURE}')
  found = re.search(r'<pre id="widths">(.*?)</pre>', said, re.S)
  widths = dict(x.split() for x in found[1].splitlines()) if found else {}
  pages = [p.relative_to(site).as_posix() for p in site.rglob('*.html')]
  faults = [f'{x} was not opened' for x in sorted(set(pages) - set(widths))]
  wider = {page: int(wide) for page, wide in widths.items() if int(wide) > NARROW}
  faults += [f'{page} is {wide} pixels wide in {NARROW}' for page, wide in wider.items()]
  faults += [f'a page asked for {x}' for x in asked if not x.startswith((home, 'data:', 'blob:'))]
  here = site.absolute().as_uri()
  view = ('--virtual-time-budget=30000', '--dump-dom')
  said, asked = _chromium(*view, f'{here}/index.html?q=epsilon')
  faults += [f'from its folder a page asked for {x}' for x in asked if not x.startswith(here)]
  if 'md-search-result__link' not in said:
    faults.append('from its folder the search finds nothing')
  for page, wide, dark in itertools.product(PAGES if shots else (), (1280, 380), (0, 1)):
    name = f'{page[:-5].replace("/", "-")}-{wide}-{"dark" if dark else "light"}'
    _chromium(
      *(f'--window-size={wide},2000', f'--blink-settings=preferredColorScheme={1 - dark}'),
      *(f'--screenshot={shots}/{name}.png', '--virtual-time-budget=5000', f'{home}/{page}'),
    )
  server.shutdown()
  return faults


def thrice(site: Path, shots: Path | None) -> list[str]:
  """Returns the faults of three tries in Chromium, those that all had if there are such.

  Where other work has the machine, pages may be late, and Chromium may end before they are there.
  """
  tries: list[list[str]] = []
  while len(tries) < 3 and (not tries or tries[-1]):
    try:
      tries.append(browser(site, shots))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
      tries.append([str(error)])
  same = [x for x in tries[-1] if all(x in other for other in tries)]
  return same or tries[-1]


class _Server(http.server.SimpleHTTPRequestHandler):
  """Serves files, and a page that opens all others, one after another, and writes their widths."""

  def do_GET(self) -> None:
    """Answers."""
    if self.path != MEASURE:
      super().do_GET()
      return
    site = Path(self.directory)
    pages = [p.relative_to(site).as_posix() for p in sorted(site.rglob('*.html'))]
    text = WIDTHS.replace('PAGES', json.dumps(pages)).replace('NARROW', str(NARROW)).encode()
    self.send_response(200)
    self.send_header('Content-Type', 'text/html')
    self.send_header('Content-Length', str(len(text)))
    self.end_headers()
    self.wfile.write(text)

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
  if args.browser and shutil.which('chromium') is None:
    print('not checked in a browser: there is no chromium')
  elif args.browser:
    if args.shots:
      args.shots.mkdir(parents=True, exist_ok=True)
    faults += thrice(args.site, args.shots)
  print('\n'.join(faults) or f'{args.site}: nothing is loaded from elsewhere')
  return int(bool(faults))


if __name__ == '__main__':
  sys.exit(main())
