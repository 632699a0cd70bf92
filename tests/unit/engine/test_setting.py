"""The room that examples of several clients take."""

from fedjax_mem.engine.setting import Rooms


def test_the_room_is_that_of_the_largest_clients():
  rooms = Rooms.of([3, 9, 1, 4])
  assert [rooms.clients(k) for k in (1, 2, 3, 4, 5)] == [9, 13, 16, 17, 17]
