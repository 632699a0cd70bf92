"""The stages of a round, one method per file, in the order of the round."""
