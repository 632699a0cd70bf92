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

import numpy as np

from benchmarks import measure
from fedjax_mem.stages.secure import protocol


def session(clients: int, params: int, args: argparse.Namespace) -> protocol.Session:
  """Returns the session of one measurement."""
  sparse = {}
  threshold = clients // 2 + 1
  if not args.complete:
    found = protocol.degree(clients, corrupt=args.corrupt, dropout=args.dropout)
    threshold = found.threshold
    sparse = {'neighbours': found.neighbours, 'graph_seed': os.urandom(16)}
  return protocol.Session(
    name=os.urandom(32),
    num_clients=clients,
    threshold=threshold,
    size=params,
    bound=2**20,
    **sparse,
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


def plot(lines: list[dict], path: str) -> None:
  """Draws seconds, and bytes beyond the values themselves, against the number of clients."""
  import matplotlib.pyplot as plt  # of the plot alone

  figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
  for params in sorted({line['params'] for line in lines}):
    rows = sorted((x for x in lines if x['params'] == params), key=lambda x: x['clients'])
    n = [x['clients'] for x in rows]
    for what, style in (('client_s', 'o-'), ('server_s', 's--')):
      left.plot(n, [x[what] for x in rows], style, label=f'{what[:-2]}, D = {params:,}')
  # What is sent beside the values does not depend on D: the last one's rows are all rows.
  beyond = [x['client_sent_bytes'] - x['masked_bytes'] for x in rows]
  right.plot(n, beyond, 'o-', label='sent, beside 4 D of values')
  right.plot(n, [x['client_received_bytes'] for x in rows], 's--', label='received')
  left.set(ylabel='seconds of work in one sum')
  right.set(ylabel='bytes of one client')
  for axes in (left, right):
    axes.set(xscale='log', yscale='log', xlabel='clients n')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
  figure.savefig(path, dpi=150)


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
    plot(lines, args.out)


if __name__ == '__main__':
  main()
