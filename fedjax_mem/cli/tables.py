"""The command `fedjax-mem table`: tables that are regenerated from runs."""

import dataclasses
import importlib
import pathlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
  from fedjax_mem.config.load import Config

# Table -> (default experiment, default seeds).
DEFAULTS: dict[str, tuple[str, tuple[int, ...]]] = {
  'compression': ('fashion_mnist_fedavg', (0,)),
  'robustness': ('fashion_mnist_robust', (0, 1, 2)),
  'distributed_dp': ('digits_secagg', (0,)),
}
# Tables of published results, each a module of `studies`; they know their experiments and seeds.
PUBLISHED = ('niid_bench', 'fedavgm', 'fedprox_synthetic')
# Option -> the tables that take another value than its default; one that is not here: all do.
_OF: dict[str, tuple[str, ...]] = {
  **dict.fromkeys(('cells', 'results', 'only_show'), PUBLISHED),
  'codecs': ('compression',),
  **dict.fromkeys(('rules', 'attacks', 'partitions', 'attackers'), ('robustness',)),
  **dict.fromkeys(('epsilons', 'bits'), ('distributed_dp',)),
  **dict.fromkeys(('config', 'set', 'rounds', 'seeds', 'data_dir'), (*DEFAULTS, *PUBLISHED)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Regenerate a table: do the missing runs, then write the table and its plot.

  compression: bytes of a client's message against test accuracy, for every codec.
  robustness: test accuracy under every attack, for every robust rule.
  distributed_dp: bits of a value against test accuracy, for noise that clients add to integers.
  niid_bench, fedavgm, fedprox_synthetic: published results, and ours beside them.
  privacy: epsilon of published settings, and ours beside them; no data.

  Finished runs are not repeated: the command can be stopped and given again.
  Example: fedjax-mem table compression --seeds 0 1 2
  """

  which: Annotated[
    Positional[
      Literal[
        'compression',
        'robustness',
        'distributed_dp',
        'niid_bench',
        'fedavgm',
        'fedprox_synthetic',
        'privacy',
      ]
    ],
    arg(help='Which table.'),
  ]
  config: Annotated[
    Positional[pathlib.Path | None],
    arg(
      help='TOML file of the experiment, or the name of a shipped one.',
      metavar='CONFIG',
      help_behavior_hint="(default: the table's own)",
    ),
  ] = None
  set: Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help='Override of one key: section.key=value; may be given several times.'),
  ] = ()
  cells: Annotated[
    tuple[str, ...],
    arg(
      help='published results: which cells, METHOD/SETTING, METHOD or SETTING each; an unknown '
      'name lists them.',
      help_behavior_hint='(default: all)',
    ),
  ] = ()
  results: Annotated[
    pathlib.Path | None,
    arg(
      help="published results: folder of the cells' files, such as benchmarks/results/niid_bench.",
      metavar='PATH',
      help_behavior_hint='(default: cells in the folder of the runs)',
    ),
  ] = None
  only_show: Annotated[
    bool, arg(help='published results: run nothing, show the cells that have ended.')
  ] = False
  codecs: Annotated[
    tuple[str, ...],
    arg(
      help='compression: which codecs; an unknown name lists them.',
      help_behavior_hint='(default: all)',
    ),
  ] = ()
  rules: Annotated[
    tuple[str, ...], arg(help='robustness: which rules.', help_behavior_hint='(default: all)')
  ] = ()
  attacks: Annotated[
    tuple[str, ...], arg(help='robustness: which attacks.', help_behavior_hint='(default: all)')
  ] = ()
  partitions: Annotated[
    tuple[str, ...],
    arg(help="robustness: 'iid', 'dirichlet' or both.", help_behavior_hint='(default: both)'),
  ] = ()
  attackers: Annotated[float, arg(help='robustness: share of hostile clients.')] = 0.2
  epsilons: Annotated[
    tuple[float, ...],
    arg(help='distributed_dp: budgets of a run.', help_behavior_hint='(default: 2 8)'),
  ] = ()
  bits: Annotated[
    tuple[int, ...],
    arg(help='distributed_dp: bits of a value.', help_behavior_hint='(default: 9 10 11 12 14 18)'),
  ] = ()
  rounds: Annotated[
    int | None, arg(help='Rounds of each run.', help_behavior_hint='(default: as in the file)')
  ] = None
  seeds: Annotated[
    tuple[int, ...],
    arg(
      help='Seeds; each entry is run for each seed.', help_behavior_hint='(default: 0, or 0 1 2)'
    ),
  ] = ()
  out: Annotated[
    pathlib.Path | None,
    arg(
      help='Folder of the runs, the table and the plot.',
      metavar='PATH',
      help_behavior_hint='(default: runs/NAME-OF-THE-TABLE)',
    ),
  ] = None
  data_dir: Annotated[
    pathlib.Path | None,
    arg(
      help='Folder of prepared data.',
      metavar='PATH',
      help_behavior_hint='(default: $FEDJAX_MEM_DATA or ~/.cache/fedjax_mem/data)',
    ),
  ] = None
  debug: Annotated[bool, arg(help='Show the traceback of an error.')] = False

  def __call__(self) -> None:
    """Does the missing runs and prints the table."""
    for field in dataclasses.fields(self):
      tables = _OF.get(field.name, (self.which,))
      if self.which not in tables and getattr(self, field.name) != field.default:
        name = 'CONFIG' if field.name == 'config' else '--' + field.name.replace('_', '-')
        raise ValueError(
          f'{name} must be left out of table {self.which!r}: it is of {", ".join(tables)}, got '
          f'{getattr(self, field.name)!r}.'
        )
    out = self.out or pathlib.Path('runs') / self.which
    if self.which in DEFAULTS:
      self._ours(out)
    elif self.which in PUBLISHED:
      self._published(out)
    else:
      self._epsilons(out)

  def _ours(self, out: pathlib.Path) -> None:
    from fedjax_mem.config.load import load_config

    config, seeds = DEFAULTS[self.which]
    base = load_config(self.config or config, self.set)
    from fedjax_mem.report.tables import format_table

    common = {
      'seeds': self.seeds or seeds,
      'rounds': self.rounds,
      'data_dir': None if self.data_dir is None else str(self.data_dir),
    }
    print(format_table(getattr(self, f'_{self.which}')(base, out, common)))
    print(f'table: {out / self.which}.md, plot: {out / self.which}.png')

  def _published(self, out: pathlib.Path) -> None:
    from fedjax_mem.studies import cells

    table = importlib.import_module(f'fedjax_mem.studies.{self.which}').TABLE
    overrides = [*self.set, *([] if self.rounds is None else [f'rounds={self.rounds}'])]
    wanted = cells.cells_of(table, self.cells, self.seeds, config=self.config, overrides=overrides)
    other = [*([] if self.config is None else [str(self.config)]), *overrides]
    if other and other != [table.config]:
      said = f"not the table's own experiment: {', '.join(other)}"
      table = table._replace(says=(*table.says, said))
    results = self.results or out / 'cells'
    from fedjax_mem.report.tables import format_table
    from fedjax_mem.studies import beside

    if self.only_show:
      found = cells.read_cells(wanted, results)
    else:
      data_dir = None if self.data_dir is None else str(self.data_dir)
      found = cells.run_cells(table, wanted, out, self.results, data_dir=data_dir)
    if not found:
      raise ValueError(f'results must hold a cell of the table that has ended, got {results}.')
    files = beside.write(table, found, out)
    for line in table.says:
      print(f'note: {line}')
    print(format_table(beside.rows(table, found)))
    print('files: ' + ', '.join(str(x) for x in files))

  def _epsilons(self, out: pathlib.Path) -> None:
    from fedjax_mem.report.tables import format_table
    from fedjax_mem.studies import epsilons

    lines = epsilons.rows()
    files = epsilons.write(lines, out)
    print(format_table(lines))
    print('files: ' + ', '.join(str(x) for x in files))

  def _compression(self, base: 'Config', out: pathlib.Path, common: Any) -> list[dict[str, Any]]:
    from fedjax_mem.studies import compression as table

    codecs = self.codecs or tuple(table.CODECS)
    return table.rows(table.compression(base, out, codecs=codecs, **common))

  def _robustness(self, base: 'Config', out: pathlib.Path, common: Any) -> list[dict[str, Any]]:
    from fedjax_mem.studies import robustness as table

    cells = table.robustness(
      base,
      out,
      rules=self.rules or tuple(table.RULES),
      attacks=self.attacks or tuple(table.ATTACKS),
      partitions=self.partitions or tuple(table.PARTITIONS),
      attackers=self.attackers,
      **common,
    )
    return table.rows(cells)

  def _distributed_dp(self, base: 'Config', out: pathlib.Path, common: Any) -> list[dict[str, Any]]:
    from fedjax_mem.studies import distributed_dp as table

    epsilons, bits = self.epsilons or table.EPSILONS, self.bits or table.BITS
    return table.rows(table.distributed_dp(base, out, epsilons=epsilons, bits=bits, **common))
