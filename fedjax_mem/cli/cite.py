"""The command `fedjax-mem cite`: BibTeX of the package and of what an experiment uses."""

import dataclasses
from typing import Annotated

from tyro.conf import Positional, arg

from fedjax_mem.cli.shared import Command, MaybePath


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cite(Command):
  """Print the BibTeX of this package and of all methods, the model and the data of a run.

  A method of this package that no publication describes says so: cite the package for it.
  Example: fedjax-mem cite runs/quickstart-1a2b3c4d > run.bib
  """

  run: Annotated[
    Positional[MaybePath],
    arg(
      help='Folder of a run, or an experiment: a TOML file or the name of a shipped one.',
      metavar='RUN',
      help_behavior_hint='(default: the package alone)',
    ),
  ] = None

  def __call__(self) -> None:
    """Prints the entries."""
    from fedjax_mem.report import citing

    if self.run is None:
      print(citing.bibtex(), end='')
    elif self.run.is_dir():
      from fedjax_mem.report.runs import load_run

      print(citing.of_runs([load_run(self.run)]), end='')
    else:
      from fedjax_mem.config.load import load_config, to_dict

      print(citing.bibtex([to_dict(load_config(self.run))]), end='')
