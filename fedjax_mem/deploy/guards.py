"""Rules that the engine has no setting for, put in place before its main module runs.

The engine forwards any message of one client to another, and a client does what such a message
asks, without looking at rights: show a file (also a private key), end its job, shut down. It lets
each client log in where jobs are submitted, to list names there. All this ends here. A guard
replaces a function of the engine; where a version has no such function, nothing runs.
"""

from typing import Any

from cryptography import x509

from fedjax_mem.deploy import admission

SERVER = 'server'
# What a server asks of a client to run a job, and nothing else.
REQUESTS = frozenset(
  {
    'scheduler.cancel_resource',
    'scheduler.check_resource',
    'train.abort',
    'train.delete_run',
    'train.deploy',
    'train.notify_job_status',
    'train.start_job',
  }
)
_MANAGER = '_net_manager'  # the engine's channel to stop and inspect its processes


def install(role: str) -> None:
  """Puts the guards of a role in place.

  Args:
    role: 'server' or 'client'.

  Raises:
    RuntimeError: this version of the engine works in another way.
  """
  if role == 'server':
    guard_login()
    guard_messages()
  else:
    guard_requests()


def _taken(holder: Any, name: str) -> Any:
  found = getattr(holder, name, None)
  if found is None:
    raise RuntimeError(
      f'this version of nvflare has no {holder.__name__}.{name}, which guards it; '
      "pip install 'fedjax_mem[deploy]'."
    )
  return found


def guard_login() -> None:
  """Has the server refuse each login but the driver's."""
  from nvflare.fuel.hci.server import login

  checked = _taken(login, 'validate_admin_leaf_cert')

  def check(certificate: x509.Certificate) -> None:
    checked(certificate)
    admission.only_driver(certificate)

  login.validate_admin_leaf_cert = check


def guard_messages() -> None:
  """Has the server forward nothing from client to client, and not let clients manage it."""
  from nvflare.private.fed.server.fed_server import FederatedServer

  checked = _taken(FederatedServer, '_validate_auth_headers')

  def check(self: Any, message: Any) -> Any:
    return checked(self, message) or refusal(message)

  FederatedServer._validate_auth_headers = check


def refusal(message: Any) -> Any:
  """Returns the engine's reply to a message that a client must not send, None if it may."""
  from nvflare.fuel.f3.cellnet.core_cell import make_reply
  from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
  from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey

  def machine(key: str) -> str:
    return str(message.get_header(key) or '').partition('.')[0]

  origin, target = machine(MessageHeaderKey.ORIGIN), machine(MessageHeaderKey.DESTINATION)
  if origin == SERVER:
    return None
  header = message.get_header
  channels = {header(MessageHeaderKey.CHANNEL), header(StreamHeaderKey.CHANNEL)}
  topics = {header(MessageHeaderKey.TOPIC), header(StreamHeaderKey.TOPIC)}
  if target not in (SERVER, origin):
    return make_reply(ReturnCode.UNAUTHENTICATED, 'clients must not write to each other')
  if _MANAGER in channels and 'heartbeat' not in topics:
    return make_reply(ReturnCode.UNAUTHENTICATED, 'clients must not manage the server')
  return None


def guard_requests() -> None:
  """Has a client do nothing but run jobs, and that for its server alone."""
  from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
  from nvflare.private.admin_defs import error_reply
  from nvflare.private.defs import new_cell_message
  from nvflare.private.fed.client.admin import FedAdminAgent

  dispatch = _taken(FedAdminAgent, '_dispatch_request')

  def guarded(self: Any, request: Any) -> Any:
    topic = getattr(request.payload, 'topic', None)
    if request.get_header(MessageHeaderKey.ORIGIN) != SERVER or topic not in REQUESTS:
      return new_cell_message({}, error_reply('this client only runs jobs of its server'))
    return dispatch(self, request)

  FedAdminAgent._dispatch_request = guarded
