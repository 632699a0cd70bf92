"""Folders of images by label and by client."""

import numpy as np
import pytest
from PIL import Image

import fedjax_mem as fm
from fedjax_mem.data import from_images

RNG = np.random.default_rng(0)


def write(folder, number=3, shape=(5, 4, 3)):
  folder.mkdir(parents=True)
  images = RNG.integers(0, 256, (number, *shape)).astype(np.uint8)
  for i, image in enumerate(images):
    Image.fromarray(image).save(folder / f'{i}.png')
  (folder / 'notes.txt').write_text('not an image')
  return images


def test_a_folder_a_label(tmp_path):
  cats, dogs = write(tmp_path / 'cat'), write(tmp_path / 'dog')
  table = from_images(tmp_path, test_share=0)
  assert table.labels == ('cat', 'dog') and table.client_ids is None
  assert np.array_equal(table.arrays['x'], np.concatenate([cats, dogs]))
  assert table.arrays['y'].tolist() == [0, 0, 0, 1, 1, 1] and table.input_shape == (5, 4, 3)
  assert table.preprocess(table.arrays)['x'].max() <= 1
  small = from_images(tmp_path, size=[2, 3], channels=1, test_share=0)
  grey = Image.fromarray(cats[0]).convert('L').resize((3, 2), Image.Resampling.BILINEAR)
  assert np.array_equal(small.arrays['x'][0, ..., 0], np.asarray(grey))


@pytest.mark.parametrize('layout', ['client/label', 'label/client'])
def test_a_folder_a_client(tmp_path, layout):
  counts = {('ann', 'cat'): 2, ('ann', 'dog'): 3, ('bob', 'dog'): 4}
  for (who, label), n in counts.items():
    first, second = (who, label) if layout == 'client/label' else (label, who)
    write(tmp_path / first / second, n)
  data = fm.data.load('images', path=str(tmp_path), layout=layout, test_share=0)
  assert data.clients == ('ann', 'bob') and data.labels == ('cat', 'dog')
  assert data.label_counts().tolist() == [[2, 3], [0, 4]]
  assert data.shown()[1] == ['cat', 'dog']


def test_what_is_wrong_is_named_by_folder_or_file(tmp_path):
  with pytest.raises(ValueError, match='must hold folders of images, got none'):
    from_images(tmp_path)
  write(tmp_path / 'train' / 'cat')
  (tmp_path / 'train' / 'dog').mkdir()
  with pytest.raises(ValueError, match=r'train/dog must hold images \(.*\), got none'):
    from_images(tmp_path / 'train')
  write(tmp_path / 'train' / 'eel', 1, (5, 5, 3))
  (tmp_path / 'train' / 'dog').rmdir()
  with pytest.raises(ValueError, match=r'eel/0.png must be of the size \(5, 4\) of the others'):
    from_images(tmp_path / 'train')
  (tmp_path / 'train' / 'eel' / '0.png').write_text('no image')
  with pytest.raises(ValueError, match=r'eel/0.png must be an image'):
    from_images(tmp_path / 'train')
  write(tmp_path / 'test' / 'dog', 1)
  (tmp_path / 'train' / 'eel' / '0.png').unlink()
  (tmp_path / 'train' / 'eel' / 'notes.txt').unlink()
  (tmp_path / 'train' / 'eel').rmdir()
  with pytest.raises(ValueError, match="got 'dog' only in the test set"):
    from_images(tmp_path / 'train', test=tmp_path / 'test')
  with pytest.raises(ValueError, match='size must be the height and the width'):
    from_images(tmp_path / 'train', size=[3])
  with pytest.raises(ValueError, match="channels must be one of '1', '3'"):
    from_images(tmp_path / 'train', channels=4)
