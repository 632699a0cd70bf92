"""Small files in both formats that TensorFlow Federated publishes, converted and loaded."""

import contextlib
import lzma
import os
import sqlite3

import h5py
import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from fedjax_mem.data import tfds as prepared
from fedjax_mem.data.builders import tff
from fedjax_mem.data.table import distribute
from fedjax_mem.data.text import Characters, Words, most_frequent

FILES = {
  'fed_emnist': tff.EMNIST,
  'fed_emnist/digits': tff.EMNIST_DIGITS,
  'fed_shakespeare': tff.SHAKESPEARE,
  'fed_cifar100': tff.CIFAR100,
  'fed_stackoverflow': tff.STACKOVERFLOW,
}
COUNTS = {'f1': 3, 'f0': 1, 'f2': 5}


def image_example(rng, name):
  if name == 'fed_cifar100':
    return {
      'image': rng.integers(0, 256, (32, 32, 3)).astype(np.uint8),
      'label': np.int64(rng.integers(0, 100)),
      'coarse_label': np.int64(rng.integers(0, 20)),
    }
  label = rng.integers(0, 10 if 'digits' in name else 62)
  pixels = rng.integers(0, 256, (28, 28)).astype(np.float32) / np.float32(255)
  return {'pixels': pixels, 'label': np.int32(label)}


def text_example(rng, name):
  if name == 'fed_shakespeare':
    return {'snippets': bytes(rng.integers(97, 110, int(rng.integers(0, 200))).astype(np.uint8))}
  words = rng.choice([b'how', b'to', b'java', b'null'], int(rng.integers(1, 30)))
  texts = {k: k.encode() for k in ('title', 'tags', 'creation_date', 'type')}
  return {'tokens': b' '.join(words), 'score': np.int64(rng.integers(-5, 5)), **texts}


def make(name):
  """Returns split -> client -> list of examples."""
  rng = np.random.default_rng(0)
  example = text_example if name in ('fed_shakespeare', 'fed_stackoverflow') else image_example
  return {
    split: {c: [example(rng, name) for _ in range(n)] for c, n in COUNTS.items()}
    for split in FILES[name].splits
  }


def write_hdf5(folder, name, content):
  for split, path in FILES[name].hdf5_files(folder).items():
    with h5py.File(path, 'w') as file:
      for client, examples in content[split].items():
        for field in examples[0]:
          values = [e[field] for e in examples]
          text = isinstance(values[0], bytes)
          file.create_dataset(
            f'examples/{client}/{field}',
            data=values if text else np.stack(values),
            dtype=h5py.string_dtype() if text else None,
          )


def serialize(example):
  proto = tf_example_pb2.Example()
  for field, value in example.items():
    feature = proto.features.feature[field]
    if isinstance(value, bytes):
      feature.bytes_list.value.append(value)
    elif np.asarray(value).dtype.kind == 'f':
      feature.float_list.value.extend(np.ravel(value).tolist())
    else:
      feature.int64_list.value.extend(np.ravel(value).tolist())
  return proto.SerializeToString()


def write_sqlite(folder, name, content):
  path = folder / FILES[name].sqlite
  with contextlib.closing(sqlite3.connect(path)) as db, db:
    db.execute('CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INT)')
    db.execute(
      'CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)'
    )
    # Interleaved, as a database may be: the reader must bring a client's examples together.
    for i in range(max(COUNTS.values())):
      for split, (_, table) in FILES[name].splits.items():
        for client, examples in content[split].items():
          if i < len(examples):
            row = (table, client, serialize(examples[i]))
            db.execute('INSERT INTO examples VALUES (?, ?, ?)', row)
  return path


def write_lzma(folder, name, content):
  path = write_sqlite(folder, name, content)
  path.with_name(path.name + '.lzma').write_bytes(lzma.compress(path.read_bytes()))
  path.unlink()


WRITERS = {'hdf5': write_hdf5, 'sqlite': write_sqlite, 'lzma': write_lzma}


def prepare(name, form, tmp_path):
  source = tmp_path / 'source'
  source.mkdir()
  content = make(name)
  WRITERS[form](source, name, content)
  prepared.prepare(name, tmp_path / 'data', source)
  return content, distribute(prepared.load(name, tmp_path / 'data'))


