"""Order statistics without a sort: the largest values, medians of columns."""
