"""What does secure aggregation cost? Seconds and bytes, of a client and of the server.

python -m benchmarks.secure [--clients 100] [--params 1000000] [--dropout 0.1] [--out secure.png]

One line for each pair of clients and parameters. The graph of SecAgg+ is from the paper's bound for
`--corrupt` clients and this share of drop-outs (sigma 40, eta 30); `--complete` takes all pairs, as
Bonawitz et al. (2017). Drop-outs are silent from the masked values on: the costliest time. All
parties run in this process on one thread, one client after another; the values are 20-bit integers
modulo 2 ** 32, and the sum is compared with the plain one. `total_s` has everything but the drawing
of the values; `client_s` are means over the clients that stayed.
"""

import argparse
import itertools
import json
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks import measure
from fedjax_mem.report import figures
from fedjax_mem.secagg import graph, protocol


def session(clients: int, params: int, args: argparse.Namespace) -> protocol.Session:
  """Returns the session of one measurement."""
  degree, seed = graph.complete(clients), b''
  if not args.complete:
    degree = graph.degree(clients, corrupt=args.corrupt, dropout=args.dropout)
    seed = os.urandom(16)
  return protocol.Session(
    name=os.urandom(32), degree=degree, size=params, bound=2**20, graph_seed=seed
  )


def once(clients: int, params: int, args: argparse.Namespace) -> dict:
  """Returns one line: one run of all rounds."""
  agreed = session(clients, params, args)
  rng = np.random.default_rng(0)
  out = rng.choice(clients, int(args.dropout * clients), replace=False).tolist()
  wanted = np.zeros(params, np.int64)

  def values(client: int) -> np.ndarray:
    mine = rng.integers(-(2**20), 2**20, params, dtype=np.int32, endpoint=True)
    np.add(wanted, mine, out=wanted)
    return mine

  found = protocol.run(agreed, values, dict.fromkeys(out, protocol.Kind.MASKED))
  stayed = list(found.survivors)
  if not np.array_equal(found.total, wanted):
    raise RuntimeError('the secure sum must equal the plain one, and does not.')
  return {
    'clients': clients,
    'params': params,
    'dropped': len(out),
    'neighbours': agreed.neighbours or clients - 1,
    'threshold': agreed.threshold,
    'exact': True,
    'total_s': round(float(found.client_seconds.sum()) + found.server_seconds, 3),
    'client_s': round(float(found.client_seconds[stayed].mean()), 4),
    'server_s': round(found.server_seconds, 3),
    'client_sent_bytes': int(found.sent[stayed].mean()),
    'client_received_bytes': int(found.received[stayed].mean()),
    'server_received_bytes': int(found.sent.sum()),
    'server_sent_bytes': int(found.received.sum()),
    'masked_bytes': params * 4,
    'peak_rss_mb': round(measure.peak_rss_mb()),
  }


def plot(lines: list[dict], figure: Figure, colours: Sequence[str]) -> None:
  """Draws seconds and bytes, of a client and of the server, against the number of clients."""
  panels = figure.subplots(1, 3)
  for number, params in enumerate(sorted({line['params'] for line in lines})):
    rows = sorted((x for x in lines if x['params'] == params), key=lambda x: x['clients'])
    n, color, size = [x['clients'] for x in rows], colours[number % len(colours)], f'D = {params:,}'
    series = (
      (0, 'client_s', 'o-', f'a client, {size}', 1),
      (0, 'server_s', 's--', f'server, {size}', 1),
      (1, 'client_sent_bytes', 'o-', f'sent, {size}', 1e3),
      (2, 'server_received_bytes', 's--', f'received, {size}', 1e6),
    )
    for panel, what, style, label, unit in series:
      panels[panel].plot(n, [x[what] / unit for x in rows], style, color=color, label=label)
  # Beside the values nothing depends on D: the last one's rows are all rows.
  beside = [(x['client_sent_bytes'] - x['masked_bytes']) / 1e3 for x in rows]
  received = [x['client_received_bytes'] / 1e3 for x in rows]
  panels[1].plot(n, beside, 'o:', color='black', label='sent beside the values, any D')
  panels[1].plot(n, received, 'v:', color='grey', label='received, any D')
  sent = [x['server_sent_bytes'] / 1e6 for x in rows]
  panels[2].plot(n, sent, 'v:', color='grey', label='sent, any D')
  titles = ('seconds of work in one sum', 'kB of one client', 'MB of the server')
  for axes, title in zip(panels, titles, strict=True):
    axes.set(xscale='log', yscale='log', xlabel='clients n', title=title)
    axes.set_xticks(n, [f'{x:,}' for x in n])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:,.10g}')
    axes.grid(alpha=0.3)
    axes.set_ylim(top=axes.get_ylim()[1] * 6)  # room for the legend
    axes.legend(fontsize=7, loc='upper left', ncols=2)


def main() -> None:
  """Measures each pair of clients and parameters, and draws."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--clients', type=int, nargs='+', default=[100])
  parser.add_argument('--params', type=int, nargs='+', default=[1_000_000])
  parser.add_argument('--dropout', type=float, default=0.1)
  parser.add_argument('--corrupt', type=float, default=0.1)
  parser.add_argument('--complete', action='store_true', help='all pairs instead of SecAgg+')
  parser.add_argument('--out', help='a picture: seconds and bytes against clients')
  args = parser.parse_args()
  lines = []
  for clients, params in itertools.product(args.clients, args.params):
    lines.append(once(clients, params, args))
    print(json.dumps(lines[-1]), flush=True)
  if args.out:
    with figures.canvas(13, 4) as (figure, colours):
      plot(lines, figure, colours)
    figures.save(figure, args.out)


if __name__ == '__main__':
  main()
