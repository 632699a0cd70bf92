"""The commands `fedjax-mem deploy keys|revoke|status`: rounds on real machines."""

import dataclasses
import pathlib
from typing import Annotated

import tyro
from tyro.conf import Positional, arg, subcommand

ServerKit = Annotated[pathlib.Path, arg(help="Folder of the server's kit.", metavar='DIR')]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Command:
  debug: Annotated[bool, arg(help='Show the traceback of an error.')] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keys(_Command):
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
class Revoke(_Command):
  """Shut a client out, from the next round on; on the server's machine."""

  name: Annotated[Positional[str], arg(help='Name of the client.', metavar='NAME')]
  kit: ServerKit

  def __call__(self) -> None:
    """Revokes it."""
    from fedjax_mem.deploy import standing
    from fedjax_mem.deploy.kit import Kit

    print(standing.revoke(Kit.open(self.kit, 'server'), self.name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status(_Command):
  """Show whether the server runs, its round, and its clients; on the server's machine."""

  kit: ServerKit

  def __call__(self) -> None:
    """Prints it."""
    from fedjax_mem.deploy import standing
    from fedjax_mem.deploy.kit import Kit

    print('\n'.join(standing.status(Kit.open(self.kit, 'server'))))


Deploy = (
  Annotated[Keys, subcommand('keys')]
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
