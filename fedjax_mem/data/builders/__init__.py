"""TFDS builders that need no TensorFlow: they write array_record files.

Each lives in a package of its own, as TFDS wants it, and keeps the order of its source
(`disable_shuffling`), so that a partition by seed means the same everywhere. The modules import
`tensorflow_datasets`; import them only to prepare a data set.
"""
