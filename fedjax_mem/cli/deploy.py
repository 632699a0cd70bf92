"""The commands `fedjax-mem deploy keys|server|client|revoke|status`: rounds on real machines."""

import dataclasses
import pathlib
from typing import Annotated

import tyro
from tyro.conf import Positional, UseAppendAction, arg, subcommand

from fedjax_mem.cli.shared import Command, DataDir, text

ServerKit = Annotated[pathlib.Path, arg(help="Folder of the server's kit.", metavar='DIR')]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keys(Command):
  """Make certificates and keys: a folder (kit) for the server and one for each client.

  Example: fedjax-mem deploy keys kits --clients north,south,west --host fl.example.org
  """

  folder: Annotated[Positional[pathlib.Path], arg(help='New folder.', metavar='DIR')]
  clients: Annotated[
    str, arg(help='Names of the clients, separated by commas; their order is that of the ids.')
  ]
  host: Annotated[str, arg(help='Name or address by which clients reach the server.')] = 'localhost'
  port: Annotated[int, arg(help='Port of the server for clients.')] = 8002
  admin_port: Annotated[int, arg(help='Port of the server for itself alone.')] = 8003

  def __call__(self) -> None:
    """Makes them, and says what to hand to whom."""
    from fedjax_mem.deploy import keys

    names = [name.strip() for name in self.clients.split(',')]
    lines = keys.provision(
      self.folder, names, self.host, port=self.port, admin_port=self.admin_port
    )
    print('\n'.join(lines))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server(Command):
  """Run the server of an experiment, or go on with a run, until its rounds are done.

  Example: fedjax-mem deploy server digits_dp --kit kits/server
  """

  config: Annotated[
    Positional[pathlib.Path],
    arg(
      help='TOML file or name of the experiment, or the folder of a run to go on with.',
      metavar='CONFIG',
    ),
  ]
  kit: ServerKit
  set: Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help='Override of one key: section.key=value; may be given several times.'),
  ] = ()
  out: Annotated[pathlib.Path, arg(help='Folder in which the run folder is made.')] = pathlib.Path(
    'runs'
  )
  data_dir: DataDir = None
  repeatable_noise: Annotated[
    bool, arg(help='Allow noise_seed: then nothing is claimed against the parties.')
  ] = False
  quiet: Annotated[bool, arg(help='No progress bar.')] = False

  def __call__(self) -> None:
    """Runs it."""
    from fedjax_mem.deploy.kit import Kit

    kit = Kit.open(self.kit, 'server')
    kit.check()
    resumed = (self.config / 'manifest.json').exists()
    if resumed and self.set:
      raise ValueError(f'--set must be left out to go on with a run, got {self.set!r}.')
    from fedjax_mem.config.load import load_config

    config = None if resumed else load_config(self.config, self.set)
    from fedjax_mem.deploy import driving

    if config is None:
      folder = driving.reopen(self.config, kit, self.repeatable_noise)
    else:
      where = text(self.data_dir)
      folder = driving.begin(config, kit, self.out, where, self.repeatable_noise)
    for last in driving.run(folder, kit, self.quiet)[-1:]:
      scores = [f'{x} {last[f"test_{x}"]:.4f}' for x in ('accuracy', 'loss') if f'test_{x}' in last]
      print(f'round {last["round"]}: {", ".join(scores) or "lost"}')
    print(f'folder: {folder.path} (report.html, learning_curve.png, metrics.jsonl)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Client(Command):
  """Take part as one client, until the run has ended.

  Example: fedjax-mem deploy client --kit north --data north.npz --require secagg
  """

  kit: Annotated[pathlib.Path, arg(help="Folder of this client's kit.", metavar='DIR')]
  data: Annotated[
    pathlib.Path | None,
    arg(
      help='Own examples: .npz or a folder with x and y, or a .csv or .parquet table.',
      metavar='PATH',
      help_behavior_hint='(default: its part of the configured data)',
    ),
  ] = None
  config: Annotated[
    pathlib.Path | None,
    arg(help='Pin: accept this configuration alone.', metavar='FILE', help_behavior_hint=''),
  ] = None
  require: Annotated[
    str | None,
    arg(
      help='Refuse a job that protects the update less: local (noise) or secagg (masks).',
      metavar='local|secagg',
      help_behavior_hint='',
    ),
  ] = None
  allow: Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help='Module whose factories a configuration may name; may be given several times.'),
  ] = ()
  repeatable_noise: Annotated[
    bool, arg(help='Allow noise_seed: then nothing is claimed against the parties.')
  ] = False
  data_dir: DataDir = None
  wait: Annotated[float, arg(help='Seconds for which a server that is not up is waited for.')] = (
    60.0
  )

  def __call__(self) -> None:
    """Takes part."""
    from fedjax_mem.deploy.kit import Kit

    kit = Kit.open(self.kit, 'client')
    kit.check()
    from fedjax_mem.deploy import joining

    line = joining.join(
      kit,
      data=text(self.data),
      pin=text(self.config),
      require=self.require,
      allow=self.allow,
      repeatable=self.repeatable_noise,
      data_dir=text(self.data_dir),
      wait=self.wait,
    )
    print(f'{kit.name}: {line}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Revoke(Command):
  """Shut a client out, from the next round on; on the server's machine."""

  name: Annotated[Positional[str], arg(help='Name of the client.', metavar='NAME')]
  kit: ServerKit

  def __call__(self) -> None:
    """Revokes it."""
    from fedjax_mem.deploy import standing
    from fedjax_mem.deploy.kit import Kit

    print(standing.revoke(Kit.open(self.kit, 'server'), self.name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status(Command):
  """Show whether the server runs, its round, and its clients; on the server's machine."""

  kit: ServerKit

  def __call__(self) -> None:
    """Prints it."""
    from fedjax_mem.deploy import standing
    from fedjax_mem.deploy.kit import Kit

    print('\n'.join(standing.status(Kit.open(self.kit, 'server'))))


Deploy = (
  Annotated[Keys, subcommand('keys')]
  | Annotated[Server, subcommand('server')]
  | Annotated[Client, subcommand('client')]
  | Annotated[Revoke, subcommand('revoke')]
  | Annotated[Status, subcommand('status')]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployCommands:
  """Run the same rounds on real machines, over mutual TLS (the extra `deploy`)."""

  command: tyro.conf.OmitSubcommandPrefixes[Deploy]

  @property
  def debug(self) -> bool:
    """Whether to show the traceback of an error."""
    return self.command.debug

  def __call__(self) -> None:
    """Runs the chosen command."""
    self.command()
