"""The clay world: path-traced pictures of clay subjects with true captions, made from a seed."""
