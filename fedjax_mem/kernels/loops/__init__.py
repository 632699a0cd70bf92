"""Going through what is large, part by part."""