@pytest.mark.parametrize('form', WRITERS)
@pytest.mark.parametrize('name', ['fed_emnist', 'fed_emnist/digits', 'fed_cifar100'])
def test_images_go_to_their_clients(name, form, tmp_path):
  content, data = prepare(name, form, tmp_path)
  assert data.clients == ('f0', 'f1', 'f2') and data.counts.tolist() == [1, 3, 5]
  assert data.num_classes == {'fed_emnist': 62, 'fed_cifar100': 100}.get(name, 10)
  batch = data.preprocess(data.arrays)
  for k, client in enumerate(data.clients):
    for row, example in zip(data.rows(k), content['train'][client], strict=True):
      image = example['image'] / 255 if 'image' in example else example['pixels'][..., None]
      assert np.allclose(batch['x'][row], image, rtol=1e-6)
      assert batch['y'][row] == example['label']
  # CIFAR-100's test clients are others than its training clients.
  owners = [-1] * 9 if name == 'fed_cifar100' else np.repeat([0, 1, 2], [1, 3, 5]).tolist()
  assert data.test_clients.tolist() == owners


@pytest.mark.parametrize('form', WRITERS)
def test_shakespeare_becomes_sequences_of_80_characters(form, tmp_path):
  content, data = prepare('fed_shakespeare', form, tmp_path)
  assert data.num_classes == 90 and data.input_shape == (80,)
  batch = data.preprocess(data.arrays)
  assert batch['x'].dtype == batch['y'].dtype == np.int32
  for k, client in enumerate(data.clients):
    ids = np.concatenate([Characters().encode(e['snippets']) for e in content['train'][client]])
    assert np.array_equal(batch['x'][data.rows(k)], ids[:, :-1])
    assert np.array_equal(batch['y'][data.rows(k)], ids[:, 1:])


@pytest.mark.parametrize('form', WRITERS)
def test_stackoverflow_becomes_sequences_of_20_words(form, tmp_path):
  content, data = prepare('fed_stackoverflow', form, tmp_path)
  sentences = [e['tokens'] for c in content['train'].values() for e in c]
  words = Words(most_frequent(sentences, 10_000))
  assert data.num_classes == words.num_classes == 8 and data.input_shape == (20,)
  for k, client in enumerate(data.clients):
    ids = np.concatenate([words.encode(e['tokens']) for e in content['train'][client]])
    assert np.array_equal(data.arrays['x'][data.rows(k)], ids[:, :-1])
    assert np.array_equal(data.arrays['y'][data.rows(k)], ids[:, 1:])


@pytest.mark.parametrize('form', WRITERS)
def test_a_truncated_file_is_named(form, tmp_path):
  content = make('fed_emnist')
  WRITERS[form](tmp_path, 'fed_emnist', content)
  path = next(p for p in sorted(tmp_path.iterdir()) if 'test' not in p.name)
  os.truncate(path, path.stat().st_size // 2)
  with pytest.raises(ValueError, match=f'{path.name} must be a whole') as caught:
    prepared.prepare('fed_emnist', tmp_path / 'data', tmp_path)
  assert 'fetch it again' in str(caught.value)


def test_foreign_files_are_named(tmp_path):
  (tmp_path / 'emnist_all.sqlite').write_bytes(b'no database at all')
  with pytest.raises(ValueError, match=r'emnist_all\.sqlite must be a whole SQLite file'):
    prepared.prepare('fed_emnist', tmp_path / 'data', tmp_path)
  (tmp_path / 'emnist_all.sqlite').unlink()
  write_sqlite(tmp_path, 'fed_emnist', make('fed_emnist'))
  with pytest.raises(ValueError, match="must hold examples of the split 'digits_only_"):
    prepared.prepare('fed_emnist/digits', tmp_path / 'data', tmp_path)


def test_missing_files_are_listed(tmp_path):
  with pytest.raises(ValueError, match=r'shakespeare\.sqlite\.lzma.*shakespeare_train\.h5'):
    prepared.prepare('fed_shakespeare', tmp_path / 'data', tmp_path)


def test_pixels_beyond_their_range_are_refused():
  with pytest.raises(ValueError, match=r'pixels must be in \[0, 1\], got 0.0 to 2.0'):
    tff.grey(np.linspace(0, 2, 784))
  levels = np.arange(784) % 256
  assert np.array_equal(tff.grey(levels.astype(np.float32) / 255).ravel(), levels)
