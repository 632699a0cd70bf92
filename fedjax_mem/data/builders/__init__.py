"""TFDS builders that need no TensorFlow: they write array_record files.

Each is in its own package, as TFDS requires. It keeps the order of its source
(`disable_shuffling`), so that a partition by seed is the same on every machine. The modules import
`tensorflow_datasets`; import them only to prepare a data set.
"""
