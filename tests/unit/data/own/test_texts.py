"""Text files by author: the sequences of tokens, and which file is wrong."""

import numpy as np
import pytest

import fedjax_mem as fm
from fedjax_mem.data import from_texts

TEXTS = {'ann': 'the cat sat on the mat', 'bob': 'the dog\nsat', 'zoë': 'äh the cat'}


@pytest.fixture
def folder(tmp_path):
  for who in ('ann', 'zoë'):
    (tmp_path / f'{who}.txt').write_text(TEXTS[who], encoding='utf-8')
  (tmp_path / 'bob' / 'letters').mkdir(parents=True)
  (tmp_path / 'bob' / 'letters' / 'one.txt').write_text(TEXTS['bob'])
  return tmp_path


def decoded(data, client):
  tokens = []
  for row in data.rows(client):
    tokens += [*data.arrays['x'][row], data.arrays['y'][row][-1]]
  return [data.labels[i] for i in tokens if data.labels[i] != '<pad>']


@pytest.mark.parametrize(('level', 'split'), [('characters', list), ('words', str.split)])
def test_each_author_has_its_texts_token_by_token(folder, level, split):
  table = from_texts(folder, level=level, length=5, test_share=0)
  data = fm.data.distribute(table)
  assert data.clients == ('ann', 'zoë', 'bob') and data.task.padding_id == 0
  for i, who in enumerate(data.clients):
    assert decoded(data, i) == ['<begin>', *split(TEXTS[who]), '<end>']
  assert np.array_equal(data.arrays['x'][:, 1:], data.arrays['y'][:, :-1])
  assert data.arrays['x'].shape[1] == 5 and data.input_shape == (5,)
  batch = data.preprocess(data.arrays)
  assert batch['x'].dtype == batch['y'].dtype == np.int32


def test_rare_tokens_are_unknown_and_the_test_set_has_its_authors(folder):
  data = fm.data.load('texts', path=str(folder), level='words', length=2, vocabulary=2)
  assert data.labels == ('<pad>', 'the', 'cat', '<unknown>', '<begin>', '<end>')
  whole = from_texts(folder, level='words', length=9, vocabulary=2, test_share=0)
  found = decoded(fm.data.distribute(whole), 2)
  assert found == ['<begin>', 'the', '<unknown>', '<unknown>', '<end>']
  assert data.num_classes == 6 and len(data.test['y']) == len(data.test_clients) > 0
  counts = fm.data.distribute(from_texts(folder, level='words', length=2, test_share=0)).counts
  kept = np.bincount(data.test_clients, minlength=3)
  assert (data.counts + kept).tolist() == counts.tolist()


def test_what_is_wrong_is_named_by_file_or_author(folder, tmp_path):
  (folder / 'ann.txt').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(ValueError, match=r'ann.txt must be a text in UTF-8'):
    from_texts(folder)
  (folder / 'ann.txt').write_text('')
  with pytest.raises(ValueError, match=r"author 'ann' in .* must have some text, got none"):
    from_texts(folder)
  (folder / 'ann.txt').unlink()
  (folder / 'carl').mkdir()
  with pytest.raises(ValueError, match=r'carl must hold .txt files of an author, got none'):
    from_texts(folder)
  (folder / 'carl').rmdir()
  (folder / 'bob.txt').write_text('x')
  with pytest.raises(ValueError, match=r"author 'bob' in .* must be a file or a folder, got both"):
    from_texts(folder)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=r'must hold a .txt file or a folder of each author'):
    from_texts(tmp_path / 'empty')
  with pytest.raises(ValueError, match="Did you mean 'words'"):
    from_texts(folder, level='word')
