"""What a run says about a round."""

from fedjax_mem.runner import notes


def said(**record):
  return list(notes.of_round({'round': 2, **record}))


def test_a_plain_round_says_nothing():
  assert said(train_loss=0.1, **{'mask/left_out': 0, 'krum/skipped': False, 'zeroed': 0}) == []


def test_what_was_left_out_or_not_done_is_said_with_its_coverage():
  both = {'mask/left_out': 3, 'a/b/skipped': True}
  assert said(**both) == [
    "round 2: skipped, too few clients were left for 'a/b'",
    "round 2: 3 messages did not fit and were left out by 'mask'",
  ]
  assert [x.endswith("'a/b'") for x in said(**both, covered=['a/b/skipped'])] == [True, False]
  assert said(**both, covered=['a/b/skipped'])[1].endswith("'mask' (not covered)")
  assert said(zeroed=1, covered=[]) == [
    'round 2: 1 updates were not finite and count as zeros (not covered)'
  ]
  assert said(not_finite=[4]) == ['round 2: left out, not finite: the updates of 4']
