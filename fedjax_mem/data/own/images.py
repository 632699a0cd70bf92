"""Folders of images: a folder a label, or a folder a client with folders of labels in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.own import _shared
from fedjax_mem.data.preprocess import Inputs
from fedjax_mem.data.table import Table

_LAYOUTS = ('label', 'client/label', 'label/client')
_ENDINGS = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
_MODES = {1: 'L', 3: 'RGB'}


def from_images(
  path: Any,
  *,
  layout: str = 'label',
  size: Sequence[int] | None = None,
  channels: int = 3,
  test: Any = None,
  test_share: float = 0.2,
  test_seed: int = 0,
) -> Table:
  """Returns the images of a folder, by Pillow, as uint8 [T, H, W, C]; a model sees them over 255.

  >>> import pathlib, tempfile
  >>> from PIL import Image
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   pathlib.Path(folder, 'cat').mkdir()
  ...   Image.new('RGB', (4, 3)).save(f'{folder}/cat/1.png')
  ...   table = from_images(folder, test_share=0)
  >>> table.arrays['x'].shape, table.labels
  ((1, 3, 4, 3), ('cat',))

  Args:
    path: the folder.
    layout: what its folders are: 'label' (path/label/image), 'client/label' (path/client/label/
      image) or 'label/client'.
    size: (H, W) that images are scaled to, bilinearly; None: they are of one size already.
    channels: C, 1 (grey) or 3 (colour).
    test: another such folder, the test set; None: a share of each client's images, or of all.
    test_share: that share, in [0, 1).
    test_seed: seed of the draw of that share.

  Raises:
    ValueError: a folder without images, a file that is no image or of another size, or a label that
      only the test set has; it is named.
  """
  validate.one_of(_LAYOUTS, layout=layout)
  validate.one_of(map(str, _MODES), channels=str(channels))
  if size is not None:
    size = _checked(size)
  folder = _shared.existing(path, 'path', folder=True)
  train = _read(folder, layout, size, channels)
  tested = None
  if test is not None:
    place = _shared.existing(test, 'test', folder=True)
    tested = _read(place, layout, size, channels)
    if tested.x.shape[1:] != train.x.shape[1:]:
      raise ValueError(
        f'images in {place} must be of the size {train.x.shape[1:3]!r} of those in {folder}, '
        f'got {tested.x.shape[1:3]!r}: size = [H, W] scales them.'
      )
  return _shared.table_of(
    folder.name,
    train,
    tested,
    test_share=test_share,
    test_seed=test_seed,
    task='classification',
    what=f'the folders of {folder}',
    preprocess=Inputs(train.x.shape[1:], 255.0),
  )


def _checked(size: Any) -> list[int]:
  if not isinstance(size, list | tuple) or len(size) != 2:
    raise ValueError(f'size must be the height and the width, got {size!r}.')
  return [validate.integer(size=x) for x in size]


def _read(folder: Path, layout: str, size: Sequence[int] | None, channels: int) -> _shared.Rows:
  levels = layout.split('/')
  places: list[tuple[Path, ...]] = [(place,) for place in _folders(folder)]
  if len(levels) == 2:
    places = [(*outer, inner) for outer in places for inner in _folders(outer[0])]
  found: list[tuple[Path, ...]] = []
  for place in places:
    files = [x for x in sorted(place[-1].iterdir()) if x.suffix.lower() in _ENDINGS]
    if not files:
      raise ValueError(f'{place[-1]} must hold images ({", ".join(_ENDINGS)}), got none.')
    found += [(*place, file) for file in files]
  images: list[np.ndarray] = []
  for *_, file in found:
    image = _image(file, size, channels)
    if images and image.shape != images[0].shape:
      raise ValueError(
        f'{file} must be of the size {images[0].shape[:2]!r} of the others, '
        f'got {image.shape[:2]!r}: size = [H, W] scales them.'
      )
    images.append(image)
  names = {level: np.array([x[i].name for x in found]) for i, level in enumerate(levels)}
  return _shared.Rows(np.stack(images), names['label'], names.get('client'))


def _folders(folder: Path) -> list[Path]:
  found = sorted(x for x in folder.iterdir() if x.is_dir() and not x.name.startswith('.'))
  if not found:
    raise ValueError(f'{folder} must hold folders of images, got none.')
  return found


def _image(file: Path, size: Sequence[int] | None, channels: int) -> np.ndarray:
  """Returns an image [H, W, C] uint8."""
  from PIL import Image, UnidentifiedImageError  # imported here: few runs need it

  try:
    with Image.open(file) as opened:
      image = opened.convert(_MODES[channels])
  except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
    raise ValueError(f'{file} must be an image, got {error}.') from error
  if size is not None:
    image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
  array = np.asarray(image, np.uint8)
  return array[..., None] if array.ndim == 2 else array
